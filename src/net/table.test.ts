import { expect, test } from "bun:test";
import fc from "fast-check";
import { type Mark, Table } from "./table.ts";

test("a reader is told of the keys that changed since its mark", () => {
  const table = new Table<number>();
  table.set("a", 1);
  table.set("b", 2);
  const mark = table.mark();
  expect(table.changedSince(mark)).toEqual(new Set());
  table.set("b", 3);
  table.delete("a");
  table.set("c", 4);
  table.set("c", 5);
  expect(table.changedSince(mark)).toEqual(new Set(["b", "a", "c"]));
  // A reader that has come further is told of less; the first one still of all.
  const later = table.mark();
  table.set("d", 6);
  expect(table.changedSince(later)).toEqual(new Set(["d"]));
  expect(table.changedSince(mark)).toEqual(new Set(["b", "a", "c", "d"]));
  expect([...table.entries()]).toEqual([
    ["b", 3],
    ["c", 5],
    ["d", 6],
  ]);
});

test("what changes nothing is no change", () => {
  const table = new Table<{ n: number }>((a, b) => a.n === b.n);
  expect(table.set("a", { n: 1 })).toBe(true);
  const mark = table.mark();
  expect(table.set("a", { n: 1 })).toBe(false);
  expect(table.delete("b")).toBe(false);
  table.replace(new Map([["a", { n: 1 }]]));
  expect(table.version).toBe(mark.version);
  expect(table.changedSince(mark)).toEqual(new Set());
  table.replace(new Map([["b", { n: 1 }]]));
  expect(table.changedSince(mark)).toEqual(new Set(["a", "b"]));
  expect([...table.keys()]).toEqual(["b"]);
});

test("undefined is a value", () => {
  const table = new Table<string | undefined>();
  expect([table.set("a", undefined), table.set("a", undefined), table.has("a")]).toEqual([true, false, true]);
  expect([table.set("a", "b"), table.set("a", undefined), table.delete("a")]).toEqual([true, true, true]);
});

test.each<[title: string, mark: Mark | undefined]>([
  ["no mark", undefined],
  ["another table's mark", new Table<number>().mark()],
])("a reader with %s is told to read all", (_, mark) => {
  const table = new Table<number>();
  expect(table.changedSince(mark)).toBe("all");
  table.set("a", 1);
  expect(table.changedSince(mark)).toBe("all");
});

test("the list of changes grows no longer than twice the table, or 64", () => {
  const table = new Table<number>();
  const beginning = table.mark();
  for (let n = 0; n < 64; n += 1) table.set("a", n);
  expect(table.changedSince(beginning)).toEqual(new Set(["a"]));
  table.set("a", 64);
  expect(table.changedSince(beginning)).toBe("all");
  expect(table.version).toBe(65);

  const large = new Table<number>();
  const empty = large.mark();
  for (let n = 0; n < 1_000; n += 1) large.set(`${n}`, n);
  expect(new Set(large.changedSince(empty)).size).toBe(1_000);
  for (let n = 0; n < 10_000; n += 1) large.set("a", n);
  expect(large.changedSince(empty)).toBe("all");
  const mark = large.mark();
  for (let n = 0; n < 900; n += 1) large.set(`${n}`, -1 - n);
  expect(large.changedSince(mark)).not.toBe("all");
});

test("readers that follow the changes have what the table has", () => {
  const step = fc.oneof(
    fc.record({ key: fc.constantFrom("a", "b", "c", "d"), value: fc.nat(3) }),
    fc.record({ key: fc.constantFrom("a", "b", "c", "d"), value: fc.constant(undefined) }),
    fc.constant("read" as const),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const table = new Table<number>();
      const copy = new Map<string, number>();
      let mark: Mark | undefined;
      for (const step of [...steps, "read" as const]) {
        if (step === "read") {
          const changed = table.changedSince(mark);
          for (const key of changed === "all" ? new Set([...table.keys(), ...copy.keys()]) : changed) {
            const value = table.get(key);
            if (value === undefined) copy.delete(key);
            else copy.set(key, value);
          }
          mark = table.mark();
          expect([...copy].sort()).toEqual([...table.entries()].sort());
        } else if (step.value === undefined) table.delete(step.key);
        else table.set(step.key, step.value);
      }
    }),
  );
});
