/** Routes and rules of the overlay. All carry our protocol number; nothing else is ever removed. */
import {
  compareAddresses,
  type Family,
  families,
  familyOf,
  parseAddress,
  parsePrefix,
} from "../plan/address.ts";
import { type Route, routeKey, tunnelTable, type UnderlayRoute, unreachableMetric } from "../plan/desired.ts";
import { markBit } from "../plan/firewall.ts";
import { $, batch, type Command } from "./run.ts";

/** Of routes (rt_protos) and rules that are ours. */
export const protocol = "246";

export interface ObservedRoutes {
  own: Route[];
  /** Routes of ours that no plan asks for: an unknown metric, a link that is not the tunnel's. As `ip` takes them. */
  strange: string[];
  underlay: UnderlayRoute[];
  /** Families that have our rule. */
  ruleFamilies: Family[];
  /** Rules with our protocol that are not our rule, as `ip` takes them. */
  strangeRules: string[];
}

interface IpRoute {
  type?: string;
  dst: string;
  gateway?: string;
  via?: { host?: string };
  dev?: string;
  table?: string;
  protocol?: string;
  metric?: number;
  tos?: string;
  nexthops?: { gateway?: string; via?: { host?: string }; dev: string }[];
}

interface IpRule {
  priority: number;
  src?: string;
  fwmark?: string;
  fwmask?: string;
  table?: string;
  protocol?: string;
}

const flag: Record<Family, string> = { ipv4: "-4", ipv6: "-6" };

/** @param present families that the kernel has; of another `ip rule show` fails */
export async function observeRoutes(link: string, present: readonly Family[]): Promise<ObservedRoutes> {
  const [routes, rules] = await Promise.all([
    Promise.all(
      families.map(
        async (family) => [family, await $`ip ${flag[family]} -j -d route show table all`] as const,
      ),
    ),
    Promise.all(
      families.map(
        async (family) =>
          [family, present.includes(family) ? await $`ip ${flag[family]} -j -d rule show` : "[]"] as const,
      ),
    ),
  ]);
  return parseRoutes(
    link,
    Object.fromEntries(routes) as Record<Family, string>,
    Object.fromEntries(rules) as Record<Family, string>,
  );
}

/** Parses `ip -j -d route show table all` and `ip -j -d rule show` of each family. */
export function parseRoutes(
  link: string,
  routes: Record<Family, string>,
  rules: Record<Family, string>,
): ObservedRoutes {
  const result: ObservedRoutes = { own: [], strange: [], underlay: [], ruleFamilies: [], strangeRules: [] };
  for (const family of families) {
    for (const entry of parseJson<IpRoute>(routes[family])) {
      const prefix = prefixOf(entry.dst, family);
      if (prefix === undefined) continue;
      const table = entry.table ?? "main";
      if (entry.protocol === protocol) {
        const route = ownRoute(entry, prefix, table, link);
        if (route) result.own.push(route);
        else result.strange.push(strangeRoute(entry, prefix, table));
      } else if (table === "main" && (entry.type ?? "unicast") === "unicast") {
        const way = entry.nexthops?.[0] ?? entry;
        if (way.dev)
          result.underlay.push({
            prefix,
            via: way.gateway ?? way.via?.host,
            dev: way.dev,
            metric: entry.metric ?? 0,
          });
      }
    }
    for (const entry of parseJson<IpRule>(rules[family])) {
      if (isOurRule(entry) && !result.ruleFamilies.includes(family)) result.ruleFamilies.push(family);
      else if (entry.protocol === protocol) {
        // One that prohibits, for example, has none.
        const table = entry.table ? ` lookup ${entry.table}` : "";
        const mark = entry.fwmark ? ` fwmark ${entry.fwmark}${entry.fwmask ? `/${entry.fwmask}` : ""}` : "";
        result.strangeRules.push(
          `${flag[family]} priority ${entry.priority}${mark}${table} protocol ${protocol}`,
        );
      }
    }
  }
  return result;
}

/** Whether a rule sends all that is marked, and nothing else, to our table. */
function isOurRule(entry: IpRule): boolean {
  const { priority, src, fwmark, fwmask = markBit, table, protocol: _, ...others } = entry;
  const marked = fwmark === markBit && fwmask === markBit && src === "all";
  const known = priority === Number(tunnelTable) && table === tunnelTable;
  // Such as `not`, `iif` or `suppress_prefixlength`.
  return marked && known && Object.keys(others).length === 0;
}

export interface RouteChanges {
  add: Command[];
  remove: Command[];
}

export function diffRoutes(
  link: string,
  desired: { routes: readonly Route[]; ruleFamilies: readonly Family[] },
  observed: ObservedRoutes,
): RouteChanges {
  const present = new Set(observed.own.map(routeKey));
  const wanted = new Set(desired.routes.map(routeKey));
  const missing = desired.routes.filter((route) => !present.has(routeKey(route)));
  const surplus = observed.own.filter((route) => !wanted.has(routeKey(route)));
  // A way that changed is replaced in its place by the addition: deleting the old text would take the new one's place.
  const replaced = new Set(missing.map(place));
  const rule = (verb: string, family: Family) => [
    "ip",
    ...`${flag[family]} rule ${verb} fwmark ${markBit}/${markBit} lookup ${tunnelTable} priority ${tunnelTable} protocol ${protocol}`.split(
      " ",
    ),
  ];
  const run = (argv: string[]): Command => ({ kind: "run", argv });
  const deletions = (words: readonly string[]) =>
    words.map((text) => {
      const [family = "", ...rest] = text.split(" ");
      return run(["ip", family, "rule", "delete", ...rest]);
    });
  // The kernel takes ours for one that has its priority and mark, whatever else that has.
  const inOurPlace = (words: string) => words.includes(` priority ${tunnelTable} `);
  return {
    add: [
      ...batch(
        ["ip", "-force", "-batch", "-"],
        [...missing].sort(unreachableFirst).map((route) => `route replace ${text(route, link)}`),
      ),
      ...deletions(observed.strangeRules.filter(inOurPlace)),
      ...desired.ruleFamilies
        .filter((family) => !observed.ruleFamilies.includes(family))
        .map((family) => run(rule("add", family))),
    ],
    remove: [
      ...observed.ruleFamilies
        .filter((family) => !desired.ruleFamilies.includes(family))
        .map((family) => run(rule("delete", family))),
      ...deletions(observed.strangeRules.filter((words) => !inOurPlace(words))),
      ...batch(
        ["ip", "-force", "-batch", "-"],
        [
          ...surplus
            .filter((route) => !replaced.has(place(route)))
            .sort(unreachableLast)
            .map((route) => `route delete ${text(route, link)}`),
          ...observed.strange.map((route) => `route delete ${route}`),
        ],
      ),
    ],
  };
}

/** What the kernel has once both lists of `diffRoutes` are done. */
export function settledRoutes(
  desired: { routes: readonly Route[]; ruleFamilies: readonly Family[] },
  observed: ObservedRoutes,
): ObservedRoutes {
  return {
    ...observed,
    own: [...desired.routes],
    ruleFamilies: [...desired.ruleFamilies],
    strange: [],
    strangeRules: [],
  };
}

function text(route: Route, link: string): string {
  switch (route.type) {
    case "tunnel":
      return `${route.prefix} dev ${link} table ${route.table} proto ${protocol}`;
    case "unreachable":
      return `unreachable ${route.prefix} metric ${unreachableMetric} proto ${protocol}`;
    case "underlay":
      return `${route.prefix}${via(route)} dev ${route.dev} proto ${protocol}${route.via ? " onlink" : ""}`;
  }
}

// An IPv4 route may have an IPv6 gateway (RFC 5549).
function via({ prefix, via }: { prefix: string; via: string | undefined }): string {
  if (via === undefined) return "";
  return familyOf(prefix) === familyOf(via) ? ` via ${via}` : ` via inet6 ${via}`;
}

/** Table, prefix and metric: where the kernel holds one route. */
function place(route: Route): string {
  return `${route.type === "tunnel" ? route.table : "main"} ${route.prefix} ${route.type === "unreachable"}`;
}

// What catches must be there before, and go after, what it catches.
function unreachableFirst(a: Route, b: Route): number {
  return (
    Number(b.type === "unreachable") - Number(a.type === "unreachable") ||
    compareAddresses(a.prefix, b.prefix)
  );
}

function unreachableLast(a: Route, b: Route): number {
  return unreachableFirst(b, a);
}

function ownRoute(entry: IpRoute, prefix: string, table: string, link: string): Route | undefined {
  if (entry.type === "unreachable")
    return table === "main" && entry.metric === unreachableMetric
      ? { type: "unreachable", prefix }
      : undefined;
  // IPv6's default metric is 1024, IPv4's 0.
  const plain = (entry.metric ?? 0) === (familyOf(prefix) === "ipv6" ? 1024 : 0) && entry.tos === undefined;
  if (!plain || (entry.type ?? "unicast") !== "unicast" || entry.dev === undefined) return undefined;
  if (entry.dev !== link)
    return table === "main"
      ? { type: "underlay", prefix, via: entry.gateway ?? entry.via?.host, dev: entry.dev }
      : undefined;
  return table === "main" || table === tunnelTable ? { type: "tunnel", prefix, table } : undefined;
}

function strangeRoute(entry: IpRoute, prefix: string, table: string): string {
  const type = entry.type && entry.type !== "unicast" ? `${entry.type} ` : "";
  const dev = entry.dev && type === "" ? ` dev ${entry.dev}` : "";
  const metric = entry.metric === undefined ? "" : ` metric ${entry.metric}`;
  const tos = entry.tos === undefined ? "" : ` tos ${entry.tos}`;
  return `${type}${prefix}${tos}${dev} table ${table}${metric} proto ${protocol}`;
}

function prefixOf(destination: string, family: Family): string | undefined {
  if (destination === "default") return family === "ipv4" ? "0.0.0.0/0" : "::/0";
  const address = parseAddress(destination);
  if (address !== undefined) return `${address}/${family === "ipv4" ? 32 : 128}`;
  return parsePrefix(destination);
}

function parseJson<T>(output: string): T[] {
  return output.trim() === "" ? [] : (JSON.parse(output) as T[]);
}
