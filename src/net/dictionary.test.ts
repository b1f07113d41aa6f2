import { expect, test } from "bun:test";
import fc from "fast-check";
import { Dictionary } from "./dictionary.ts";

test("it holds what a Map holds, whatever the keys", () => {
  const key = fc.constantFrom("a", "b", "7", "07", "", "__proto__", "constructor", "toString", "10.1.0.0/24");
  const step = fc.tuple(key, fc.oneof(fc.nat(3), fc.constant(undefined)), fc.constantFrom("set", "delete"));
  fc.assert(
    fc.property(fc.array(step), (steps) => {
      const dictionary = new Dictionary<number | undefined>();
      const map = new Map<string, number | undefined>();
      for (const [key, value, what] of steps) {
        if (what === "delete") expect(dictionary.delete(key)).toBe(map.delete(key));
        else {
          dictionary.set(key, value);
          map.set(key, value);
        }
        expect([dictionary.size, dictionary.has(key), dictionary.get(key)]).toEqual([
          map.size,
          map.has(key),
          map.get(key),
        ]);
      }
      expect(new Map(dictionary.entries())).toEqual(map);
      expect([...dictionary.keys()].sort()).toEqual([...map.keys()].sort());
      expect([...dictionary.values()].sort()).toEqual([...map.values()].sort());
      dictionary.clear();
      expect([dictionary.size, ...dictionary.keys()]).toEqual([0]);
    }),
  );
});

test("what is deleted while it is walked through is not met", () => {
  const dictionary = new Dictionary<number>();
  for (const key of ["a", "b", "c"]) dictionary.set(key, 1);
  const met: string[] = [];
  for (const [key] of dictionary.entries()) {
    met.push(key);
    dictionary.delete("b");
  }
  expect(met).toEqual(["a", "c"]);
});
