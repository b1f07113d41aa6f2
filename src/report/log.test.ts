import { expect, test } from "bun:test";
import fc from "fast-check";
import { createLogger } from "./log.ts";
import { longestLine } from "./shorten.ts";

/** The lines that a logger writes, as text. */
function written(say: (log: ReturnType<typeof createLogger>) => void): string[] {
  const lines: string[] = [];
  say(createLogger("debug", { write: (line) => lines.push(line) }));
  return lines;
}
const parsed = (say: Parameters<typeof written>[0]) => JSON.parse(written(say)[0] ?? "");

test("a line has its level as a word, which log collectors know, and the time", () => {
  const levels = ["trace", "debug", "info", "warn", "error", "fatal"] as const;
  const lines = written((log) => {
    for (const level of levels) log[level]("said");
  });
  expect(lines.map((line) => JSON.parse(line))).toEqual(
    levels.slice(1).map((level) => ({ level, time: expect.stringMatching(/^\d{4}-.*Z$/), msg: "said" })),
  );
});

test("a line that is short stays as it is", () => {
  const fields = { resource: "link", off: ["a", "b"], nested: { on: true, count: 3, none: null } };
  expect(parsed((log) => log.info(fields, "a message"))).toMatchObject({ ...fields, msg: "a message" });
  expect(parsed((log) => log.warn("a message alone"))).toMatchObject({ msg: "a message alone" });
});

test("of what is long the beginning is said, and how much there was", () => {
  const commands = Array.from({ length: 40 }, (_, n) => `wg set wigglenet ${n} ${"x".repeat(280)}`);
  const line = parsed((log) => log.info({ why: "cluster", commands }, "peers added or changed"));
  expect(line).toMatchObject({ why: "cluster", msg: "peers added or changed" });
  expect(line.commands[0]).toStartWith("wg set wigglenet 0 xxxx");
  expect(line.commands.at(-1)).toMatch(/^and \d+ more$/);
  const annotations = { "wigglenet/pod-cidrs": JSON.stringify(Array(16_000).fill("2001:db8::/64")) };
  expect(parsed((log) => log.info({ annotations }, "annotated")).annotations["wigglenet/pod-cidrs"]).toMatch(
    /^\["2001:db8::\/64",.*… \(256001 characters\)$/,
  );
});

test("no line has more than 2 kB, whatever is said", () => {
  const text = fc.oneof(
    fc.string({ maxLength: 30 }),
    fc.string({ unit: "binary", maxLength: 20 }).map((part) => part.repeat(100)),
    fc.constantFrom("\u0000".repeat(2_000), "\ud800".repeat(2_000), "é".repeat(3_000)),
  );
  const fields = fc.dictionary(
    fc.stringMatching(/^[a-km-z]{1,12}$/),
    fc.oneof(text, fc.array(text, { maxLength: 30 }), fc.dictionary(text, text), fc.integer()),
    { maxKeys: 30 },
  );
  fc.assert(
    fc.property(fields, text, (given, message) => {
      const [line = "", ...more] = written((log) => log.error(given, message));
      expect(more).toEqual([]);
      expect(Buffer.byteLength(line)).toBeLessThanOrEqual(longestLine);
      expect(JSON.parse(line)).toMatchObject({ level: "error" });
    }),
    { numRuns: 60 },
  );
}, 30_000);

test("an Error among the fields is its message, not an empty object", () => {
  expect(parsed((log) => log.warn({ error: new Error("no route") }, "failed"))).toMatchObject({
    error: "no route",
  });
});
