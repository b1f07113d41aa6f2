/** One claim of a node, in the order in which claims are decided and told. */
import { hostPrefix, sortKey } from "../../net/address.ts";
import type { Nested } from "../../net/nesting.ts";

/** What comes first wins; equals lose both. Of nodes without a key nothing can be in the tunnel. */
export const rank = { own: 0, standing: 1, new: 2, keyless: 3 } as const;
/** Ranks of other nodes' claims, in the order in which they are decided. */
export const ranks = [rank.standing, rank.new, rank.keyless] as const;
export type Rank = (typeof ranks)[number];

/**
 * The last three give nobody anything, but a pod CIDR of another node must not contain them: an endpoint, where a
 * node's tunnel is; an API server's address; a network that is on a link of this node.
 */
type Kind = "pod CIDR" | "address" | "endpoint" | "API server's address" | "network";

export interface Claim extends Nested {
  readonly node: string;
  readonly prefix: string;
  readonly kind: Kind;
  /** What WireGuard calls it: of an address its /32 or /128. */
  readonly allowedIp: string;
  rank: number;
  state: "open" | "held" | "refused" | "contested";
  /** The claim that it lost to, in words. */
  problem: string | undefined;
}

export function makeClaim(node: string, kind: Kind, prefix: string, of: number): Claim {
  const state = of === rank.own ? "held" : "open";
  const allowedIp = kind === "address" ? hostPrefix(prefix) : prefix;
  return { node, prefix, key: sortKey(prefix), kind, allowedIp, rank: of, state, problem: undefined };
}

/** The order of claims at the same prefix. */
export function compareOwners(a: Claim, b: Claim): number {
  if (a.node !== b.node) return a.node < b.node ? -1 : 1;
  return Number(a.kind === "address") - Number(b.kind === "address");
}

const states: Claim["state"][] = ["refused", "contested"];

/** The order in which what is wrong with a node's claims is told: as they were decided. */
export function compareDecided(a: Claim, b: Claim): number {
  return (
    a.rank - b.rank ||
    states.indexOf(a.state) - states.indexOf(b.state) ||
    (a.key < b.key ? -1 : a.key > b.key ? 1 : compareOwners(a, b))
  );
}

export function collision(claim: Claim, rival: Claim, state: "refused" | "contested"): string {
  const mine = `${claim.kind} ${claim.prefix}`;
  if (rival.kind === "network") return `${mine} covers ${rival.prefix}, which is on a link of this node`;
  if (rival.kind === "endpoint")
    return `${mine} has ${rival.prefix} in it, an endpoint of node ${rival.node}: it is sent to nobody`;
  const both =
    claim.kind === rival.kind && claim.prefix === rival.prefix
      ? `${mine} is claimed by node ${rival.node} too`
      : `${mine} overlaps ${rival.kind} ${rival.prefix} of node ${rival.node}`;
  return state === "refused"
    ? `${both}, which had it first`
    : `${both}: neither has it until one gives it up or its Node is deleted`;
}
