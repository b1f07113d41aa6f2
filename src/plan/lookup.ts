/** Which route of the underlay a packet would take. */
import { ancestorKey, familyOf, lengthOf } from "./address.ts";
import type { UnderlayRoute } from "./desired.ts";

type Lookup = (address: string) => UnderlayRoute | undefined;

// The same list serves until the routes are observed again.
const built = new WeakMap<readonly UnderlayRoute[], Lookup>();

/** Longest prefix first, then the lowest metric. One look at each route makes it; an answer costs one for each length. */
export function lookup(routes: readonly UnderlayRoute[]): Lookup {
  const before = built.get(routes);
  if (before) return before;
  const best = new Map<string, UnderlayRoute>();
  const lengths = { ipv4: new Set<number>(), ipv6: new Set<number>() };
  for (const route of routes) {
    const length = lengthOf(route.prefix);
    lengths[familyOf(route.prefix)].add(length);
    const key = ancestorKey(route.prefix, length);
    const other = best.get(key);
    if (other === undefined || route.metric < other.metric) best.set(key, route);
  }
  const longestFirst = (lengths: Set<number>) => [...lengths].sort((a, b) => b - a);
  const sorted = { ipv4: longestFirst(lengths.ipv4), ipv6: longestFirst(lengths.ipv6) };
  const find: Lookup = (address) => {
    for (const length of sorted[familyOf(address)]) {
      const route = best.get(ancestorKey(address, length));
      if (route) return route;
    }
    return undefined;
  };
  built.set(routes, find);
  return find;
}
