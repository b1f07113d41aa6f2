/**
 * Who owns what: nodes claim keys, pod CIDRs and addresses by their annotations, and some claims collide (a cloned
 * machine, a VIP that fails over, a stale Node object, malice). Who holds a claim keeps it until it gives it up or its
 * Node is deleted. What two claim and nobody holds is nobody's. So no annotation moves another node's traffic.
 */
import { compareAddresses, type Family, hostPrefix } from "../../net/address.ts";
import { Nesting } from "../../net/nesting.ts";
import { type Bounds, boundsCheck } from "./bounds.ts";
import { type Refuse, type Standing, settleKeys } from "./keys.ts";
import type { NodeRecord } from "./node.ts";

export type { Standing } from "./keys.ts";

/** What this node has itself; nobody else's claim wins against it. */
export interface OwnClaims {
  name: string;
  /** Null without a tunnel: then other nodes need no key either. */
  publicKey: string | null;
  podCidrs: readonly string[];
  addresses: readonly string[];
  bounds: Bounds;
  /** Families in which it can reach a peer. */
  reaches: readonly Family[];
  /** False while some nodes may be unknown: what those hold is nobody else's. */
  whole: boolean;
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
  /** What several nodes claim and none holds: it is sent to nobody. */
  contested: { podCidrs: string[]; addresses: string[] };
  /** Of what holds; without endpoints. */
  standing: Omit<Standing, "endpoints">;
  /** Comparisons and looks at a claim that it took. */
  steps: number;
}

interface Claim {
  node: string;
  prefix: string;
  /**
   * The last three give nobody anything, but a pod CIDR of another node must not contain them: an endpoint, where a
   * node's tunnel is; an API server's address; a network that is on a link of this node.
   */
  kind: "pod CIDR" | "address" | "endpoint" | "API server's address" | "network";
  rank: number;
  state: "open" | "held" | "refused" | "contested";
}

/** What comes first wins; equals lose both. Of nodes without a key nothing can be in the tunnel. */
const rank = { own: 0, standing: 1, new: 2, keyless: 3 } as const;

/** @param nodes all nodes but our own */
export function settle(own: OwnClaims, nodes: readonly NodeRecord[], standing: Standing): Settlement {
  const refused = new Map<string, string[]>();
  const refuse: Refuse = (node, problem) => {
    if (node !== own.name) refused.set(node, [...(refused.get(node) ?? []), problem]);
  };
  const { keys, undecided } = settleKeys(own, nodes, standing, refuse);
  const absent = own.whole ? [] : heldByUnknown(nodes, keys, standing);
  const claims = [...absent, ...listClaims(own, nodes, keys, standing, refuse)];
  const nesting = new Nesting(claims, isPassive);
  for (const each of [rank.standing, rank.new, rank.keyless]) settleRank(nesting, each, refuse);
  const holds = new Map<string, Set<string>>();
  const contested = { podCidrs: new Set<string>(), addresses: new Set<string>() };
  const owners = new Map<string, string>();
  const names = new Map<string, string>();
  for (const { prefix } of absent) {
    const [key, name] = [standing.owners.get(prefix), standing.nodes.get(prefix)];
    if (key !== undefined) owners.set(prefix, key);
    if (name !== undefined) names.set(prefix, name);
  }
  for (const { node, prefix, kind, state } of claims) {
    if (isPassive({ kind }) || node === own.name || node.startsWith(unknown)) continue;
    if (state === "contested") contested[kind === "address" ? "addresses" : "podCidrs"].add(prefix);
    if (state !== "held") continue;
    const held = holds.get(node);
    if (held === undefined) holds.set(node, new Set([prefix]));
    else held.add(prefix);
    const key = keys.get(node);
    const asPrefix = kind === "address" ? hostPrefix(prefix) : prefix;
    if (key !== undefined) owners.set(asPrefix, key);
    if (key === undefined || !undecided.has(key)) names.set(asPrefix, node);
  }
  return {
    nodes: nodes.map((record) => ({
      record,
      publicKey: keys.get(record.name),
      podCidrs: record.podCidrs.filter((prefix) => holds.get(record.name)?.has(prefix)),
      addresses: record.addresses.filter((address) => holds.get(record.name)?.has(address)),
    })),
    refused,
    contested: {
      podCidrs: [...contested.podCidrs].sort(compareAddresses),
      addresses: [...contested.addresses].sort(compareAddresses),
    },
    standing: {
      owners,
      nodes: names,
      holders: new Map([...keys].flatMap(([name, key]) => (undecided.has(key) ? [] : [[key, name]]))),
    },
    steps: nesting.steps,
  };
}

/** No node has a name that begins so. */
const unknown = "?";

/** Claims of nodes that held something, and that may be among those not read yet. */
function heldByUnknown(
  nodes: readonly NodeRecord[],
  keys: ReadonlyMap<string, string>,
  standing: Standing,
): Claim[] {
  const known = new Set([...nodes.map((node) => node.name), ...keys.values()]);
  return [...new Set([...standing.owners.keys(), ...standing.nodes.keys()])].flatMap((prefix): Claim[] => {
    const holder = standing.nodes.get(prefix) ?? standing.owners.get(prefix) ?? "";
    if (known.has(holder)) return [];
    return [{ node: `${unknown} (${holder})`, prefix, kind: "pod CIDR", rank: rank.own, state: "held" }];
  });
}

const isPassive = ({ kind }: Pick<Claim, "kind">) => kind !== "pod CIDR" && kind !== "address";

function listClaims(
  own: OwnClaims,
  nodes: readonly NodeRecord[],
  keys: ReadonlyMap<string, string>,
  standing: Standing,
  refuse: Refuse,
): Claim[] {
  const check = boundsCheck(own.bounds);
  const present = new Set(nodes.map((node) => node.name));
  const ours = (prefix: string, kind: Claim["kind"]): Claim => ({
    node: own.name,
    prefix,
    kind,
    rank: rank.own,
    state: "held",
  });
  const claims = [
    ...own.podCidrs.map((prefix) => ours(prefix, "pod CIDR")),
    ...own.addresses.map((address) => ours(address, "address")),
    ...own.bounds.onLink.map((prefix) => ours(prefix, "network")),
  ];
  const claimants = new Map<string, string[]>();
  for (const node of nodes) {
    const key = keys.get(node.name);
    const fresh = node.publicKey === undefined && own.publicKey !== null ? rank.keyless : rank.new;
    const stands = (prefix: string) => {
      if (fresh === rank.keyless) return false;
      const holder = standing.nodes.get(prefix);
      if (holder === node.name) return true;
      // A node that is there under another name now, with the key that it had.
      return key !== undefined && standing.owners.get(prefix) === key && !present.has(holder ?? "");
    };
    const add = (kind: "pod CIDR" | "address", prefix: string, allowedIp: string) => {
      const problem = check(kind, prefix);
      if (problem) return refuse(node.name, `${kind} ${prefix}: ${problem}`);
      const standsNow = stands(allowedIp);
      claims.push({
        node: node.name,
        prefix,
        kind,
        rank: standsNow ? rank.standing : fresh,
        state: "open",
      });
      if (kind === "address") claimants.set(prefix, [...(claimants.get(prefix) ?? []), node.name]);
    };
    for (const prefix of node.podCidrs) add("pod CIDR", prefix, prefix);
    for (const address of node.addresses) add("address", address, hostPrefix(address));
    for (const endpoint of node.endpoints)
      if (!node.addresses.includes(endpoint))
        claims.push({ node: node.name, prefix: endpoint, kind: "endpoint", rank: fresh, state: "open" });
  }
  // The one node that has such an address may have it inside of its own pod CIDR.
  for (const address of own.bounds.apiServer) {
    const [claimant, ...others] = claimants.get(address) ?? [];
    claims.push({
      ...ours(address, "API server's address"),
      node: others.length > 0 ? own.name : (claimant ?? own.name),
    });
  }
  return claims;
}

/** Settles the open claims of a rank: against what better ones hold, then among each other. */
function settleRank(nesting: Nesting<Claim>, current: number, refuse: Refuse): void {
  const { items } = nesting;
  const open = [...items.keys()].filter((index) => {
    const claim = items[index]!;
    return claim.rank === current && claim.state === "open" && !isPassive(claim);
  });
  if (open.length === 0) return;
  const isPodCidr = (index: number) => items[index]?.kind === "pod CIDR";
  const lose = (index: number, rival: Claim, state: "refused" | "contested") => {
    const claim = items[index]!;
    claim.state = state;
    refuse(claim.node, collision(claim, rival, state));
  };

  const isHeld = (claim: Claim) => claim.state === "held" && !isPassive(claim);
  const [heldAround, heldWithin] = [nesting.around(isHeld), nesting.within(isHeld)];
  const onLink = nesting.around(({ kind }) => kind === "network");
  const networks = nesting.within(({ kind }) => kind === "network");
  const servers = nesting.within(({ kind }) => kind === "API server's address");
  for (const index of open) {
    const rival =
      heldAround(index) ??
      heldWithin(index) ??
      (isPodCidr(index) ? networks(index) : undefined) ??
      // Inside of a network on a link it has a route of its own: excepted from the pod CIDR.
      (isPodCidr(index) && onLink(index) === undefined ? servers(index) : undefined);
    if (rival) lose(index, rival, "refused");
  }

  const isOpen = (claim: Claim) => claim.rank === current && claim.state === "open" && !isPassive(claim);
  const [openAround, openWithin] = [nesting.around(isOpen), nesting.within(isOpen)];
  const endpoints = nesting.within(
    (claim) => claim.kind === "endpoint" && claim.rank <= current && current !== rank.standing,
  );
  for (const index of open) {
    if (items[index]?.state !== "open") continue;
    // All were found before any is decided: what loses to one still contests the others.
    const rival = openAround(index) ?? openWithin(index) ?? (isPodCidr(index) ? endpoints(index) : undefined);
    if (rival) lose(index, rival, "contested");
    else items[index]!.state = "held";
  }
}

function collision(claim: Claim, rival: Claim, state: "refused" | "contested"): string {
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
