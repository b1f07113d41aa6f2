import { expect, test } from "bun:test";
import { longestLine } from "../report/shorten.ts";
import { serveHealth } from "./serve.ts";

const many = (count: number, text: string) => Array.from({ length: count }, (_, n) => `${text} ${n}`);
test.each<[title: string, unready: string | undefined, warnings: string[], expected: (string | RegExp)[]]>([
  ["all is well", undefined, [], [/^ok\n$/]],
  ["a warning", undefined, ["odd"], [/^ok\nwarning: odd\n$/]],
  ["something is wrong", "link: no such device", ["odd"], [/^link: no such device\nwarning: odd\n$/]],
  [
    "a reason of 1.7 MB",
    `link: ${"x".repeat(1_700_000)}\nguard: no nft`,
    ["odd"],
    ["link: xxxx", "characters)\nguard: no nft\nwarning: odd\n"],
  ],
  ["5,000 warnings", "link: gone", many(5_000, "odd"), ["link: gone\nwarning: odd 0\n", /and \d+ more\n$/]],
  ["5,000 reasons", many(5_000, "bad").join("\n"), ["odd"], ["bad 0\nbad 1\n", /and \d+ more\n$/]],
  ["characters of several bytes", many(9, "\u{1f4a9}".repeat(999)).join("\n"), [], ["\u{1f4a9}"]],
])("/readyz has at most 2 kB: %s", async (_, unready, warnings, expected) => {
  const health = { stuck: () => undefined, unready: () => unready, warnings: () => warnings };
  const address = { variable: "HEALTH_BIND_ADDR", text: "", hostname: "127.0.0.1", port: 0 };
  const server = serveHealth(address, health);
  try {
    const answer = await fetch(new URL("/readyz", server.url));
    const text = await answer.text();
    expect(answer.status).toBe(unready === undefined ? 200 : 503);
    for (const part of expected)
      if (typeof part === "string") expect(text).toContain(part);
      else expect(text).toMatch(part);
    expect(Buffer.byteLength(text)).toBeLessThanOrEqual(longestLine);
    expect(text).not.toContain("\ufffd");
  } finally {
    await server.stop(true);
  }
});
