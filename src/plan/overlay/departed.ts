/** What a node that left claimed: it stays unreachable for a while, as others may still send to its pods. */
import { Dictionary } from "../../net/dictionary.ts";
import { PrefixIndex } from "../../net/lookup.ts";
import type { Mark, ReadonlyTable } from "../../net/table.ts";
import { podTable, type Route, routeKey } from "./routes.ts";

/** Milliseconds for which the pod CIDRs of a node that left stay unreachable. */
const departure = 600_000;

export class Departed {
  /** By prefix, when it may be forgotten. */
  readonly #until = new Map<string, number>();
  /** How many nodes claim a prefix, this one too. */
  readonly #claimed = new Dictionary<number>();
  /** What each node claims, by its name. */
  readonly #podCidrs = new Dictionary<readonly string[]>();
  #own: readonly string[] = [];
  /** Prefixes of our exceptions, by the keys of their routes. */
  readonly #excepted = new Map<string, string>();
  /** How far the nodes and the routes are looked at. */
  #marks: { nodes?: Mark; routes?: Mark } = {};

  /**
   * Unreachable prefixes of ours that nobody claims any more, not yet to be forgotten, and what we except from them.
   * @param own pod CIDRs of this node
   * @param nodes the others, by name
   * @param routes ours that are there, by their keys
   * @param now in milliseconds
   */
  claims(
    own: readonly string[],
    nodes: ReadonlyTable<{ podCidrs: readonly string[] }>,
    routes: ReadonlyTable<Route>,
    now: number,
  ): string[] {
    const isThere = (prefix: string) =>
      ([podTable, "main"] as const).some((table) =>
        routes.has(routeKey({ type: "unreachable", prefix, table })),
      );
    for (const prefix of [...this.#follow(own, nodes), ...this.#guards(routes)])
      if (this.#claimed.has(prefix)) this.#until.delete(prefix);
      else if (isThere(prefix) && !this.#until.has(prefix)) this.#until.set(prefix, now + departure);
    for (const [prefix, until] of this.#until)
      if (until <= now && !isThere(prefix)) this.#until.delete(prefix);
    const left = [...this.#until].filter(([, until]) => until > now).map(([prefix]) => prefix);
    if (left.length === 0) return [];
    const index = new PrefixIndex(left.map((prefix) => ({ prefix })));
    const excepted = [...this.#excepted.values()].filter((prefix) => index.longest(prefix) !== undefined);
    return [...left, ...excepted.map((prefix) => prefix.replace(/\/.*/, ""))];
  }

  /** Counts anew what changed. @returns the prefixes that others or fewer claim than before */
  #follow(own: readonly string[], nodes: ReadonlyTable<{ podCidrs: readonly string[] }>): Set<string> {
    const touched = new Set<string>();
    const count = (prefixes: readonly string[], by: 1 | -1) => {
      for (const prefix of prefixes) {
        touched.add(prefix);
        const claims = (this.#claimed.get(prefix) ?? 0) + by;
        if (claims > 0) this.#claimed.set(prefix, claims);
        else this.#claimed.delete(prefix);
      }
    };
    count(this.#own, -1);
    count(own, 1);
    this.#own = own;
    const changed = nodes.changedSince(this.#marks.nodes);
    this.#marks.nodes = nodes.mark();
    for (const name of changed === "all" ? new Set([...this.#podCidrs.keys(), ...nodes.keys()]) : changed) {
      const podCidrs = nodes.get(name)?.podCidrs;
      count(this.#podCidrs.get(name) ?? [], -1);
      count(podCidrs ?? [], 1);
      if (podCidrs === undefined) this.#podCidrs.delete(name);
      else this.#podCidrs.set(name, podCidrs);
    }
    return touched;
  }

  /** @returns the prefixes of unreachable routes that came or went */
  #guards(routes: ReadonlyTable<Route>): Set<string> {
    const prefixes = new Set<string>();
    const changed = routes.changedSince(this.#marks.routes);
    this.#marks.routes = routes.mark();
    if (changed === "all") this.#excepted.clear();
    for (const key of changed === "all" ? routes.keys() : changed) {
      const route = routes.get(key);
      if (route?.type === "unreachable") prefixes.add(route.prefix);
      if (route?.type === "throw") this.#excepted.set(key, route.prefix);
      else this.#excepted.delete(key);
    }
    return prefixes;
  }
}
