import { expect, test } from "bun:test";
import fc from "fast-check";
import { isOlder, ListReader } from "./list.ts";

/** Reads a text in pieces of these many bytes. */
function read(text: string, sizes: readonly number[]) {
  const items: unknown[] = [];
  const reader = new ListReader<unknown>((item) => items.push(item));
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  for (let index = 0; at < bytes.length; index += 1) {
    const size = sizes[index % sizes.length] ?? 1;
    reader.push(bytes.subarray(at, at + size));
    at += size;
  }
  return { ...reader.end((text) => new Error(`no JSON: ${text}`)), items };
}

test("a list as it arrives, in pieces, is the same as when it is parsed whole", () => {
  const item = fc.record({
    metadata: fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 2 }), { maxKeys: 4 }),
  });
  const list = fc.record({
    kind: fc.string(),
    metadata: fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 2 }), { maxKeys: 4 }),
    items: fc.array(item, { maxLength: 4 }),
  });
  fc.assert(
    fc.property(
      list,
      fc.constantFrom(0, 2),
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
      (given, indent, sizes) => {
        expect(read(JSON.stringify(given, null, indent), sizes)).toEqual(JSON.parse(JSON.stringify(given)));
      },
    ),
    { numRuns: 60 },
  );
});

test.each(['{"metadata":{},"items":[]}', '{"metadata":{},"items":null}', '{"metadata":{}}'])(
  "no items: %s",
  (text) => {
    expect(read(text, [7])).toMatchObject({ metadata: {}, items: [] });
  },
);

test.each(["", "<html>", '{"items":[{"a":1},', '{"items":[{"a":1'])(
  "what is no list, or half of one, is an error: %j",
  (text) => {
    expect(() => read(text, [3])).toThrow();
  },
);

test.each<[a: string, b: string, older: boolean]>([
  ["9", "10", true],
  ["10", "9", false],
  ["10", "10", false],
  ["99999999999999999999", "100000000000000000000", true],
  // Not for us to compare.
  ["a", "b", false],
  ["1", "b", false],
])("version %p is older than %p: %p", (a, b, older) => {
  expect(isOlder(a, b)).toBe(older);
});
