import { expect, test } from "bun:test";
import fc from "fast-check";
import { editsOf } from "./edits.ts";

test.each<[present: string, wanted: string, kept: string]>([
  ["abc", "abcd", "abc"],
  ["abc", "zabc", "abc"],
  ["abc", "bc", "bc"],
  ["abc", "ac", "ac"],
  ["abXcd", "abcd", "abcd"],
  // One that comes in between: what follows it is more than what precedes it.
  ["abcdef", "abXcdef", "cdef"],
  ["abc", "xyz", ""],
  ["", "abc", ""],
  ["abc", "", ""],
  ["aba", "aab", "aa"],
])("%s → %s keeps %s", (present, wanted, kept) => {
  const edits = editsOf([...present], [...wanted]);
  expect(edits?.kept.map((index) => present[index]).join("")).toBe(kept);
});

test("nothing is to be done where nothing changes", () => {
  expect(editsOf([..."abc"], [..."abc"])).toBeUndefined();
  expect(editsOf([], [])).toBeUndefined();
});

test("what stays, with what is added in front and behind, is what is wanted", () => {
  const rules = fc.array(fc.constantFrom(..."abcdef"), { maxLength: 12 });
  fc.assert(
    fc.property(rules, rules, (present, wanted) => {
      const edits = editsOf(present, wanted);
      if (edits === undefined) return expect(present).toEqual(wanted);
      const { kept, from, to } = edits;
      expect(kept).toEqual([...kept].sort((a, b) => a - b));
      const result = [...wanted.slice(0, from), ...kept.map((index) => present[index]!), ...wanted.slice(to)];
      expect(result).toEqual(wanted);
    }),
  );
});
