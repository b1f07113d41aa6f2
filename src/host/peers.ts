/** The tunnel's peers. One that is right is never touched: this `wg` replaces AllowedIPs, with a gap. */
import { createHash } from "node:crypto";
import { compareAddresses } from "../net/address.ts";
import type { Peer } from "../plan/desired.ts";
import { unknownNode } from "../plan/retained.ts";
import type { Command } from "./command.ts";
import type { Perform } from "./executor.ts";
import type { Reason, Resource } from "./resource.ts";
import {
  allowedIpOwners,
  type DesiredTunnel,
  handshakeLimit,
  inChunks,
  type ObservedPeer,
  type Tunnel,
  type WireGuard,
} from "./wireguard.ts";

const prefixesPerArgument = 1_000;

export interface PeerChanges {
  /** Run before anything is routed to the peers. */
  add: Command[];
  /** Run after nothing is routed to what goes. */
  remove: Command[];
  /** What the tunnel has once both are done. */
  result: Tunnel;
}

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
  const added = addPeers(link, desired, tunnel, wanted, now);
  const removed = removePeers(link, desired, added.result);
  return { add: added.commands, remove: removed.commands, result: removed.result };
}

/** A half of a diff: what it runs, and what the tunnel has afterwards. */
interface HalfChange {
  commands: Command[];
  result: Tunnel;
}

function addPeers(
  link: string,
  desired: readonly Peer[],
  tunnel: Tunnel,
  wanted: ReadonlyMap<string, string | undefined>,
  now: number,
): HalfChange {
  const owner = allowedIpOwners(tunnel);
  const claimed = new Set(desired.flatMap((peer) => peer.allowedIps));
  const settings: string[][] = [];
  const result = new Map<string, ObservedPeer>();
  // A prefix that another peer gets is taken from this one by that. What goes stays until nothing is routed to it.
  for (const [publicKey, peer] of tunnel.peers)
    result.set(publicKey, { ...peer, allowedIps: peer.allowedIps.filter((prefix) => !claimed.has(prefix)) });
  for (const peer of desired) {
    const observed = tunnel.peers.get(peer.publicKey);
    const missing = peer.allowedIps.filter((prefix) => owner.get(prefix) !== peer.publicKey);
    const kept = result.get(peer.publicKey)?.allowedIps ?? [];
    const allowedIps =
      kept.length > 0 ? [...peer.allowedIps, ...kept].sort(compareAddresses) : peer.allowedIps;
    const moved = endpointToSet(peer, observed, wanted, now);
    const words = [
      ...(observed?.preshared ? ["preshared-key", "/dev/null"] : []),
      ...(observed?.keepalive ? ["persistent-keepalive", "0"] : []),
      ...(moved ? ["endpoint", moved] : []),
      ...(missing.length > 0 ? ["allowed-ips", allowedIps.join(",")] : []),
    ];
    if (!observed || words.length > 0) settings.push(["peer", peer.publicKey, ...words]);
    result.set(peer.publicKey, {
      endpoint: moved ?? observed?.endpoint,
      allowedIps,
      preshared: false,
      keepalive: false,
      latestHandshake: observed?.latestHandshake ?? 0,
    });
  }
  return { commands: inChunks(link, settings), result: { ...tunnel, peers: result } };
}

/** @param tunnel as `addPeers` leaves it */
function removePeers(link: string, desired: readonly Peer[], tunnel: Tunnel): HalfChange {
  const result = new Map(tunnel.peers);
  const wantedKeys = new Set(desired.map((peer) => peer.publicKey));
  const gone = [...tunnel.peers.keys()].filter((publicKey) => !wantedKeys.has(publicKey)).sort();
  for (const publicKey of gone) result.delete(publicKey);
  const claimed = new Set(desired.flatMap((peer) => peer.allowedIps));
  const surplus: string[] = [];
  for (const { publicKey, allowedIps } of desired) {
    const present = tunnel.peers.get(publicKey);
    const unclaimed = present?.allowedIps.filter((prefix) => !claimed.has(prefix)) ?? [];
    if (present && unclaimed.length > 0) result.set(publicKey, { ...present, allowedIps });
    surplus.push(...unclaimed);
  }
  surplus.sort(compareAddresses);
  const removals: string[][] = [];
  // A prefix leaves a peer, whose others stay as they are, by moving to a peer that is removed at once.
  for (let from = 0; from < surplus.length; from += prefixesPerArgument) {
    const prefixes = surplus.slice(from, from + prefixesPerArgument).join(",");
    removals.push(["peer", throwAway, "allowed-ips", prefixes, "peer", throwAway, "remove"]);
  }
  for (const publicKey of gone) removals.push(["peer", publicKey, "remove"]);
  return { commands: inChunks(link, removals), result: { ...tunnel, peers: result } };
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

/** The nodes of the peers that commands speak of, for the log. */
export function namedIn(commands: readonly Command[], peers: readonly Peer[]): string[] {
  const words = new Set(commands.flatMap((each) => each.argv));
  return peers.filter((peer) => words.has(peer.publicKey)).map((peer) => peer.node);
}

/** The tunnel's peers, each with its prefixes and its endpoint. */
export class Peers implements Resource<DesiredTunnel> {
  readonly #link: string;
  readonly #wireGuard: WireGuard;
  readonly #perform: Perform;
  /** By public key, the endpoint that we last set. */
  readonly #wantedEndpoints = new Map<string, string | undefined>();
  /** Whether there were none when the last pass began. */
  wereNone = false;

  constructor(link: string, wireGuard: WireGuard, perform: Perform) {
    this.#link = link;
    this.#wireGuard = wireGuard;
    this.#perform = perform;
  }

  invalidate(reason: Reason): void {
    this.#wireGuard.invalidate(reason);
  }

  observe(): Promise<Tunnel> {
    return this.#wireGuard.observe();
  }

  async add({ link, peers }: DesiredTunnel): Promise<void> {
    if (link === undefined) return;
    const tunnel = await this.observe();
    this.wereNone = tunnel.peers.size === 0;
    const { seenAt } = this.#wireGuard;
    const { commands, result } = addPeers(this.#link, peers, tunnel, this.#wantedEndpoints, seenAt);
    const nodes = namedIn(commands, peers);
    await this.#wireGuard.change(() => this.#perform("peers added or changed", commands, { nodes }), result);
    for (const { node, publicKey, endpoint } of peers)
      if (node !== unknownNode) this.#wantedEndpoints.set(publicKey, endpoint);
  }

  async remove({ link, peers }: DesiredTunnel): Promise<void> {
    if (link === undefined) return;
    const { commands, result } = removePeers(this.#link, peers, await this.observe());
    await this.#wireGuard.change(() => this.#perform("peers or prefixes removed", commands), result);
    for (const key of this.#wantedEndpoints.keys())
      if (!result.peers.has(key)) this.#wantedEndpoints.delete(key);
  }
}
