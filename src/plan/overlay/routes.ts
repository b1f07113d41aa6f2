/** Routes and rules of this node. They are ahead of what others have in the main table, and of others' rules. */
import {
  compareAddresses,
  contains,
  type Family,
  familyOf,
  hostPrefix,
  overlaps,
} from "../../net/address.ts";
import { PrefixIndex } from "../../net/lookup.ts";
import { Table as ValueTable } from "../../net/table.ts";
import { markBit } from "../firewall/model.ts";
import type { SettledNode } from "./claims.ts";

/** The routing table of the ways to remote pods. */
export const podTable = "24600";
/** The routing table of marked packets: the ways to remote nodes. */
export const nodeTable = "24601";
/** Of the route under every pod CIDR: a missing tunnel route must never mean the default route. */
export const unreachableMetric = 4096;

export type Table = "main" | typeof podTable | typeof nodeTable;

export interface Route {
  /** `throw` excepts an address from the prefix around it: the rules that follow decide, as if this table had nothing. */
  type: "tunnel" | "unreachable" | "throw";
  prefix: string;
  /** In `main` only the own pod CIDRs are unreachable; whatever else is there was left by version 1.0.0. */
  table: Table;
}

/** A rule for packets of one family. Lower priorities come first. */
export interface Rule {
  family: Family;
  priority: number;
  /** Selector and action as `ip -N rule` prints and takes them. */
  text: string;
}

/** The last of our priorities: a foreign rule ahead of it may take packets from us. */
export const lastPriority = 2461;

/**
 * The rules of this node: marked packets before remote pods, else an exception would catch them; own pods last, as
 * the CNI plugin has their routes in the main table.
 * @param tunnelled families
 */
export function rules(tunnelled: readonly Family[], ownPodCidrs: readonly string[]): Rule[] {
  return tunnelled.flatMap((family) => [
    { family, priority: 2459, text: `from all fwmark ${markBit}/${markBit} lookup ${nodeTable}` },
    { family, priority: 2460, text: `from all lookup ${podTable}` },
    ...unique(ownPodCidrs.filter((prefix) => familyOf(prefix) === family)).map((prefix) => ({
      family,
      priority: lastPriority,
      // 254 is the main table.
      text: `from all to ${asPrinted(prefix)} lookup 254`,
    })),
  ]);
}

export interface RouteInput {
  ownPodCidrs: readonly string[];
  nodes: readonly SettledNode[];
  /** Names of the nodes whose tunnel this node can open. */
  reached: ReadonlySet<string>;
  /** Pod CIDRs of nodes that left a short while ago, and addresses of theirs that lie inside. */
  departed: readonly string[];
  /** Prefixes that several claim: sent to nobody. */
  blocked: readonly string[];
  /** Addresses that are no pods', wherever they lie: gateways of this node, the API server's. */
  excepted: readonly string[];
  inTunnel: (value: string) => boolean;
}

export function routes(input: RouteInput): Route[] {
  const { ownPodCidrs, nodes, reached, departed, inTunnel } = input;
  const isPrefix = (value: string) => value.includes("/");
  const left = departed.filter(
    (value) => isPrefix(value) && !ownPodCidrs.some((own) => overlaps(own, value)),
  );
  const remote = unique(
    [...nodes.flatMap((node) => node.podCidrs), ...left, ...input.blocked].filter(inTunnel),
  );
  const result: Route[] = [
    // Whoever routes them: what comes for a dead address would go back by the default route, and so on.
    ...unique(ownPodCidrs).map((prefix): Route => ({ type: "unreachable", prefix, table: "main" })),
    ...remote.map((prefix): Route => ({ type: "unreachable", prefix, table: podTable })),
  ];
  // The tunnel's own packets, and node↔node traffic, must not follow the pod CIDR that contains their address.
  const except = (address: string) =>
    result.push({ type: "throw", prefix: hostPrefix(address), table: podTable });
  const index = new PrefixIndex(remote.map((prefix) => ({ prefix })));
  const isRemote = (address: string) => index.longest(address) !== undefined;
  for (const address of input.excepted) if (isRemote(address)) except(address);
  // One that left the cluster may still run, and its kubelet be about to register it again.
  for (const address of departed) if (!isPrefix(address) && isRemote(address)) except(address);
  for (const node of nodes) {
    const prefixes = node.podCidrs.filter(inTunnel);
    for (const address of [...node.record.endpoints, ...node.addresses])
      if (prefixes.some((prefix) => contains(prefix, address))) except(address);
    if (node.publicKey === undefined) continue;
    for (const prefix of prefixes) result.push({ type: "tunnel", prefix, table: podTable });
    for (const address of reached.has(node.record.name) ? node.addresses.filter(inTunnel) : [])
      result.push({ type: "tunnel", prefix: hostPrefix(address), table: nodeTable });
  }
  return onePerPlace(result);
}

/** Routes by their places. */
export function routeTable(list: Iterable<Route>): ValueTable<Route> {
  const table = new ValueTable<Route>();
  for (const route of list) table.set(routePlace(route), route);
  return table;
}

/** The identity of a route. */
export function routeKey({ type, prefix, table }: Route): string {
  return `${table} ${prefix} ${type}`;
}

/** Where the kernel holds one route: table, prefix and metric. */
export function routePlace({ type, prefix, table }: Route): string {
  return `${table} ${prefix} ${type === "unreachable"}`;
}

/** Sorted; where an exception is as long as a pod CIDR, the exception alone. */
function onePerPlace(list: readonly Route[]): Route[] {
  const exceptionsLast = [...list].sort((a, b) => Number(a.type === "throw") - Number(b.type === "throw"));
  return [...new Map(exceptionsLast.map((route) => [routePlace(route), route])).values()].sort(compareRoutes);
}

/** The order of all routes. */
export function compareRoutes(a: Route, b: Route): number {
  return compareAddresses(a.prefix, b.prefix) || (routeKey(a) < routeKey(b) ? -1 : 1);
}

/** The identity of a rule. */
export function ruleKey({ family, priority, text }: Rule): string {
  return `${family} ${priority} ${text}`;
}

/** As `ip` prints it: a single address without its length. */
function asPrinted(prefix: string): string {
  const [address = ""] = prefix.split("/");
  return prefix === hostPrefix(address) ? address : prefix;
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)].sort(compareAddresses);
}
