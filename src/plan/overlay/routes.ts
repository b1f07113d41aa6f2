/** Routes and rules of this node. They are ahead of what others have in the main table, and of others' rules. */
import { compareAddresses, type Family, familyOf, hostPrefix } from "../../net/address.ts";
import { Table as ValueTable } from "../../net/table.ts";
import { markBit } from "../firewall/model.ts";

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
