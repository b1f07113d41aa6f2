/** A table of which several may contribute a value each at the same key, and take it back. */
import { type ReadonlyTable, Table } from "./table.ts";

export class SharedTable<V> {
  readonly #table: Table<V>;
  readonly #better: (a: V, b: V) => boolean;
  /** All contributions to a key, where there are several. Few have more than one. */
  readonly #several = new Map<string, V[]>();
  readonly #equal: (a: V, b: V) => boolean;

  /**
   * @param equal whether two contributions to a key are the same
   * @param better which of two counts; default: the first one
   */
  constructor(equal: (a: V, b: V) => boolean = Object.is, better: (a: V, b: V) => boolean = () => false) {
    this.#equal = equal;
    this.#better = better;
    this.#table = new Table(equal);
  }

  get table(): ReadonlyTable<V> {
    return this.#table;
  }

  add(key: string, value: V): void {
    const present = this.#table.get(key);
    if (present === undefined) {
      this.#table.set(key, value);
      return;
    }
    const all = this.#several.get(key) ?? [present];
    all.push(value);
    this.#several.set(key, all);
    if (this.#better(value, present)) this.#table.set(key, value);
  }

  /** Takes back what was added. */
  remove(key: string, value: V): void {
    const all = this.#several.get(key);
    if (all === undefined) {
      this.#table.delete(key);
      return;
    }
    all.splice(
      all.findIndex((each) => this.#equal(each, value)),
      1,
    );
    if (all.length === 1) this.#several.delete(key);
    this.#table.set(
      key,
      all.reduce((a, b) => (this.#better(b, a) ? b : a)),
    );
  }
}
