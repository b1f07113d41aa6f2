/** Things that are at a prefix or an address, sorted: what a prefix contains is one stretch of the list. */
import { ancestorKey, isIpv4Key, lastKey, lengthOf, sortKey } from "./address.ts";

export interface AtPrefix {
  /** A prefix, or an address. */
  readonly prefix: string;
  /** Its sort key. */
  readonly key: string;
}

/** From so many changes on, the whole list is sorted again instead of moved for each. */
const many = 64;

export class PrefixList<T extends AtPrefix> {
  readonly #tie: (a: T, b: T) => number;
  #items: T[] = [];
  /** How many there are of each length. */
  readonly #lengths = { ipv4: new Uint32Array(33), ipv6: new Uint32Array(129) };
  /** Comparisons and looks at an item so far. */
  steps = 0;

  /** @param tie the order of those at the same prefix */
  constructor(tie: (a: T, b: T) => number = () => 0) {
    this.#tie = tie;
  }

  get size(): number {
    return this.#items.length;
  }

  values(): IterableIterator<T> {
    return this.#items.values();
  }

  compare(a: T, b: T): number {
    this.steps += 1;
    return a.key < b.key ? -1 : a.key > b.key ? 1 : this.#tie(a, b);
  }

  /** @param remove of those that are there */
  change(remove: ReadonlySet<T>, add: readonly T[]): void {
    for (const item of remove) this.#count(item, -1);
    for (const item of add) this.#count(item, 1);
    if (remove.size + add.length >= many) {
      this.steps += this.#items.length;
      const kept = remove.size === 0 ? this.#items : this.#items.filter((item) => !remove.has(item));
      this.#items = [...kept, ...add].sort((a, b) => this.compare(a, b));
      return;
    }
    for (const item of remove) {
      let at = this.#firstFrom(item.key);
      while (this.#items[at] !== item && this.#items[at]?.key === item.key) at += 1;
      if (this.#items[at] !== item)
        throw new Error(`${item.prefix} is not in the list that it is taken from`);
      this.#items.splice(at, 1);
    }
    for (const item of add) {
      let at = this.#firstFrom(item.key);
      while (at < this.#items.length && this.compare(this.#items[at]!, item) <= 0) at += 1;
      this.#items.splice(at, 0, item);
    }
  }

  /** Those whose prefix contains `prefix` or equals it, the shortest first. */
  *around(prefix: string): Generator<T> {
    if (this.#items.length === 0) return;
    const lengths = this.#lengthsOf(sortKey(prefix));
    const longest = lengthOf(prefix);
    for (let length = 0; length <= longest; length += 1)
      if (lengths[length]! > 0) yield* this.#at(ancestorKey(prefix, length));
  }

  /** Those at exactly this prefix. */
  at(prefix: string): Generator<T> {
    return this.#at(sortKey(prefix));
  }

  *#at(key: string): Generator<T> {
    for (let at = this.#firstFrom(key); this.#items[at]?.key === key; at += 1) {
      this.steps += 1;
      yield this.#items[at]!;
    }
  }

  /** Those that `prefix` contains, the ones at the prefix itself too, in their order. */
  *within(prefix: string): Generator<T> {
    const last = lastKey(prefix);
    for (let at = this.#firstFrom(sortKey(prefix)); at < this.#items.length; at += 1) {
      this.steps += 1;
      const item = this.#items[at]!;
      if (item.key > last) return;
      yield item;
    }
  }

  /** The last one of those that `prefix` contains for which `counts` is true. */
  lastWithin(prefix: string, counts: (item: T) => boolean): T | undefined {
    if (this.#items.length === 0) return undefined;
    const first = sortKey(prefix);
    for (let at = this.#firstFrom(lastKey(prefix)) - 1; at >= 0; at -= 1) {
      this.steps += 1;
      const item = this.#items[at]!;
      if (item.key < first) return undefined;
      if (counts(item)) return item;
    }
    return undefined;
  }

  /** The place of the first item whose key is not less. */
  #firstFrom(key: string): number {
    let [low, high] = [0, this.#items.length];
    while (low < high) {
      this.steps += 1;
      const middle = (low + high) >> 1;
      if (this.#items[middle]!.key < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #count({ key }: T, by: number): void {
    const lengths = this.#lengthsOf(key);
    const length = key.charCodeAt(key.length - 1);
    lengths[length] = lengths[length]! + by;
  }

  #lengthsOf(key: string): Uint32Array {
    return isIpv4Key(key) ? this.#lengths.ipv4 : this.#lengths.ipv6;
  }
}
