/** Routes of the overlay. All carry our protocol number; beside them only what is on our own link is ever removed. */
import { compareAddresses, type Family } from "../net/address.ts";
import { type Mark, type ReadonlyTable, Table } from "../net/table.ts";
import {
  type Route,
  type Rule,
  routeKey,
  routePlace,
  routeTable,
  unreachableMetric,
} from "../plan/overlay/routes.ts";
import { batch, type Command } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import { Kept, type Reason, type Resource } from "./resource.ts";
import { type ObservedRoutes, observeRoutes } from "./routelist.ts";
import { addedRules, diffRules, type ObservedRule, protocol, settledRules } from "./rules.ts";

/**
 * What is right while the peers are not there: a route to them would lead nowhere, and to take one away might cut what
 * works. Only what guards goes in, and does not hide the ways that an earlier version left.
 */
export function guardsOf(
  link: string,
  { routes, rules }: DesiredRoutes,
  present: { own: Iterable<Route>; strange: readonly string[] },
): DesiredRoutes {
  return {
    routes: routes.filter((route) => route.type !== "tunnel"),
    rules: leadsByMain(link, present) ? [] : rules,
  };
}

/** Whether the main table leads to remote pods, as version 1.0.0 and the Go implementation had it. */
function leadsByMain(
  link: string,
  { own, strange }: { own: Iterable<Route>; strange: readonly string[] },
): boolean {
  return (
    [...own].some((route) => route.type === "tunnel" && route.table === "main") ||
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
  const routes = routeTable(desired.routes);
  const present = presentOf(observed);
  const missing = missingRoutes(routes, "all", present);
  const add = [...addRoutes(link, missing), ...diffRules(desired.rules, present.rules).add];
  noteAdded(present, missing, desired.rules);
  const surplus = surplusRoutes(routes, "all", present);
  return { add, remove: removeRoutes(link, surplus, desired.rules, present) };
}

/** What the kernel has once both lists of `diffRoutes` are done. */
export function settledRoutes(desired: DesiredRoutes, observed: ObservedRoutes): ObservedRoutes {
  const routes = routeTable(desired.routes);
  const present = presentOf(observed);
  noteAdded(present, missingRoutes(routes, "all", present), desired.rules);
  noteRemoved(present, surplusRoutes(routes, "all", present), desired.rules);
  const { own, strange, rules } = present;
  return { own: [...own.values()], strange: [...strange], rules: [...rules] };
}

/** What the kernel has of ours, kept up with what we change. */
interface PresentRoutes {
  /** By their keys. */
  own: Table<Route>;
  strange: readonly string[];
  rules: readonly ObservedRule[];
  /** What was desired when all of it was there, and nothing else. */
  settled?: Mark;
}

function presentOf({ own, strange, rules }: ObservedRoutes): PresentRoutes {
  const table = new Table<Route>();
  for (const route of own) table.set(routeKey(route), route);
  return { own: table, strange, rules };
}

type DesiredTable = ReadonlyTable<Route>;
/** By their places. */
type Changed = ReadonlySet<string> | "all";

function missingRoutes(desired: DesiredTable, changed: Changed, present: PresentRoutes): Route[] {
  const missing: Route[] = [];
  for (const place of changed === "all" ? desired.keys() : changed) {
    const route = desired.get(place);
    if (route !== undefined && !present.own.has(routeKey(route))) missing.push(route);
  }
  return missing;
}

/** The keys of the routes of which there can be one at a place. */
function keysAt(place: string): string[] {
  const [table, prefix, unreachable] = place.split(" ");
  const types = unreachable === "true" ? ["unreachable"] : ["tunnel", "throw"];
  return types.map((type) => `${table} ${prefix} ${type}`);
}

function addRoutes(link: string, missing: readonly Route[]): Command[] {
  return batch(
    ["ip", "-force", "-batch", "-"],
    missing.toSorted(outermostFirst).map((route) => `route replace ${text(route, link)}`),
  );
}

function noteAdded(present: PresentRoutes, missing: readonly Route[], rules: readonly Rule[]): void {
  for (const route of missing) {
    // A way that changed is replaced in its place: there is but one.
    for (const key of keysAt(routePlace(route))) present.own.delete(key);
    present.own.set(routeKey(route), route);
  }
  present.rules = addedRules(rules, present.rules);
}

/** @param present with all that is desired */
function surplusRoutes(desired: DesiredTable, changed: Changed, present: PresentRoutes): Route[] {
  const keys = changed === "all" ? present.own.keys() : [...changed].flatMap(keysAt);
  const surplus: Route[] = [];
  for (const key of keys) {
    const route = present.own.get(key);
    const wanted = route && desired.get(routePlace(route));
    if (route && (wanted === undefined || routeKey(wanted) !== key)) surplus.push(route);
  }
  return surplus;
}

function removeRoutes(
  link: string,
  surplus: readonly Route[],
  rules: readonly Rule[],
  present: PresentRoutes,
): Command[] {
  return [
    ...diffRules(rules, present.rules).remove,
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

function noteRemoved(present: PresentRoutes, surplus: readonly Route[], rules: readonly Rule[]): void {
  for (const route of surplus) present.own.delete(routeKey(route));
  present.strange = [];
  present.rules = settledRules(rules, present.rules);
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

/** What a desired state says of routes, by their places, and of rules. */
interface WantedRoutes {
  routes: ReadonlyTable<Route>;
  rules: readonly Rule[];
}

/** Our routes, and the rules that lead to them. */
export class Routes implements Resource<WantedRoutes> {
  readonly #means: { link: string; perform: Perform };
  readonly #present: Kept<PresentRoutes>;

  /** @param means `families` that the kernel has */
  constructor(means: { reader: Reader; link: string; families: readonly Family[]; perform: Perform }) {
    this.#means = means;
    const { reader, link, families } = means;
    this.#present = new Kept(async () => presentOf(await observeRoutes(reader, link, families)));
  }

  invalidate(reason: Reason): void {
    // Routes go with their link or its last address.
    if (["tunnel", "drift", "resync"].includes(reason)) this.#present.forget();
  }

  observe(): Promise<Readonly<PresentRoutes>> {
    return this.#present.get();
  }

  async guard({ routes, rules }: WantedRoutes): Promise<void> {
    const { link } = this.#means;
    const present = await this.#present.get();
    const missing = missingRoutes(routes, "all", present);
    const there = { own: present.own.values(), strange: present.strange };
    const guards = guardsOf(link, { routes: missing, rules }, there);
    await this.#add(guards.routes, guards.rules, present);
  }

  async add({ routes, rules }: WantedRoutes): Promise<void> {
    const present = await this.#present.get();
    await this.#add(missingRoutes(routes, routes.changedSince(present.settled), present), rules, present);
  }

  async remove({ routes, rules }: WantedRoutes): Promise<void> {
    const { link, perform } = this.#means;
    const present = await this.#present.get();
    const surplus = surplusRoutes(routes, routes.changedSince(present.settled), present);
    const commands = removeRoutes(link, surplus, rules, present);
    await this.#present.change(
      () => perform("routes removed", commands),
      () => {
        noteRemoved(present, surplus, rules);
        return { ...present, settled: routes.mark() };
      },
    );
  }

  async #add(missing: readonly Route[], rules: readonly Rule[], present: PresentRoutes): Promise<void> {
    const { link, perform } = this.#means;
    const commands = [...addRoutes(link, missing), ...diffRules(rules, present.rules).add];
    await this.#present.change(
      () => perform("routes added", commands),
      () => {
        noteAdded(present, missing, rules);
        return present;
      },
    );
  }
}
