/**
 * A table that knows what changed in it, so that whoever works from it has to look at the changes alone. Each reader
 * remembers how far it has come; nothing is cleared on behalf of another reader.
 */

import { Dictionary } from "./dictionary.ts";

/** How far a reader of a table has come. */
export interface Mark {
  readonly table: ReadonlyTable<unknown>;
  readonly version: number;
}

export interface ReadonlyTable<V> {
  readonly size: number;
  /** Grows with each change. */
  readonly version: number;
  get(key: string): V | undefined;
  has(key: string): boolean;
  keys(): IterableIterator<string>;
  values(): IterableIterator<V>;
  entries(): IterableIterator<[string, V]>;
  /** Where a reader stands that has seen all that is in the table now. */
  mark(): Mark;
  /**
   * The keys that were set or deleted since, each once. "all" if that is not known any more: for a reader without a
   * mark, with the mark of another table, or with one from too long ago.
   */
  changedSince(mark: Mark | undefined): ReadonlySet<string> | "all";
}

/** The list of changes is never cut below this length, so that a small table remembers some. */
const shortestLog = 64;

export class Table<V> implements ReadonlyTable<V> {
  readonly #values = new Dictionary<V>();
  readonly #equal: (a: V, b: V) => boolean;
  /** The changed keys, oldest first. The first of them belongs to version `#forgotten + 1`. */
  #log: string[] = [];
  #forgotten = 0;

  /** @param equal whether a value that is set is the one that is there. Default: identity. */
  constructor(equal: (a: V, b: V) => boolean = Object.is) {
    this.#equal = equal;
  }

  get size(): number {
    return this.#values.size;
  }

  get version(): number {
    return this.#forgotten + this.#log.length;
  }

  get(key: string): V | undefined {
    return this.#values.get(key);
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  keys(): IterableIterator<string> {
    return this.#values.keys();
  }

  values(): IterableIterator<V> {
    return this.#values.values();
  }

  entries(): IterableIterator<[string, V]> {
    return this.#values.entries();
  }

  /** @returns whether that was a change */
  set(key: string, value: V): boolean {
    const present = this.#values.get(key);
    if (present === undefined ? this.#values.has(key) && value === undefined : this.#equal(present, value))
      return false;
    this.#values.set(key, value);
    this.#note(key);
    return true;
  }

  /** @returns whether that was a change */
  delete(key: string): boolean {
    if (!this.#values.delete(key)) return false;
    this.#note(key);
    return true;
  }

  /** Sets these and deletes all others. What stays as it was is no change. */
  replace(values: ReadonlyMap<string, V>): void {
    for (const key of this.#values.keys()) if (!values.has(key)) this.delete(key);
    for (const [key, value] of values) this.set(key, value);
  }

  mark(): Mark {
    return { table: this, version: this.version };
  }

  changedSince(mark: Mark | undefined): ReadonlySet<string> | "all" {
    if (mark?.table !== this || mark.version < this.#forgotten) return "all";
    return new Set(this.#log.slice(mark.version - this.#forgotten));
  }

  #note(key: string): void {
    this.#log.push(key);
    // Whoever is behind by more changes than there are values reads them all with less work.
    if (this.#log.length <= Math.max(shortestLog, 2 * this.#values.size)) return;
    const cut = this.#log.length >> 1;
    this.#log = this.#log.slice(cut);
    this.#forgotten += cut;
  }
}
