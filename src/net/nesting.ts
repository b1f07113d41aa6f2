/**
 * Overlaps among many prefixes, found by nesting them: of two prefixes that overlap, one contains the other. Sorting is
 * all that costs more than a look at each, however deep they are nested.
 */
import { compareAddresses, contains } from "./address.ts";

export interface Nested {
  prefix: string;
  /** Two of one owner do not collide. */
  node: string;
}

/** Two owners at most: whoever asks finds one that is not itself. */
interface Found<T> {
  one: T | undefined;
  other: T | undefined;
}

export class Nesting<T extends Nested> {
  /** Sorted so that what contains a prefix comes before it. */
  readonly items: readonly T[];
  /** Of each the place of the smallest that contains it, or −1. */
  readonly #parents: Int32Array;
  /** Comparisons and looks at an item so far. */
  steps = 0;

  /** @param last of equal prefixes those for which it is true come last */
  constructor(items: readonly T[], last: (item: T) => boolean) {
    this.items = [...items].sort((a, b) => {
      this.steps += 1;
      return (
        compareAddresses(a.prefix, b.prefix) ||
        Number(last(a)) - Number(last(b)) ||
        (a.node < b.node ? -1 : Number(a.node > b.node))
      );
    });
    this.#parents = new Int32Array(items.length);
    const open: number[] = [];
    for (const [index, { prefix }] of this.items.entries()) {
      for (;;) {
        this.steps += 1;
        const around = open.at(-1);
        if (around === undefined || contains(this.items[around]!.prefix, prefix)) break;
        open.pop();
      }
      this.#parents[index] = open.at(-1) ?? -1;
      open.push(index);
    }
  }

  /** For each item, of those that `counts` one of another owner that contains it or equals it from before; by place. */
  around(counts: (item: T) => boolean): (index: number) => T | undefined {
    const found: (Found<T> | undefined)[] = Array(this.items.length);
    for (const index of this.items.keys()) {
      this.steps += 1;
      const parent = this.#parents[index]!;
      if (parent < 0) continue;
      const item = this.items[parent]!;
      found[index] = counts(item) ? join(found[parent], { one: item, other: undefined }) : found[parent];
    }
    return (index) => ofAnother(this.items[index]!, found[index]);
  }

  /** The same for those that it contains or that equal it from behind. */
  within(counts: (item: T) => boolean): (index: number) => T | undefined {
    const found: (Found<T> | undefined)[] = Array(this.items.length);
    for (let index = this.items.length - 1; index >= 0; index -= 1) {
      this.steps += 1;
      const parent = this.#parents[index]!;
      if (parent < 0) continue;
      const item = this.items[index]!;
      found[parent] = join(found[parent], found[index]);
      if (counts(item)) found[parent] = join(found[parent], { one: item, other: undefined });
    }
    return (index) => ofAnother(this.items[index]!, found[index]);
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
