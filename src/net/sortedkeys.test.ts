import { expect, test } from "bun:test";
import fc from "fast-check";
import { compareAddresses } from "./address.ts";
import { differences, sortedKeys } from "./sortedkeys.ts";
import { Table } from "./table.ts";

test("the keys are sorted after any changes, and the same list where there was none", () => {
  const key = fc
    .tuple(fc.nat(3), fc.nat(9), fc.boolean())
    .map(([a, b, v6]) => (v6 ? `fd00::${a}:${b}` : `10.0.${a}.${b}`));
  fc.assert(
    fc.property(fc.array(fc.array(fc.tuple(key, fc.boolean()), { maxLength: 9 })), (steps) => {
      const table = new Table<true>();
      let before: string[] = [];
      for (const step of steps) {
        for (const [each, comes] of step)
          if (comes) table.set(each, true);
          else table.delete(each);
        const list = sortedKeys(table);
        expect(list).toEqual([...table.keys()].sort(compareAddresses));
        expect(sortedKeys(table)).toBe(list);
        const [had, has] = [new Set(before), new Set(list)];
        const { added, removed } = differences(before, list);
        expect(added).toEqual(list.filter((each) => !had.has(each)));
        expect(removed).toEqual(before.filter((each) => !has.has(each)));
        before = list;
      }
    }),
  );
});
