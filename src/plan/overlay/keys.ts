/** Whose a public key is that several nodes have: it can be copied, as all that a node publishes. */
import { type Family, familyOf, hostPrefix } from "../../net/address.ts";
import type { NodeRecord } from "./node.ts";

/** Who holds what: after a start what the tunnel has, then what was settled in the last pass. */
export interface Standing {
  /** For each prefix (of an address /32 or /128) the public key of the node that has it. */
  owners: ReadonlyMap<string, string>;
  /** For each prefix the name of that node; unknown after a start, as the kernel knows no names. */
  nodes: ReadonlyMap<string, string>;
  /** By public key the address that its packets go to. */
  endpoints: ReadonlyMap<string, string>;
  /** By public key the node that had it so far. */
  holders: ReadonlyMap<string, string>;
}

/** Takes down why something that a node claims does not hold. */
export type Refuse = (node: string, problem: string) => void;

export interface SettledKeys {
  /** By node name, its key if it is its own. */
  keys: ReadonlyMap<string, string>;
  /**
   * Keys of several nodes of which none is known to have had it. The one that fits best has it for now, and is judged
   * again in the next pass: were it remembered, it could take the key away by changing what it claims.
   */
  undecided: ReadonlySet<string>;
}

/** @param nodes all nodes but our own */
export function settleKeys(
  own: { name: string; publicKey: string | null; reaches: readonly Family[] },
  nodes: readonly NodeRecord[],
  standing: Standing,
  refuse: Refuse,
): SettledKeys {
  const claimants = new Map<string, NodeRecord[]>();
  for (const node of nodes) {
    if (node.publicKey === undefined) continue;
    const others = claimants.get(node.publicKey);
    if (others) others.push(node);
    else claimants.set(node.publicKey, [node]);
  }
  const keys = new Map<string, string>();
  const undecided = new Set<string>();
  for (const [key, claiming] of claimants) {
    const known = claiming.find((node) => node.name === standing.holders.get(key));
    const holder = key === own.publicKey ? own : (known ?? best(claiming, own.reaches, standing));
    if (holder !== own) keys.set(holder.name, key);
    if (known === undefined && claiming.length > 1) undecided.add(key);
    for (const node of claiming)
      if (node !== holder)
        refuse(
          node.name,
          `its public key is that of node ${holder.name}: delete its private key file and restart its agent`,
        );
  }
  return { keys, undecided };
}

function best(claiming: readonly NodeRecord[], reaches: readonly Family[], standing: Standing): NodeRecord {
  const [first, ...rest] = claiming.map((node) => ({ node, fit: fitOf(node, reaches, standing) }));
  if (first === undefined) throw new Error("a key that no node has is nobody's");
  return rest.reduce(
    (a, b) => (b.fit > a.fit || (b.fit === a.fit && olderFirst(b.node, a.node) < 0) ? b : a),
    first,
  ).node;
}

/** How much of what a node says is in the tunnel: most of all its prefixes, then where its packets go. */
function fitOf(
  { publicKey = "", podCidrs, addresses, endpoints }: NodeRecord,
  reaches: readonly Family[],
  standing: Standing,
): number {
  const held = [...podCidrs, ...addresses.map(hostPrefix)].filter(
    (prefix) => standing.owners.get(prefix) === publicKey,
  );
  // An address further down the list is not where packets would go.
  const way = endpoints.find((address) => reaches.includes(familyOf(address)));
  const used = way !== undefined && way === standing.endpoints.get(publicKey);
  return 2 * held.length + Number(used);
}

function olderFirst(a: NodeRecord, b: NodeRecord): number {
  return compareText(a.created, b.created) || compareText(a.name, b.name);
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
