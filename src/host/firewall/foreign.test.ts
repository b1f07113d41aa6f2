import { expect, test } from "bun:test";
import pino from "pino";
import { Findings } from "../../report/findings.ts";
import { TranslatedPackets } from "./foreign.ts";

test.each<[title: string, counts: (number | undefined)[], named: boolean]>([
  ["not looked at", [undefined], false],
  ["what an earlier agent saw may be over", [40], false],
  ["none", [0, 0], false],
  ["more than before", [40, 41], true],
  ["more than before, and not looked at since", [40, 41, undefined], true],
  ["no more", [40, 41, 41], false],
  ["the rule was made anew", [40, 0], false],
  ["the rule was made anew, and counts", [40, 0, 3], true],
])("translated packets: %s", (_, counts, named) => {
  const findings = new Findings(pino({ level: "silent" }));
  const translated = new TranslatedPackets(findings);
  for (const count of counts) translated.report(count);
  const lines = named ? [expect.stringContaining("exempt the nodes' addresses from the SNAT rule")] : [];
  expect(findings.lines("warning")).toEqual(lines);
});
