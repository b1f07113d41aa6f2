/** The routes of the kernel that are ours, as `ip` lists them, and what there is besides on our link. */
import { type Family, familyOf, hostPrefix, parseAddress, parsePrefix } from "../net/address.ts";
import { nodeTable, podTable, type Route, type Table, unreachableMetric } from "../plan/overlay/routes.ts";
import { CommandError } from "./command.ts";
import type { Reader } from "./executor.ts";
import { parseObjects } from "./iproute.ts";
import { familyFlag, type ObservedRule, observeRules, protocol } from "./rules.ts";

export interface ObservedRoutes {
  own: Route[];
  /**
   * Routes that no plan asks for: of ours those of an unknown metric or place, and those of others in the main table that lead
   * into our link, as version 1.0.0 and the Go implementation had theirs there. As `ip` takes them.
   */
  strange: string[];
  /** All rules, others' too, in the order of the kernel, IPv4 first. */
  rules: ObservedRule[];
}

interface IpRoute {
  type?: string;
  dst: string;
  dev?: string;
  table?: string;
  protocol?: string;
  metric?: number;
  tos?: string;
}

/**
 * What the kernel has of ours; it filters, so that others' routes cost nothing, however many they are.
 * @param present families that the kernel has
 */
export async function observeRoutes(
  reader: Reader,
  link: string,
  present: readonly Family[],
): Promise<ObservedRoutes> {
  const { $ } = reader;
  const each = await Promise.all(
    present.map(async (family): Promise<ObservedRoutes> => {
      const flag = familyFlag[family];
      const [ours, onLink, rules] = await Promise.all([
        $`ip ${flag} -j -N -d route show table all proto ${protocol}`,
        $`ip ${flag} -j -N -d route show table main dev ${link}`.catch(withoutLink),
        observeRules(reader, family),
      ]);
      return { ...parseRoutes(link, family, ours, onLink), rules };
    }),
  );
  return {
    own: each.flatMap(({ own }) => own),
    strange: each.flatMap(({ strange }) => strange),
    rules: each.flatMap(({ rules }) => rules),
  };
}

function withoutLink(error: unknown): string {
  if (error instanceof CommandError && error.stderr.includes("Cannot find device")) return "";
  throw error;
}

/**
 * Parses `ip -j -N -d route show` of one family.
 * @param ours of `table all proto 246`
 * @param onLink of `table main dev wigglenet`
 */
export function parseRoutes(
  link: string,
  family: Family,
  ours: string,
  onLink: string,
): Pick<ObservedRoutes, "own" | "strange"> {
  const own: Route[] = [];
  const strange: string[] = [];
  for (const entry of parseObjects<IpRoute>(ours)) {
    const prefix = prefixOf(entry.dst, family);
    if (prefix === undefined) continue;
    const route = ownRoute(entry, prefix, link);
    if (route) own.push(route);
    else strange.push(strangeRoute(entry, prefix, protocol));
  }
  for (const entry of parseObjects<IpRoute>(onLink)) {
    const prefix = prefixOf(entry.dst, family);
    // With 2 the kernel has those of the link's addresses.
    if (prefix !== undefined && entry.protocol !== protocol && entry.protocol !== "2")
      strange.push(strangeRoute({ ...entry, dev: link }, prefix, entry.protocol ?? "3"));
  }
  return { own, strange };
}

// The numbers of `ip -N`.
const typeNames: Record<string, string> = {
  "1": "unicast",
  "2": "local",
  "3": "broadcast",
  "4": "anycast",
  "5": "multicast",
  "6": "blackhole",
  "7": "unreachable",
  "8": "prohibit",
  "9": "throw",
};

function typeOf({ type = "1" }: IpRoute): string {
  return typeNames[type] ?? type;
}

function tableOf({ table = "254" }: IpRoute): string {
  return table === "254" ? "main" : table;
}

function ownRoute(entry: IpRoute, prefix: string, link: string): Route | undefined {
  const table = tableOf(entry);
  const type = typeOf(entry);
  if (type === "unreachable")
    return (table === "main" || table === podTable) && entry.metric === unreachableMetric
      ? { type, prefix, table }
      : undefined;
  // IPv6's default metric is 1024, IPv4's 0.
  const plain = (entry.metric ?? 0) === (familyOf(prefix) === "ipv6" ? 1024 : 0) && entry.tos === undefined;
  if (!plain) return undefined;
  if (type === "throw") return table === podTable ? { type, prefix, table } : undefined;
  if (type !== "unicast" || entry.dev === undefined || !isTable(table)) return undefined;
  if (entry.dev === link) return { type: "tunnel", prefix, table };
  // So 1.0.0 excepted an address.
  const [address = ""] = prefix.split("/");
  return table === "main" && prefix === hostPrefix(address) ? { type: "throw", prefix, table } : undefined;
}

function isTable(table: string): table is Table {
  return ["main", podTable, nodeTable].includes(table);
}

function strangeRoute(entry: IpRoute, prefix: string, ofProtocol: string): string {
  const name = typeOf(entry);
  const type = name === "unicast" ? "" : `${name} `;
  const dev = entry.dev && type === "" ? ` dev ${entry.dev}` : "";
  const metric = entry.metric === undefined ? "" : ` metric ${entry.metric}`;
  const tos = entry.tos === undefined ? "" : ` tos ${entry.tos}`;
  return `${type}${prefix}${tos}${dev} table ${tableOf(entry)}${metric} proto ${ofProtocol}`;
}

function prefixOf(destination: string, family: Family): string | undefined {
  if (destination === "default") return family === "ipv4" ? "0.0.0.0/0" : "::/0";
  const address = parseAddress(destination);
  if (address !== undefined) return hostPrefix(address);
  return parsePrefix(destination);
}
