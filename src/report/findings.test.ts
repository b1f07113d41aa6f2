import { expect, test } from "bun:test";
import pino from "pino";
import { Findings } from "./findings.ts";

function findings() {
  const lines: Record<string, unknown>[] = [];
  const log = pino({ base: null, timestamp: false }, { write: (line) => lines.push(JSON.parse(line)) });
  return { lines, findings: new Findings(log) };
}

test("a finding is said when it begins, when it changes and when it is over", () => {
  const { lines, findings: them } = findings();
  const missing = (names: string[], context: object) =>
    them.report("links", { severity: "warning", message: "links are missing", names, context });
  them.report("links", undefined);
  missing(["eth1"], { present: ["eth0"] });
  missing(["eth1"], { present: ["eth0", "eth2"] });
  missing(["eth1", "eth3"], { present: ["eth0"] });
  expect(them.lines("warning")).toEqual(['links are missing (names: ["eth1","eth3"])']);
  them.report("links", undefined);
  expect(them.lines("warning")).toEqual([]);
  expect(lines).toEqual([
    { level: 40, topic: "links", names: ["eth1"], present: ["eth0"], msg: "links are missing" },
    { level: 40, topic: "links", names: ["eth1", "eth3"], present: ["eth0"], msg: "links are missing" },
    { level: 30, topic: "links", msg: "a finding is over" },
  ]);
});

test("severities are told apart, and no line is longer than a screen", () => {
  const { lines, findings: them } = findings();
  them.report("file", { severity: "unready", message: "another file comes first", file: "05-other.conf" });
  them.report("rules", { severity: "warning", message: "many rules", rules: "x".repeat(5_000) });
  expect(them.lines("unready")).toEqual(["another file comes first (file: 05-other.conf)"]);
  const [long = ""] = them.lines("warning");
  expect(long).toMatch(/^many rules \(rules: x+… \(\d+ characters\)$/);
  expect(long.length).toBeLessThan(1_050);
  expect(lines.map(({ level }) => level)).toEqual([50, 40]);
});
