/**
 * Who owns what: nodes claim keys, pod CIDRs and addresses by their annotations, and some claims collide (a
 * cloned machine, a stale Node object, a mistake, malice). Each collision is settled in favour of the claim that
 * already stands, so that no annotation moves another node's traffic.
 */
import { ancestorKey, compareAddresses, type Family, familyOf, hostPrefix, lengthOf } from "./address.ts";
import type { NodeRecord } from "./node.ts";

/** What this node has itself; nobody else's claim wins against it. */
export interface OwnClaims {
  name: string;
  publicKey: string | null;
  podCidrs: readonly string[];
  addresses: readonly string[];
  /** Addresses that this node itself talks to, and no pod CIDR may cover: the API server's. */
  reserved: readonly string[];
  /** Families in which it can reach a peer. */
  reaches: readonly Family[];
}

/** What is in the tunnel now. */
export interface Standing {
  /** For each prefix the public key of the peer that has it. */
  owners: ReadonlyMap<string, string>;
  /** By public key the address that its packets go to. */
  endpoints: ReadonlyMap<string, string>;
  /** By public key the node that had it so far; empty after a start, as the kernel knows no names. */
  holders: ReadonlyMap<string, string>;
}

/** A node with those of its claims that hold. */
export interface SettledNode {
  record: NodeRecord;
  publicKey: string | undefined;
  podCidrs: string[];
  addresses: string[];
}

export interface Settlement {
  nodes: SettledNode[];
  /** By node name, the claims that do not hold and why. */
  refused: Map<string, string[]>;
}

interface Claim {
  node: string;
  prefix: string;
  /** An endpoint gives nobody anything: it is where a node's tunnel is, so that no pod CIDR of another may cover it. */
  kind: "pod CIDR" | "address" | "endpoint";
  rank: number;
  created: string;
}

/** Whose an address is that is claimed twice: no node has an empty name. */
const nobody = "";
/** What comes first wins; age decides between equals. A node without a key has no tunnel that could ever stand. */
const rank = { own: 0, standing: 1, guard: 2, new: 3, keyless: 4 } as const;

/** @param nodes all nodes but our own */
export function settle(own: OwnClaims, nodes: readonly NodeRecord[], standing: Standing): Settlement {
  const refused = new Map<string, string[]>();
  const refuse = (node: string, problem: string) => {
    if (node !== own.name) refused.set(node, [...(refused.get(node) ?? []), problem]);
  };
  const keys = settleKeys(own, nodes, standing, refuse);
  const claims = listClaims(own, nodes, keys, standing, refuse);
  const holds = settlePrefixes(claims, refuse);
  return {
    nodes: nodes.map((record) => ({
      record,
      publicKey: keys.get(record.name),
      podCidrs: record.podCidrs.filter((prefix) => holds.get(record.name)?.has(prefix)),
      addresses: record.addresses.filter((address) => holds.get(record.name)?.has(address)),
    })),
    refused,
  };
}

type Refuse = (node: string, problem: string) => void;

/** The key of each node whose key is its own. */
function settleKeys(
  own: OwnClaims,
  nodes: readonly NodeRecord[],
  standing: Standing,
  refuse: Refuse,
): Map<string, string> {
  const holders = new Map<string, NodeRecord>();
  // A public key can be copied, pod CIDRs too: of the copies the one that fits best what stands is the original.
  const byPriority = nodes
    .map((node) => ({ node, fit: fitOf(node, own.reaches, standing) }))
    .sort((a, b) => b.fit - a.fit || olderFirst(a.node, b.node));
  for (const { node } of byPriority) {
    if (node.publicKey === undefined) continue;
    const holder = node.publicKey === own.publicKey ? own : holders.get(node.publicKey);
    if (holder === undefined) holders.set(node.publicKey, node);
    else
      refuse(
        node.name,
        `its public key is that of node ${holder.name}: delete its private key file and restart its agent`,
      );
  }
  return new Map([...holders].map(([key, node]) => [node.name, key]));
}

/**
 * How much of what a node says is in the tunnel: most of all that the key was its own, then where its packets go, then
 * how many of its prefixes.
 */
function fitOf(
  { name, publicKey, podCidrs, addresses, endpoints }: NodeRecord,
  reaches: readonly Family[],
  standing: Standing,
): number {
  if (publicKey === undefined) return 0;
  const held = [...podCidrs, ...addresses.map(hostPrefix)].filter(
    (prefix) => standing.owners.get(prefix) === publicKey,
  );
  // An address further down the list is not where packets would go.
  const best = endpoints.find((address) => reaches.includes(familyOf(address)));
  return (
    held.length +
    (best !== undefined && best === standing.endpoints.get(publicKey) ? 0x10000 : 0) +
    (standing.holders.get(publicKey) === name ? 0x20000 : 0)
  );
}

function listClaims(
  own: OwnClaims,
  nodes: readonly NodeRecord[],
  keys: ReadonlyMap<string, string>,
  { owners, endpoints }: Standing,
  refuse: Refuse,
): Claim[] {
  const claimants = new Map<string, string>();
  const contested = new Set<string>();
  for (const { name, addresses } of [own, ...nodes])
    for (const address of addresses) {
      if (claimants.has(address)) contested.add(address);
      else claimants.set(address, name);
    }
  const ours = (prefix: string, kind: Claim["kind"]): Claim => ({
    node: own.name,
    prefix,
    kind,
    rank: rank.own,
    created: "",
  });
  const claims = [
    ...own.podCidrs.map((prefix) => ours(prefix, "pod CIDR")),
    ...own.addresses.map((address) => ours(address, "address")),
    // The one node that has such an address may have it inside its own pod CIDR.
    ...own.reserved.map((address) => ({
      ...ours(address, "endpoint"),
      node: (contested.has(address) ? undefined : claimants.get(address)) ?? own.name,
    })),
  ];
  // Tunnelled for neither means for no third by a pod CIDR either, nor for one of the two.
  for (const address of contested)
    claims.push({ node: nobody, prefix: address, kind: "endpoint", rank: rank.guard, created: "" });
  const inTunnel = new Set([...owners.values(), ...endpoints.keys()]);
  for (const node of nodes) {
    const key = keys.get(node.name);
    const fresh = key === undefined ? rank.keyless : rank.new;
    // An address that two claimed has left the tunnel: a pod CIDR must not take it as soon as one of them lets go.
    const ofAddress = key !== undefined && inTunnel.has(key) ? rank.guard : fresh;
    const claim = (prefix: string, kind: Claim["kind"], allowedIp: string): Claim => {
      const stands = key !== undefined && owners.get(allowedIp) === key;
      return {
        node: node.name,
        prefix,
        kind,
        rank: stands ? rank.standing : kind === "address" ? ofAddress : fresh,
        created: node.created,
      };
    };
    for (const prefix of node.podCidrs) claims.push(claim(prefix, "pod CIDR", prefix));
    for (const endpoint of node.endpoints)
      if (!node.addresses.includes(endpoint)) {
        const used = key !== undefined && endpoints.get(key) === endpoint;
        claims.push({
          node: node.name,
          prefix: endpoint,
          kind: "endpoint",
          rank: used ? rank.guard : fresh,
          created: node.created,
        });
      }
    for (const address of node.addresses) {
      if (!contested.has(address)) claims.push(claim(address, "address", hostPrefix(address)));
      else if (claimants.get(address) === node.name)
        refuse(node.name, `address ${address} is claimed by another node too`);
      else refuse(node.name, `address ${address} is claimed by node ${claimants.get(address)} too`);
    }
  }
  return claims.sort(
    (a, b) =>
      a.rank - b.rank ||
      compareText(a.created, b.created) ||
      compareText(a.node, b.node) ||
      compareAddresses(a.prefix, b.prefix),
  );
}

/** By node, the prefixes and addresses that it holds: in the order of the claims, each that overlaps no other node's. */
function settlePrefixes(claims: readonly Claim[], refuse: Refuse): Map<string, Set<string>> {
  // An index by every prefix length in use finds overlaps without comparing each claim with each other.
  const lengths = [...new Set(claims.map((claim) => lengthOf(claim.prefix)))].sort((a, b) => a - b);
  const at = new Map<string, Claim>();
  const below = new Map<string, Claim[]>();
  const endpointsBelow = new Map<string, Claim[]>();
  const holds = new Map<string, Set<string>>();
  for (const claim of claims) {
    const bits = lengthOf(claim.prefix);
    const ancestors = lengths
      .filter((length) => length <= bits)
      .map((length) => ancestorKey(claim.prefix, length));
    const self = ancestors.at(-1) as string;
    if (claim.kind === "endpoint") {
      for (const key of ancestors) note(endpointsBelow, key, claim);
      continue;
    }
    const rival =
      ancestors.map((key) => at.get(key)).find((other) => other !== undefined && other.node !== claim.node) ??
      below.get(self)?.find((other) => other.node !== claim.node) ??
      (claim.kind === "pod CIDR"
        ? endpointsBelow.get(self)?.find((other) => other.node !== claim.node)
        : undefined);
    if (rival !== undefined) {
      const whose = rival.node === nobody ? "that two nodes claim" : `of node ${rival.node}`;
      refuse(claim.node, `${claim.kind} ${claim.prefix} overlaps ${rival.kind} ${rival.prefix} ${whose}`);
      continue;
    }
    if (!at.has(self)) at.set(self, claim);
    for (const key of ancestors) note(below, key, claim);
    const held = holds.get(claim.node);
    if (held === undefined) holds.set(claim.node, new Set([claim.prefix]));
    else held.add(claim.prefix);
  }
  return holds;
}

/** One claim a node is enough to tell a rival, and two nodes are. */
function note(below: Map<string, Claim[]>, key: string, claim: Claim): void {
  const inside = below.get(key);
  if (inside === undefined) below.set(key, [claim]);
  else if (inside.length < 2 && !inside.some((other) => other.node === claim.node)) inside.push(claim);
}

function olderFirst(a: NodeRecord, b: NodeRecord): number {
  return compareText(a.created, b.created) || compareText(a.name, b.name);
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
