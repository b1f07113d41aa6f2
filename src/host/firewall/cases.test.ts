/** Every backend passes the same cases; `test/firewallcases.test.ts` has them on a real kernel. */
import { describe, expect, test } from "bun:test";
import { mistakes } from "../../plan/firewall/model.ts";
import { type Backend, diffFirewall, type ObservedFirewall, settledFirewall } from "./firewall.ts";
import { cases } from "./fixtures/cases.ts";

const backends: Backend[] = ["nftables", "iptables-nft", "iptables-legacy"];
const untouched: ObservedFirewall = {
  ruleset: undefined,
  chains: {},
  sets: {},
  dropping: [],
  closed: [],
  hidden: undefined,
};

/** As it is once it was listed: rules of nftables have handles then. */
function listed(settled: ObservedFirewall): ObservedFirewall {
  const { ruleset } = settled;
  if (ruleset === undefined) return settled;
  let handle = 0;
  const chains = Object.entries(ruleset.chains).map(([name, { spec, rules }]) => {
    return [name, { spec, rules: rules.map(({ form }) => ({ form, handle: ++handle })) }];
  });
  return { ...settled, ruleset: { ...ruleset, chains: Object.fromEntries(chains) } };
}

describe.each(backends)("%s", (backend) => {
  test.each(cases.map((each) => [each.title, each] as const))("%s", (_, { from, to, bytes }) => {
    expect([...mistakes(from), ...mistakes(to)]).toEqual([]);
    const before = listed(settledFirewall(backend, from, untouched));
    const commands = diffFirewall(backend, to, before);
    expect(commands.length).toBeGreaterThan(0);
    const written = commands.map(({ stdin = "" }) => stdin).join("");
    if (bytes !== undefined) expect(written.length, written).toBeLessThan(bytes);
    const after = settledFirewall(backend, to, before);
    expect(diffFirewall(backend, to, after)).toEqual([]);
    // And what was made is what would be made from nothing.
    expect(diffFirewall(backend, to, settledFirewall(backend, to, untouched))).toEqual([]);
  });
});
