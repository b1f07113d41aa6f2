/** The keys of a table of prefixes or addresses as a list, kept from time to time. */
import { compareAddresses } from "./address.ts";
import type { Mark, ReadonlyTable } from "./table.ts";

const known = new WeakMap<ReadonlyTable<unknown>, { mark: Mark; list: string[] }>();

/** The keys in the order of addresses. Never changed: a table that has not changed since gives the very same list. */
export function sortedKeys(table: ReadonlyTable<unknown>): string[] {
  const before = known.get(table);
  const changed = table.changedSince(before?.mark);
  if (before !== undefined && changed !== "all" && changed.size === 0) return before.list;
  const list =
    before === undefined || changed === "all"
      ? [...table.keys()].sort(compareAddresses)
      : merge(
          before.list.filter((key) => !changed.has(key)),
          [...changed].filter((key) => table.has(key)).sort(compareAddresses),
        );
  known.set(table, { mark: table.mark(), list });
  return list;
}

/** Puts few into many, both sorted. */
function merge(many: readonly string[], few: readonly string[]): string[] {
  const result: string[] = [];
  let from = 0;
  for (const key of few) {
    let [low, high] = [from, many.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (compareAddresses(many[middle]!, key) < 0) low = middle + 1;
      else high = middle;
    }
    for (; from < low; from += 1) result.push(many[from]!);
    result.push(key);
  }
  for (; from < many.length; from += 1) result.push(many[from]!);
  return result;
}

/**
 * What one sorted list has more than another, each way. What stays costs a glance, if it is the very same strings.
 */
export function differences(
  before: readonly string[],
  after: readonly string[],
): { added: string[]; removed: string[] } {
  const added: string[] = [];
  const removed: string[] = [];
  let [from, to] = [0, 0];
  while (from < before.length || to < after.length) {
    const [old, now] = [before[from], after[to]];
    const order =
      old === now ? 0 : old === undefined ? 1 : now === undefined ? -1 : compareAddresses(old, now);
    if (order < 0) removed.push(old!);
    if (order > 0) added.push(now!);
    if (order <= 0) from += 1;
    if (order >= 0) to += 1;
  }
  return { added, removed };
}
