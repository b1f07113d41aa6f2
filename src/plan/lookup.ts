/** Which prefixes contain an address, without a look at each: one for each length that there is. */
import { ancestorKey, type Family, familyOf, hostPrefix, lengthOf } from "./address.ts";

/** A route of the main table that is not ours. */
export interface UnderlayRoute {
  prefix: string;
  via: string | undefined;
  dev: string;
  metric: number;
}

/** Finds what contains an address, the longest prefix first. */
export class PrefixIndex<T extends { prefix: string }> {
  readonly #at = new Map<string, T>();
  readonly #lengths: Record<Family, number[]>;

  /** @param better which of two that have the same prefix is kept; default: the first */
  constructor(items: Iterable<T>, better: (a: T, b: T) => boolean = () => false) {
    const lengths = { ipv4: new Set<number>(), ipv6: new Set<number>() };
    for (const item of items) {
      const length = lengthOf(item.prefix);
      lengths[familyOf(item.prefix)].add(length);
      const key = ancestorKey(item.prefix, length);
      const other = this.#at.get(key);
      if (other === undefined || better(item, other)) this.#at.set(key, item);
    }
    const longestFirst = (set: Set<number>) => [...set].sort((a, b) => b - a);
    this.#lengths = { ipv4: longestFirst(lengths.ipv4), ipv6: longestFirst(lengths.ipv6) };
  }

  *around(address: string): Generator<T> {
    for (const length of this.#lengths[familyOf(address)]) {
      const item = this.#at.get(ancestorKey(address, length));
      if (item) yield item;
    }
  }

  longest(address: string): T | undefined {
    return this.around(address).next().value ?? undefined;
  }
}

/** What the underlay's routes say of this node's neighbourhood. */
export interface Underlay {
  /** The way that a packet would take without our routes. */
  way(address: string): UnderlayRoute | undefined;
  gateways: string[];
  defaultGateways: string[];
  /** Prefixes on its links. */
  onLink: string[];
}

// The same list serves until the routes are observed again.
const known = new WeakMap<readonly UnderlayRoute[], Underlay>();

export function underlayOf(routes: readonly UnderlayRoute[]): Underlay {
  const before = known.get(routes);
  if (before) return before;
  let index: PrefixIndex<UnderlayRoute> | undefined;
  const unique = (values: string[]) => [...new Set(values)];
  const isDefault = (prefix: string) => prefix === "0.0.0.0/0" || prefix === "::/0";
  const isHost = (prefix: string) => prefix === hostPrefix(prefix.replace(/\/.*/, ""));
  const underlay: Underlay = {
    way(address) {
      index ??= new PrefixIndex(routes, (a, b) => a.metric < b.metric);
      return index.longest(address);
    },
    gateways: unique(routes.flatMap(({ via }) => via ?? [])),
    defaultGateways: unique(routes.flatMap(({ prefix, via }) => (isDefault(prefix) ? (via ?? []) : []))),
    onLink: unique(
      routes.flatMap(({ prefix, via }) =>
        via === undefined && !isDefault(prefix) && !isHost(prefix) ? prefix : [],
      ),
    ),
  };
  known.set(routes, underlay);
  return underlay;
}
