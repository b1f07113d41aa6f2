/** Which prefixes contain an address, without a look at each: one for each length that there is. */
import { ancestorKey, type Family, familyOf, lengthOf } from "./address.ts";

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

/** What the node's other routes say of its neighbourhood. */
export interface Underlay {
  gateways: readonly string[];
  defaultGateways: readonly string[];
  /** Prefixes on its links. */
  onLink: readonly string[];
}
