/** What WireGuard has in the tunnel's link, by `wg`: the own key and port, and peers, which are in peers.ts. */
import { compareAddresses, parseAddress } from "../net/address.ts";
import type { Standing } from "../plan/overlay/claims.ts";
import { type Command, command } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import type { Links } from "./link.ts";
import { Kept, type Reason, type Resource } from "./resource.ts";

export interface ObservedPeer {
  endpoint: string | undefined;
  allowedIps: readonly string[];
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

export async function observeTunnel({ $ }: Reader, link: string): Promise<Tunnel> {
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

interface OwnIdentity {
  publicKey: string;
  privateKeyPath: string;
  port: number;
}

/** The own key and port, where they differ, and no mark. */
export function diffIdentity(link: string, own: OwnIdentity, tunnel: Tunnel): Command[] {
  const settings = [
    ...(tunnel.publicKey === own.publicKey ? [] : ["private-key", own.privateKeyPath]),
    ...(tunnel.port === own.port ? [] : ["listen-port", String(own.port)]),
    ...(tunnel.marked ? ["fwmark", "0"] : []),
  ];
  return settings.length > 0 ? [command`wg set ${link} ${settings}`] : [];
}

/** An endpoint that WireGuard moved (roaming) stays while the peer was heard of within this time, in seconds. */
export const handshakeLimit = 180;
// The kernel takes 128 KiB an argument and 2 MiB in all.
const charactersPerCommand = 100_000;

/**
 * Speaks first to peers that may hold a session with an earlier life of this tunnel: what they send into that is lost
 * until WireGuard notices, after 15 s. A keepalive that is switched on is sent at once, and begins a handshake.
 */
export function greet(link: string, publicKeys: readonly string[]): Command[] {
  const keepalive = (seconds: string) =>
    publicKeys.map((publicKey) => ["peer", publicKey, "persistent-keepalive", seconds]);
  return [...inChunks(link, keepalive("25")), ...inChunks(link, keepalive("0"))];
}

/** Commands that set these peers, each with its words. */
export function inChunks(link: string, settings: readonly string[][]): Command[] {
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

const nothing = (): Tunnel => ({ publicKey: undefined, port: 0, marked: false, peers: new Map() });

/** What WireGuard has in the tunnel's link: its identity and its peers are both of one look. */
export class WireGuard {
  readonly #tunnel: Kept<Tunnel>;
  /** When the handshakes were as old as they say, in seconds since 1970. */
  seenAt = 0;

  constructor(reader: Reader, link: string, links: Links) {
    this.#tunnel = new Kept(async () => {
      const { kind } = (await links.find(link)) ?? {};
      if (kind !== "wireguard" && kind !== "tun") return nothing();
      this.seenAt = Date.now() / 1000;
      return await observeTunnel(reader, link);
    });
  }

  invalidate(reason: Reason): void {
    if (["tunnel", "drift", "resync"].includes(reason)) this.#tunnel.forget();
  }

  observe(): Promise<Tunnel> {
    return this.#tunnel.get();
  }

  change(carryOut: () => Promise<void>, settle: () => Tunnel): Promise<void> {
    return this.#tunnel.change(carryOut, settle);
  }
}

/** The tunnel's key and port. */
export class Identity implements Resource<{ link: unknown }> {
  readonly #link: string;
  readonly #own: OwnIdentity;
  readonly #wireGuard: WireGuard;
  readonly #perform: Perform;

  constructor(link: string, own: OwnIdentity, wireGuard: WireGuard, perform: Perform) {
    this.#link = link;
    this.#own = own;
    this.#wireGuard = wireGuard;
    this.#perform = perform;
  }

  invalidate(reason: Reason): void {
    this.#wireGuard.invalidate(reason);
  }

  async add({ link }: { link: unknown }): Promise<void> {
    if (link === undefined) return;
    const tunnel = await this.#wireGuard.observe();
    const { publicKey, port } = this.#own;
    await this.#wireGuard
      .change(
        () => this.#perform("WireGuard key and port", diffIdentity(this.#link, this.#own, tunnel)),
        () => ({ ...tunnel, publicKey, port, marked: false }),
      )
      .catch((error: Error) => {
        if (!error.message.includes("Address already in use")) throw error;
        throw new Error(
          `UDP port ${port} is taken on this node, by a program (ss -ulpn) or another WireGuard link (wg show): stop that, or set WIGGLENET_WG_PORT to another one, the same on every node`,
        );
      });
  }
}
