/** The tunnel's peers, by `wg`. A peer that is right is never touched: this `wg` replaces AllowedIPs, with a gap. */
import { createHash } from "node:crypto";
import { compareAddresses, parseAddress } from "../net/address.ts";
import type { Peer } from "../plan/desired.ts";
import type { Standing } from "../plan/overlay/claims.ts";
import { $, type Command, command } from "./command.ts";

export interface ObservedPeer {
  endpoint: string | undefined;
  allowedIps: string[];
  /** Whether it has a pre-shared key; none of ours has. */
  preshared: boolean;
  /** Whether it has a persistent keepalive, as an agent leaves that is ended while it greets. */
  keepalive: boolean;
  /** Seconds since 1970; 0 if there was none. */
  latestHandshake: number;
}

export interface Tunnel {
  /** Not the private one: the kernel shows that clamped, which a file need not be. */
  publicKey: string | undefined;
  port: number;
  /** Whether the tunnel's own packets carry a mark; with that of the contract they would loop. */
  marked: boolean;
  peers: Map<string, ObservedPeer>;
}

export async function observeTunnel(link: string): Promise<Tunnel> {
  return parseTunnel(await $`wg show ${link} dump`);
}

/** Parses `wg show LINK dump`: a line of the link, then one for each peer, tab-separated. */
export function parseTunnel(output: string): Tunnel {
  const [own = [], ...peers] = output
    .split("\n")
    .filter(Boolean)
    .map((line) => line.split("\t"));
  const value = (field: string | undefined) =>
    field === undefined || field === "(none)" || field === "" ? undefined : field;
  return {
    publicKey: value(own[1]),
    port: Number(own[2]),
    marked: !["off", "0x0", undefined].includes(own[3]),
    peers: new Map(
      peers.map(([publicKey = "", preshared, endpoint, allowedIps, latestHandshake, , , keepalive]) => [
        publicKey,
        {
          endpoint: value(endpoint),
          allowedIps: (value(allowedIps)?.split(",") ?? []).sort(compareAddresses),
          preshared: value(preshared) !== undefined,
          keepalive: !["off", undefined].includes(keepalive),
          latestHandshake: Number(latestHandshake),
        },
      ]),
    ),
  };
}

/** Prefix → public key of the peer that has it. */
export function allowedIpOwners(tunnel: Peers | undefined): Map<string, string> {
  return new Map(
    [...(tunnel?.peers ?? [])].flatMap(([publicKey, peer]) =>
      peer.allowedIps.map((prefix) => [prefix, publicKey] as const),
    ),
  );
}

interface Peers {
  peers: ReadonlyMap<string, Pick<ObservedPeer, "endpoint" | "allowedIps">>;
}

/** Who holds what, as far as the kernel knows: no names. */
export function standing(tunnel: Peers): Standing {
  const endpoints = [...tunnel.peers].flatMap(([publicKey, { endpoint }]) => {
    const address = endpoint && parseAddress(endpoint.replace(/:\d+$/, "").replace(/^\[|\]$/g, ""));
    return address ? [[publicKey, address] as const] : [];
  });
  return {
    owners: allowedIpOwners(tunnel),
    nodes: new Map(),
    endpoints: new Map(endpoints),
    holders: new Map(),
  };
}

/** The own key and port, where they differ, and no mark. */
export function diffIdentity(
  link: string,
  own: { publicKey: string; privateKeyPath: string; port: number },
  tunnel: Tunnel,
): Command[] {
  const settings = [
    ...(tunnel.publicKey === own.publicKey ? [] : ["private-key", own.privateKeyPath]),
    ...(tunnel.port === own.port ? [] : ["listen-port", String(own.port)]),
    ...(tunnel.marked ? ["fwmark", "0"] : []),
  ];
  return settings.length > 0 ? [command`wg set ${link} ${settings}`] : [];
}

export interface PeerChanges {
  /** Run before anything is routed to the peers. */
  add: Command[];
  /** Run after nothing is routed to what goes. */
  remove: Command[];
  /** What the tunnel has once both are done. */
  result: Tunnel;
}

/** An endpoint that WireGuard moved (roaming) stays while the peer was heard of within this time, in seconds. */
export const handshakeLimit = 180;
// The kernel takes 128 KiB an argument and 2 MiB in all.
const charactersPerCommand = 100_000;
const prefixesPerArgument = 1_000;

/**
 * @param wanted the endpoints that were last set by us, by public key
 * @param now when the tunnel was observed, in seconds since 1970
 */
export function diffPeers(
  link: string,
  desired: readonly Peer[],
  tunnel: Tunnel,
  wanted: ReadonlyMap<string, string | undefined>,
  now: number,
): PeerChanges {
  const owner = allowedIpOwners(tunnel);
  const claimed = new Set(desired.flatMap((peer) => peer.allowedIps));
  const settings: string[][] = [];
  const result = new Map(tunnel.peers);
  for (const peer of desired) {
    const observed = tunnel.peers.get(peer.publicKey);
    const missing = peer.allowedIps.filter((prefix) => owner.get(prefix) !== peer.publicKey);
    // What goes stays until nothing is routed to it. A prefix that another peer gets is taken from this one by that.
    const kept = observed?.allowedIps.filter((prefix) => !claimed.has(prefix)) ?? [];
    const moved = endpointToSet(peer, observed, wanted, now);
    const words = [
      ...(observed?.preshared ? ["preshared-key", "/dev/null"] : []),
      ...(observed?.keepalive ? ["persistent-keepalive", "0"] : []),
      ...(moved ? ["endpoint", moved] : []),
      ...(missing.length > 0
        ? ["allowed-ips", [...peer.allowedIps, ...kept].sort(compareAddresses).join(",")]
        : []),
    ];
    if (!observed || words.length > 0) settings.push(["peer", peer.publicKey, ...words]);
    result.set(peer.publicKey, {
      endpoint: moved ?? observed?.endpoint,
      allowedIps: peer.allowedIps,
      preshared: false,
      keepalive: false,
      latestHandshake: observed?.latestHandshake ?? 0,
    });
  }
  const wantedKeys = new Set(desired.map((peer) => peer.publicKey));
  const gone = [...tunnel.peers.keys()].filter((publicKey) => !wantedKeys.has(publicKey)).sort();
  for (const publicKey of gone) result.delete(publicKey);
  const surplus = desired
    .flatMap((peer) => tunnel.peers.get(peer.publicKey)?.allowedIps ?? [])
    .filter((prefix) => !claimed.has(prefix))
    .sort(compareAddresses);
  const removals: string[][] = [];
  // A prefix leaves a peer, whose others stay as they are, by moving to a peer that is removed at once.
  for (let from = 0; from < surplus.length; from += prefixesPerArgument) {
    const prefixes = surplus.slice(from, from + prefixesPerArgument).join(",");
    removals.push(["peer", throwAway, "allowed-ips", prefixes, "peer", throwAway, "remove"]);
  }
  for (const publicKey of gone) removals.push(["peer", publicKey, "remove"]);
  return {
    add: inChunks(link, settings),
    remove: inChunks(link, removals),
    result: { ...tunnel, peers: result },
  };
}

/**
 * Speaks first to peers that may hold a session with an earlier life of this tunnel: what they send into that is lost
 * until WireGuard notices, after 15 s. A keepalive that is switched on is sent at once, and begins a handshake.
 */
export function greet(link: string, publicKeys: readonly string[]): Command[] {
  const keepalive = (seconds: string) =>
    publicKeys.map((publicKey) => ["peer", publicKey, "persistent-keepalive", seconds]);
  return [...inChunks(link, keepalive("25")), ...inChunks(link, keepalive("0"))];
}

/** A key that nobody has. */
const throwAway = createHash("sha256").update("wigglenet: prefixes on their way out").digest("base64");

function endpointToSet(
  peer: Peer,
  observed: ObservedPeer | undefined,
  wanted: ReadonlyMap<string, string | undefined>,
  now: number,
): string | undefined {
  if (peer.endpoint === undefined || peer.endpoint === observed?.endpoint) return undefined;
  const changed = wanted.has(peer.publicKey) && wanted.get(peer.publicKey) !== peer.endpoint;
  const silent = observed === undefined || now - observed.latestHandshake > handshakeLimit;
  return changed || silent ? peer.endpoint : undefined;
}

function inChunks(link: string, settings: readonly string[][]): Command[] {
  const chunks: string[][] = [];
  let length = Number.POSITIVE_INFINITY;
  for (const words of settings) {
    const more = words.join(" ").length + 1;
    if (length + more > charactersPerCommand) {
      chunks.push([]);
      length = 0;
    }
    chunks.at(-1)?.push(...words);
    length += more;
  }
  return chunks.map((words) => command`wg set ${link} ${words}`);
}

/** The nodes of the peers that commands speak of, for the log. */
export function namedIn(commands: readonly Command[], peers: readonly Peer[]): string[] {
  const words = new Set(commands.flatMap((each) => each.argv));
  return peers.filter((peer) => words.has(peer.publicKey)).map((peer) => peer.node);
}
