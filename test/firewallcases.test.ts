/** One firewall becomes another on a real kernel: single objects, in one transaction, and what stays keeps its counters. */
import { describe, expect, test } from "bun:test";
import { cases } from "../src/host/firewall/fixtures/cases.ts";
import type { Outcome } from "./lab/kernel/firewallcases.ts";
import { Namespace } from "./lab/kernel/namespace.ts";

describe.each(["nftables", "iptables-nft", "iptables-legacy"])("%s", async (backend) => {
  const namespace = await Namespace.create("cases");
  const script = `${import.meta.dirname}/lab/kernel/firewallcases.ts`;
  const outcomes: Outcome[] = JSON.parse(
    await namespace.run([process.execPath, script, backend]).finally(() => namespace.place.close()),
  );
  test.each(cases.map((each, index) => [each.title, each, outcomes[index]!] as const))(
    "%s",
    (_, each, outcome) => {
      expect(outcome.left).toEqual([]);
      if (each.bytes !== undefined)
        expect(outcome.written.join("\n").length, outcome.written.join("\n")).toBeLessThan(each.bytes);
      if (each.keepsCounters) expect(outcome.lost).toEqual([]);
    },
  );
});
