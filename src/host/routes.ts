/** Routes of the overlay. All carry our protocol number; beside them only what is on our own link is ever removed. */
import {
  compareAddresses,
  type Family,
  familyOf,
  hostPrefix,
  parseAddress,
  parsePrefix,
} from "../net/address.ts";
import {
  nodeTable,
  podTable,
  type Route,
  type Rule,
  routeKey,
  routePlace,
  type Table,
  unreachableMetric,
} from "../plan/overlay/routes.ts";
import { batch, type Command, CommandError } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import { parseObjects } from "./iproute.ts";
import { Kept, type Reason, type Resource } from "./resource.ts";
import {
  addedRules,
  diffRules,
  familyFlag,
  type ObservedRule,
  observeRules,
  protocol,
  settledRules,
} from "./rules.ts";

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

/**
 * What is right while the peers are not there: a route to them would lead nowhere, and to take one away might cut what
 * works. Only what guards goes in, and does not hide the ways that an earlier version left.
 */
export function guardsOf(link: string, desired: DesiredRoutes, observed: ObservedRoutes): DesiredRoutes {
  return {
    routes: desired.routes.filter((route) => route.type !== "tunnel"),
    rules: leadsByMain(link, observed) ? [] : desired.rules,
  };
}

/** Whether the main table leads to remote pods, as version 1.0.0 and the Go implementation had it. */
function leadsByMain(link: string, { own, strange }: ObservedRoutes): boolean {
  return (
    own.some((route) => route.type === "tunnel" && route.table === "main") ||
    strange.some((words) => words.includes(` dev ${link} table main`))
  );
}

/** What `diffRoutes` needs of a plan. */
export interface DesiredRoutes {
  routes: readonly Route[];
  rules: readonly Rule[];
}

export interface RouteChanges {
  add: Command[];
  remove: Command[];
}

/** Adds routes, then the rules that lead to them; removes rules, then routes. */
export function diffRoutes(link: string, desired: DesiredRoutes, observed: ObservedRoutes): RouteChanges {
  const { commands: add, result } = addRoutes(link, desired, observed);
  return { add, remove: removeRoutes(link, desired, result) };
}

/** @returns with what the kernel has afterwards */
function addRoutes(
  link: string,
  desired: DesiredRoutes,
  observed: ObservedRoutes,
): { commands: Command[]; result: ObservedRoutes } {
  const present = new Set(observed.own.map(routeKey));
  const missing = desired.routes.filter((route) => !present.has(routeKey(route)));
  const rules = diffRules(desired.rules, observed.rules).add;
  // A way that changed is replaced in its place: there is but one.
  const replaced = new Set(missing.map(routePlace));
  const stays = (route: Route) => !replaced.has(routePlace(route));
  return {
    commands: [
      ...batch(
        ["ip", "-force", "-batch", "-"],
        missing.toSorted(outermostFirst).map((route) => `route replace ${text(route, link)}`),
      ),
      ...rules,
    ],
    result: {
      ...observed,
      own: missing.length > 0 ? [...observed.own.filter(stays), ...missing] : observed.own,
      rules: rules.length > 0 ? addedRules(desired.rules, observed.rules) : observed.rules,
    },
  };
}

/** @param present as `addRoutes` leaves it */
function removeRoutes(link: string, desired: DesiredRoutes, present: ObservedRoutes): Command[] {
  const wanted = new Set(desired.routes.map(routeKey));
  const surplus = present.own.filter((route) => !wanted.has(routeKey(route)));
  return [
    ...diffRules(desired.rules, present.rules).remove,
    ...batch(
      ["ip", "-force", "-batch", "-"],
      [
        ...surplus
          .toSorted((a, b) => outermostFirst(b, a))
          .map((route) => `route delete ${text(route, link)}`),
        ...present.strange.map((route) => `route delete ${route}`),
      ],
    ),
  ];
}

/** What the kernel has once both lists of `diffRoutes` are done. */
export function settledRoutes(desired: DesiredRoutes, observed: ObservedRoutes): ObservedRoutes {
  return { own: [...desired.routes], strange: [], rules: settledRules(desired.rules, observed.rules) };
}

function text({ type, prefix, table }: Route, link: string): string {
  switch (type) {
    case "tunnel":
      return `${prefix} dev ${link} table ${table} proto ${protocol}`;
    case "unreachable":
      return `unreachable ${prefix} table ${table} metric ${unreachableMetric} proto ${protocol}`;
    case "throw":
      // What 1.0.0 left in the main table has another type, and is only ever deleted.
      return `${table === "main" ? "" : "throw "}${prefix} table ${table} proto ${protocol}`;
  }
}

// What must not be caught is excepted before, and what catches is there before, and goes after, what it catches.
const order: Record<Route["type"], number> = { throw: 0, unreachable: 1, tunnel: 2 };

function outermostFirst(a: Route, b: Route): number {
  return order[a.type] - order[b.type] || compareAddresses(a.prefix, b.prefix);
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

/** Our routes, and the rules that lead to them. */
export class Routes implements Resource<DesiredRoutes> {
  readonly #means: { link: string; perform: Perform };
  readonly #routes: Kept<ObservedRoutes>;

  /** @param means `families` that the kernel has */
  constructor(means: { reader: Reader; link: string; families: readonly Family[]; perform: Perform }) {
    this.#means = means;
    this.#routes = new Kept(() => observeRoutes(means.reader, means.link, means.families));
  }

  invalidate(reason: Reason): void {
    // Routes go with their link or its last address.
    if (["tunnel", "drift", "resync"].includes(reason)) this.#routes.forget();
  }

  observe(): Promise<ObservedRoutes> {
    return this.#routes.get();
  }

  async guard(desired: DesiredRoutes): Promise<void> {
    await this.#add(guardsOf(this.#means.link, desired, await this.observe()));
  }

  async add(desired: DesiredRoutes): Promise<void> {
    await this.#add(desired);
  }

  async remove(desired: DesiredRoutes): Promise<void> {
    const { link, perform } = this.#means;
    const present = await this.observe();
    await this.#routes.change(
      () => perform("routes removed", removeRoutes(link, desired, present)),
      settledRoutes(desired, present),
    );
  }

  async #add(desired: DesiredRoutes): Promise<void> {
    const { link, perform } = this.#means;
    const { commands, result } = addRoutes(link, desired, await this.observe());
    await this.#routes.change(() => perform("routes added", commands), result);
  }
}
