/** Of prefixes that come and go, those that no other contains. */
import { compareAddresses, contains, sortKey } from "./address.ts";
import { type AtPrefix, PrefixList } from "./prefixlist.ts";
import { type ReadonlyTable, Table } from "./table.ts";

export class Outermost {
  readonly #list = new PrefixList<AtPrefix>();
  /** How often a prefix was added, where that is more than once. */
  readonly #several = new Map<string, number>();
  readonly #table = new Table<true>();

  /** Those that no other contains. */
  get table(): ReadonlyTable<true> {
    return this.#table;
  }

  /** Whether one of them contains a prefix or an address. */
  covers(value: string): boolean {
    return this.#list.around(value).next().done === false;
  }

  /** @param remove of those that were added, each as often as it is taken back */
  change(remove: readonly string[], add: readonly string[]): void {
    const added = new Map<string, AtPrefix>();
    for (const prefix of add) {
      const isThere = added.has(prefix) || this.#list.at(prefix).next().done === false;
      if (isThere) this.#several.set(prefix, (this.#several.get(prefix) ?? 1) + 1);
      else added.set(prefix, { prefix, key: sortKey(prefix) });
    }
    const removed = new Set<AtPrefix>();
    for (const prefix of remove) {
      const count = this.#several.get(prefix);
      if (count === 2) this.#several.delete(prefix);
      else if (count !== undefined) this.#several.set(prefix, count - 1);
      else if (!added.delete(prefix)) for (const item of this.#list.at(prefix)) removed.add(item);
    }
    this.#list.change(removed, [...added.values()]);
    for (const { prefix } of removed)
      if (this.#table.delete(prefix))
        for (const inner of this.#list.within(prefix))
          if (this.#isOutermost(inner)) this.#table.set(inner.prefix, true);
    for (const item of added.values()) {
      if (!this.#isOutermost(item)) continue;
      for (const inner of this.#list.within(item.prefix))
        if (inner !== item) this.#table.delete(inner.prefix);
      this.#table.set(item.prefix, true);
    }
  }

  #isOutermost(item: AtPrefix): boolean {
    return this.#list.around(item.prefix).next().value === item;
  }
}

/** The prefixes that no other contains, sorted. */
export function outermost(prefixes: readonly string[]): string[] {
  const result: string[] = [];
  // In this order a prefix comes right after those that contain it.
  for (const prefix of [...new Set(prefixes)].sort(compareAddresses)) {
    const last = result.at(-1);
    if (last === undefined || !contains(last, prefix)) result.push(prefix);
  }
  return result;
}
