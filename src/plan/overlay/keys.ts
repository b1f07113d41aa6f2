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

/** The same, as far as a key asks for it. */
export interface KnownOfKeys {
  owners: Pick<ReadonlyMap<string, string>, "get">;
  endpoints: Pick<ReadonlyMap<string, string>, "get">;
  holders: Pick<ReadonlyMap<string, string>, "get">;
}

export interface SettledKey {
  /** The name of the node whose it is, our own perhaps. */
  holder: string;
  /**
   * False for a key of several nodes of which none is known to have had it. The one that fits best has it for now, and is
   * judged again in the next pass: were it remembered, it could take the key away by changing what it claims.
   */
  decided: boolean;
}

/** @param claiming the nodes that have this key, our own not among them */
export function settleKey(
  key: string,
  claiming: readonly [NodeRecord, ...NodeRecord[]],
  own: { name: string; publicKey: string | null; reaches: readonly Family[] },
  standing: KnownOfKeys,
): SettledKey {
  const known = claiming.find((node) => node.name === standing.holders.get(key));
  const { name } = key === own.publicKey ? own : (known ?? best(claiming, own.reaches, standing));
  return { holder: name, decided: known !== undefined || claiming.length === 1 };
}

/** What a node is told that has the key of another. */
export function copiedFrom(holder: string): string {
  return `its public key is that of node ${holder}: delete its private key file and restart its agent`;
}

/** The address that a node's packets go to. */
export function wayTo({ endpoints }: NodeRecord, reaches: readonly Family[]): string | undefined {
  return endpoints.find((address) => reaches.includes(familyOf(address)));
}

function best(
  [first, ...rest]: readonly [NodeRecord, ...NodeRecord[]],
  reaches: readonly Family[],
  standing: KnownOfKeys,
): NodeRecord {
  const judge = (node: NodeRecord) => ({ node, fit: fitOf(node, reaches, standing) });
  return rest
    .map(judge)
    .reduce(
      (a, b) => (b.fit > a.fit || (b.fit === a.fit && olderFirst(b.node, a.node) < 0) ? b : a),
      judge(first),
    ).node;
}

/** How much of what a node says is in the tunnel: most of all its prefixes, then where its packets go. */
function fitOf(node: NodeRecord, reaches: readonly Family[], standing: KnownOfKeys): number {
  const { publicKey = "", podCidrs, addresses } = node;
  // An address may be claimed as a pod CIDR, too: counted twice, a copy would fit better than whose it is.
  const claimed = new Set([...podCidrs, ...addresses.map(hostPrefix)]);
  const held = [...claimed].filter((prefix) => standing.owners.get(prefix) === publicKey);
  // An address further down the list is not where packets would go.
  const way = wayTo(node, reaches);
  const used = way !== undefined && way === standing.endpoints.get(publicKey);
  return 2 * held.length + Number(used);
}

function olderFirst(a: NodeRecord, b: NodeRecord): number {
  return compareText(a.created, b.created) || compareText(a.name, b.name);
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
