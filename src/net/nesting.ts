/**
 * Overlaps among many prefixes, found by nesting them: of two prefixes that overlap, one contains the other. A look at
 * each is all that it costs once they are sorted, however deep they are nested.
 */
import { lastKey } from "./address.ts";
import type { AtPrefix } from "./prefixlist.ts";

export interface Nested extends AtPrefix {
  /** Two of one owner do not collide. */
  node: string;
}

/** Two owners at most: whoever asks finds one that is not itself. */
interface Found<T> {
  one: T | undefined;
  other: T | undefined;
}

export class Nesting<T extends Nested> {
  readonly #items: readonly T[];
  /** Of each the place of the smallest that contains it, or −1. */
  readonly #parents: Int32Array;
  /** Looks at an item so far. */
  steps = 0;

  /** @param items sorted by their keys, so that what contains a prefix comes before it */
  constructor(items: readonly T[]) {
    this.#items = items;
    this.#parents = new Int32Array(items.length);
    const open: { index: number; last: string }[] = [];
    for (const [index, { prefix, key }] of items.entries()) {
      for (;;) {
        this.steps += 1;
        const around = open.at(-1);
        if (around === undefined || key <= around.last) break;
        open.pop();
      }
      this.#parents[index] = open.at(-1)?.index ?? -1;
      open.push({ index, last: lastKey(prefix) });
    }
  }

  /** For each item one of another owner that contains it or equals it from before: the outermost. By place. */
  around(): (T | undefined)[] {
    const found: (Found<T> | undefined)[] = Array(this.#items.length);
    for (const index of this.#items.keys()) {
      this.steps += 1;
      const parent = this.#parents[index]!;
      if (parent >= 0) found[index] = join(found[parent], { one: this.#items[parent]!, other: undefined });
    }
    return this.#items.map((item, index) => ofAnother(item, found[index]));
  }

  /** The same for those that it contains or that equal it from behind: the last. */
  within(): (T | undefined)[] {
    const found: (Found<T> | undefined)[] = Array(this.#items.length);
    for (let index = this.#items.length - 1; index >= 0; index -= 1) {
      this.steps += 1;
      const parent = this.#parents[index]!;
      if (parent < 0) continue;
      found[parent] = join(found[parent], found[index]);
      found[parent] = join(found[parent], { one: this.#items[index]!, other: undefined });
    }
    return this.#items.map((item, index) => ofAnother(item, found[index]));
  }
}

function join<T extends Nested>(a: Found<T> | undefined, b: Found<T> | undefined): Found<T> | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  if (a.other !== undefined) return a;
  const other = [b.one, b.other].find((each) => each !== undefined && each.node !== a.one?.node);
  return other === undefined ? a : { one: a.one, other };
}

function ofAnother<T extends Nested>({ node }: T, found: Found<T> | undefined): T | undefined {
  if (found === undefined) return undefined;
  return found.one?.node !== node ? found.one : found.other;
}
