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
  /** Other addresses that must stay where they are: the API server's. */
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
  kind: "pod CIDR" | "address";
  rank: number;
  created: string;
}

/** @param nodes all nodes but our own */
export function settle(own: OwnClaims, nodes: readonly NodeRecord[], standing: Standing): Settlement {
  const refused = new Map<string, string[]>();
  const refuse = (node: string, problem: string) => {
    if (node !== own.name) refused.set(node, [...(refused.get(node) ?? []), problem]);
  };
  const keys = settleKeys(own, nodes, standing, refuse);
  const claims = listClaims(own, nodes, keys, standing.owners, refuse);
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

/** How much of what a node says is in the tunnel: most of all where its packets go, then how many of its prefixes. */
function fitOf(
  { publicKey, podCidrs, addresses, endpoints }: NodeRecord,
  reaches: readonly Family[],
  standing: Standing,
): number {
  if (publicKey === undefined) return 0;
  const held = [...podCidrs, ...addresses.map(hostPrefix)].filter(
    (prefix) => standing.owners.get(prefix) === publicKey,
  );
  // An address further down the list is not where packets would go.
  const best = endpoints.find((address) => reaches.includes(familyOf(address)));
  return held.length + (best !== undefined && best === standing.endpoints.get(publicKey) ? 0x10000 : 0);
}

function listClaims(
  own: OwnClaims,
  nodes: readonly NodeRecord[],
  keys: ReadonlyMap<string, string>,
  owners: ReadonlyMap<string, string>,
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
    rank: 0,
    created: "",
  });
  const claims = [
    ...own.podCidrs.map((prefix) => ours(prefix, "pod CIDR")),
    ...[...own.addresses, ...own.reserved].map((address) => ours(address, "address")),
  ];
  for (const node of nodes) {
    const key = keys.get(node.name);
    const claim = (prefix: string, kind: Claim["kind"], allowedIp: string): Claim => {
      const stands = key !== undefined && owners.get(allowedIp) === key;
      return { node: node.name, prefix, kind, rank: stands ? 1 : 2, created: node.created };
    };
    for (const prefix of node.podCidrs) claims.push(claim(prefix, "pod CIDR", prefix));
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
  const holds = new Map<string, Set<string>>();
  for (const claim of claims) {
    const bits = lengthOf(claim.prefix);
    const ancestors = lengths
      .filter((length) => length <= bits)
      .map((length) => ancestorKey(claim.prefix, length));
    const self = ancestors.at(-1) as string;
    const rival =
      ancestors.map((key) => at.get(key)).find((other) => other !== undefined && other.node !== claim.node) ??
      below.get(self)?.find((other) => other.node !== claim.node);
    if (rival !== undefined) {
      refuse(
        claim.node,
        `${claim.kind} ${claim.prefix} overlaps ${rival.kind} ${rival.prefix} of node ${rival.node}`,
      );
      continue;
    }
    if (!at.has(self)) at.set(self, claim);
    for (const key of ancestors) {
      const inside = below.get(key);
      // One claim a node is enough to tell a rival.
      if (inside === undefined) below.set(key, [claim]);
      else if (inside.length < 2 && !inside.some((other) => other.node === claim.node)) inside.push(claim);
    }
    const held = holds.get(claim.node);
    if (held === undefined) holds.set(claim.node, new Set([claim.prefix]));
    else held.add(claim.prefix);
  }
  return holds;
}

function olderFirst(a: NodeRecord, b: NodeRecord): number {
  return compareText(a.created, b.created) || compareText(a.name, b.name);
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
