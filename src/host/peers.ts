/** The tunnel's peers. One that is right is never touched: this `wg` replaces AllowedIPs, with a gap. */
import { createHash } from "node:crypto";
import { compareAddresses, type Family, families } from "../net/address.ts";
import { type Mark, type ReadonlyTable, Table } from "../net/table.ts";
import type { Peer } from "../plan/desired.ts";
import { unknownNode } from "../plan/retained.ts";
import type { Command } from "./command.ts";
import type { Perform } from "./executor.ts";
import type { Reason, Resource } from "./resource.ts";
import {
  allowedIpOwners,
  greet,
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
 * @param leaving families that the tunnel's packets can have
 */
export function diffPeers(
  link: string,
  desired: readonly Peer[],
  tunnel: Tunnel,
  wanted: ReadonlyMap<string, string | undefined>,
  now: number,
  leaving: readonly Family[] = families,
): PeerChanges {
  const table = new Table<Peer>();
  for (const peer of desired) table.set(peer.publicKey, peer);
  const present = presentOf({ peers: new Map(tunnel.peers) });
  const add = addPeers(link, table, "all", present, wanted, now, leaving);
  add.note();
  const remove = removePeers(link, table, "all", present);
  remove.note();
  return { add: add.commands, remove: remove.commands, result: { ...tunnel, peers: present.peers } };
}

/** The tunnel's peers, kept up with what we change. */
interface PresentPeers {
  peers: Map<string, ObservedPeer>;
  /** By prefix, the public key of the peer that has it. */
  owners: Map<string, string>;
  /** What was desired when all of it was there, and nothing else. */
  settled?: Mark;
}

function presentOf(tunnel: Pick<Tunnel, "peers">): PresentPeers {
  return { peers: tunnel.peers, owners: allowedIpOwners(tunnel) };
}

/** By public key. */
type Changed = ReadonlySet<string> | "all";

/** A half of a diff. */
interface HalfChange {
  commands: Command[];
  /** Notes in what is present that they were run. */
  note(): void;
}

function addPeers(
  link: string,
  desired: ReadonlyTable<Peer>,
  changed: Changed,
  present: PresentPeers,
  wanted: ReadonlyMap<string, string | undefined>,
  now: number,
  leaving: readonly Family[],
): HalfChange {
  const keys = changed === "all" ? desired.keys() : changed;
  const peers = [...keys].flatMap((key) => desired.get(key) ?? []);
  // A prefix that another peer gets is taken from this one by that, and both have changed.
  const claimed = new Set(peers.flatMap((peer) => peer.allowedIps));
  const settings: string[][] = [];
  const broughtBack: string[] = [];
  const results: [key: string, peer: ObservedPeer, gained: readonly string[]][] = [];
  for (const peer of peers) {
    const observed = present.peers.get(peer.publicKey);
    const missing = peer.allowedIps.filter((prefix) => present.owners.get(prefix) !== peer.publicKey);
    // What goes stays until nothing is routed to it.
    const kept = observed?.allowedIps.filter((prefix) => !claimed.has(prefix)) ?? [];
    const allowedIps =
      kept.length > 0 ? [...peer.allowedIps, ...kept].sort(compareAddresses) : peer.allowedIps;
    const stuck = observed?.endpoint !== undefined && !leaving.includes(familyOfEndpoint(observed.endpoint));
    const moved = stuck ? peer.endpoint : endpointToSet(peer, observed, wanted, now);
    // It sends to where this node was heard from last, and has to hear from it to follow.
    if (stuck && moved && now - observed.latestHandshake <= handshakeLimit) broughtBack.push(peer.publicKey);
    const words = [
      ...(observed?.preshared ? ["preshared-key", "/dev/null"] : []),
      ...(observed?.keepalive ? ["persistent-keepalive", "0"] : []),
      ...(moved ? ["endpoint", moved] : []),
      ...(missing.length > 0 ? ["allowed-ips", allowedIps.join(",")] : []),
    ];
    if (observed && words.length === 0) continue;
    settings.push(["peer", peer.publicKey, ...words]);
    const result = {
      endpoint: moved ?? observed?.endpoint,
      allowedIps,
      preshared: false,
      keepalive: false,
      latestHandshake: observed?.latestHandshake ?? 0,
    };
    results.push([peer.publicKey, result, missing]);
  }
  return {
    commands: [...inChunks(link, settings), ...greet(link, broughtBack)],
    note() {
      for (const [key, , gained] of results)
        for (const prefix of gained) {
          take(present, prefix);
          present.owners.set(prefix, key);
        }
      for (const [key, peer] of results) present.peers.set(key, peer);
    },
  };
}

function familyOfEndpoint(endpoint: string): Family {
  return endpoint.startsWith("[") ? "ipv6" : "ipv4";
}

/** From the peer that has a prefix, if any. */
function take({ peers, owners }: PresentPeers, prefix: string): void {
  const key = owners.get(prefix);
  const peer = key === undefined ? undefined : peers.get(key);
  if (key === undefined || peer === undefined) return;
  peers.set(key, { ...peer, allowedIps: peer.allowedIps.filter((each) => each !== prefix) });
  owners.delete(prefix);
}

/** @param present with all that is desired */
function removePeers(
  link: string,
  desired: ReadonlyTable<Peer>,
  changed: Changed,
  present: PresentPeers,
): HalfChange {
  const gone: string[] = [];
  const surplus: string[] = [];
  for (const key of changed === "all" ? present.peers.keys() : changed) {
    const allowedIps = present.peers.get(key)?.allowedIps;
    const peer = desired.get(key);
    if (allowedIps !== undefined && peer === undefined) gone.push(key);
    // It has all that it should.
    if (peer === undefined || allowedIps === undefined || allowedIps.length === peer.allowedIps.length)
      continue;
    const wanted = new Set(peer.allowedIps);
    surplus.push(...allowedIps.filter((prefix) => !wanted.has(prefix)));
  }
  gone.sort();
  surplus.sort(compareAddresses);
  const removals: string[][] = [];
  // A prefix leaves a peer, whose others stay as they are, by moving to a peer that is removed at once.
  for (let from = 0; from < surplus.length; from += prefixesPerArgument) {
    const prefixes = surplus.slice(from, from + prefixesPerArgument).join(",");
    removals.push(["peer", throwAway, "allowed-ips", prefixes, "peer", throwAway, "remove"]);
  }
  for (const publicKey of gone) removals.push(["peer", publicKey, "remove"]);
  return {
    commands: inChunks(link, removals),
    note() {
      for (const prefix of surplus) take(present, prefix);
      for (const key of gone) {
        for (const prefix of present.peers.get(key)?.allowedIps ?? []) present.owners.delete(prefix);
        present.peers.delete(key);
      }
    },
  };
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
function namedIn(commands: readonly Command[], peers: readonly Peer[]): string[] {
  const words = new Set(commands.flatMap((each) => each.argv));
  return peers.filter((peer) => words.has(peer.publicKey)).map((peer) => peer.node);
}

/** What a desired state says of the tunnel's peers, by their public keys; without a link it has none. */
interface WantedPeers {
  link: unknown;
  peers: ReadonlyTable<Peer>;
  /** Families that the tunnel's packets can have. */
  leaving: readonly Family[];
}

/** The tunnel's peers, each with its prefixes and its endpoint. */
export class Peers implements Resource<WantedPeers> {
  readonly #link: string;
  readonly #wireGuard: WireGuard;
  readonly #perform: Perform;
  /** Of the last look. */
  #present: PresentPeers | undefined;
  /** By public key, the endpoint that we last set. */
  readonly #wantedEndpoints = new Map<string, string | undefined>();
  #leaving: readonly Family[] = families;
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

  async add({ link, peers, leaving }: WantedPeers): Promise<void> {
    if (link === undefined) return;
    // Where peers have moved meanwhile the kernel does not tell.
    if (!Bun.deepEquals(leaving, this.#leaving)) this.invalidate("drift");
    this.#leaving = leaving;
    const { tunnel, present } = await this.#peers();
    this.wereNone = present.peers.size === 0;
    const changed = peers.changedSince(present.settled);
    const { seenAt } = this.#wireGuard;
    const { commands, note } = addPeers(
      this.#link,
      peers,
      changed,
      present,
      this.#wantedEndpoints,
      seenAt,
      leaving,
    );
    const of = [...(changed === "all" ? peers.keys() : changed)].flatMap((key) => peers.get(key) ?? []);
    await this.#change(tunnel, "peers added or changed", commands, note, { nodes: namedIn(commands, of) });
    for (const { node, publicKey, endpoint } of of)
      if (node !== unknownNode) this.#wantedEndpoints.set(publicKey, endpoint);
  }

  async remove({ link, peers }: WantedPeers): Promise<void> {
    if (link === undefined) return;
    const { tunnel, present } = await this.#peers();
    const changed = peers.changedSince(present.settled);
    const { commands, note } = removePeers(this.#link, peers, changed, present);
    await this.#change(tunnel, "peers or prefixes removed", commands, note);
    for (const key of changed === "all" ? this.#wantedEndpoints.keys() : changed)
      if (!present.peers.has(key)) this.#wantedEndpoints.delete(key);
    present.settled = peers.mark();
  }

  async #peers(): Promise<{ tunnel: Tunnel; present: PresentPeers }> {
    const tunnel = await this.observe();
    if (this.#present?.peers !== tunnel.peers) this.#present = presentOf(tunnel);
    return { tunnel, present: this.#present };
  }

  #change(tunnel: Tunnel, what: string, commands: Command[], note: () => void, details?: object) {
    return this.#wireGuard.change(
      () => this.#perform(what, commands, details),
      () => {
        note();
        return tunnel;
      },
    );
  }
}
