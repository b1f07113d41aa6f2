import { expect, test } from "bun:test";
import fc from "fast-check";
import { compareAddresses, contains, sortKey } from "./address.ts";
import { PrefixList } from "./prefixlist.ts";

const prefix = fc.oneof(
  fc
    .tuple(fc.nat(3), fc.constantFrom(14, 15, 16))
    .map(([n, bits]) => `10.${n & (-1 << (16 - bits))}.0.0/${bits}`),
  fc.constantFrom("0.0.0.0/0", "10.1.0.9", "10.2.0.9", "::/0", "fd00::/63", "fd00:0:0:1::/64", "fd00::9"),
);

test("it finds what a look at each would find, whatever came and went", () => {
  const change = fc.tuple(fc.boolean(), prefix);
  // More than so many at a time are sorted at once.
  const changes = fc.array(
    fc.oneof(fc.array(change, { maxLength: 5 }), fc.array(change, { minLength: 70 })),
    {
      maxLength: 6,
    },
  );
  fc.assert(
    fc.property(changes, prefix, (steps, asked) => {
      const list = new PrefixList<{ prefix: string; key: string; id: number }>((a, b) => a.id - b.id);
      let all: { prefix: string; key: string; id: number }[] = [];
      let id = 0;
      for (const step of steps) {
        const added = step.filter(([comes]) => comes);
        const add = added.map(([, prefix]) => ({ prefix, key: sortKey(prefix), id: id++ }));
        const goes = step.filter(([comes]) => !comes).map(([, prefix]) => prefix);
        const remove = all.filter((item) => goes.includes(item.prefix));
        list.change(new Set(remove), add);
        all = [...all.filter((item) => !remove.includes(item)), ...add];
        all.sort((a, b) => compareAddresses(a.prefix, b.prefix) || a.id - b.id);
        expect(list.size).toBe(all.length);
        const within = all.filter((item) => contains(asked, item.prefix));
        expect([...list.within(asked)]).toEqual(within);
        expect([...list.around(asked)]).toEqual(all.filter((item) => contains(item.prefix, asked)));
        expect([...list.at(asked)]).toEqual(all.filter((item) => item.key === sortKey(asked)));
        const even = (item: { id: number }) => item.id % 2 === 0;
        expect(list.lastWithin(asked, even)).toEqual(within.findLast(even) as (typeof all)[0]);
      }
    }),
  );
});

test("what is not there cannot be taken away", () => {
  const list = new PrefixList();
  const item = { prefix: "10.0.0.0/8", key: sortKey("10.0.0.0/8") };
  expect(() => list.change(new Set([item]), [])).toThrow("10.0.0.0/8 is not in the list");
});
