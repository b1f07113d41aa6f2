import { describe, expect, test } from "bun:test";
import type { Firewall } from "../plan/desired.ts";
import {
  diffRuleset,
  type ObservedRuleset,
  parseRuleset,
  type Ruleset,
  ruleset,
  settledRuleset,
} from "./nftables.ts";
import listed from "./recorded/nft-table.txt";
import edited from "./recorded/nft-table-edited.txt";

/** What was loaded when `recorded/nft-table.txt` was listed. */
function firewall(tweak: Partial<Firewall> = {}): Firewall {
  return {
    podCidrs: ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.7/32", "fd00:1::/64", "fd00:1:0:1::/64"],
    nodes: ["192.0.2.1", "2001:db8::1"],
    marked: ["10.1.0.0/24", "fd00:1::/64"],
    masqueraded: ["10.1.0.0/24"],
    ...tweak,
  };
}

/** What `nft -f -` reads, line by line; of a rule its text without the fingerprint. */
function lines(desired: Ruleset, observed: ObservedRuleset | undefined): string[] {
  const commands = diffRuleset(desired, observed);
  for (const { argv } of commands) expect(argv).toEqual(["nft", "-f", "-"]);
  return commands.flatMap(({ stdin }) =>
    (stdin ?? "")
      .trimEnd()
      .replaceAll(/ comment "\w+"/g, "")
      .split("\n"),
  );
}

test("the table, from nothing", () => {
  expect(lines(ruleset(firewall()), undefined).join("\n")).toMatchInlineSnapshot(`
    "add table inet wigglenet
    add set inet wigglenet pods-ipv4 { type ipv4_addr; flags interval; }
    add element inet wigglenet pods-ipv4 { 10.1.0.0/24, 10.1.1.0/24, 10.1.2.7 }
    add set inet wigglenet nodes-ipv4 { type ipv4_addr; }
    add element inet wigglenet nodes-ipv4 { 192.0.2.1 }
    add set inet wigglenet pods-ipv6 { type ipv6_addr; flags interval; }
    add element inet wigglenet pods-ipv6 { fd00:1::/64, fd00:1:0:1::/64 }
    add set inet wigglenet nodes-ipv6 { type ipv6_addr; }
    add element inet wigglenet nodes-ipv6 { 2001:db8::1 }
    add chain inet wigglenet prerouting { type filter hook prerouting priority -90; policy accept; }
    add rule inet wigglenet prerouting ip saddr 10.1.0.0/24 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting ip saddr 10.1.0.0/24 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting ip6 saddr fd00:1::/64 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting ip6 saddr fd00:1::/64 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add chain inet wigglenet postrouting { type nat hook postrouting priority 100; policy accept; }
    add rule inet wigglenet postrouting ip saddr 10.1.0.0/24 ip daddr != @pods-ipv4 ip daddr != @nodes-ipv4 masquerade fully-random"
  `);
});

describe("what nft listed", () => {
  test("of what was loaded: nothing is left to do", () => {
    expect(parseRuleset(listed)).toEqual(settledRuleset(ruleset(firewall())));
    expect(diffRuleset(ruleset(firewall()), parseRuleset(listed))).toEqual([]);
  });

  test("the order of a listing is the kernel's", () => {
    const { nftables } = JSON.parse(listed);
    const [first, ...others] = nftables.filter((entry: object) => !("rule" in entry));
    const rules = nftables.filter((entry: object) => "rule" in entry);
    const shuffled = JSON.stringify({ nftables: [first, ...others.reverse(), ...rules] });
    expect(diffRuleset(ruleset(firewall()), parseRuleset(shuffled))).toEqual([]);
  });

  test("of one that was edited by hand: made anew in one transaction", () => {
    const observed = parseRuleset(edited);
    expect(observed.sets["pods-ipv4"]?.elements).toContain("10.9.0.5-10.9.0.9");
    expect(observed.sets["nodes-ipv4"]?.elements).toContain("192.0.2.9");
    expect(observed.chains.prerouting?.spec).toBe("type filter hook prerouting priority -90; policy drop");
    expect(observed.chains.prerouting?.fingerprints).toContain("");
    expect(observed.others).toEqual(["map"]);
    const [first, ...rest] = lines(ruleset(firewall()), observed);
    expect(first).toBe("delete table inet wigglenet");
    expect(rest).toEqual(lines(ruleset(firewall()), undefined));
  });
});

describe("desired and observed → transaction", () => {
  const settled = (tweak: Partial<Firewall> = {}) => settledRuleset(ruleset(firewall(tweak)));
  const pods = (...podCidrs: string[]) => ({ podCidrs });
  test.each<[title: string, desired: Partial<Firewall>, observed: ObservedRuleset, lines: string[]]>([
    ["nothing changed", {}, settled(), []],
    [
      "a node joins",
      { nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] },
      settled(),
      ["add element inet wigglenet nodes-ipv4 { 192.0.2.2 }"],
    ],
    [
      "a node leaves",
      { nodes: ["2001:db8::1"] },
      settled(),
      ["delete element inet wigglenet nodes-ipv4 { 192.0.2.1 }"],
    ],
    [
      // Added first, it would be refused as overlapping.
      "a larger pod CIDR over a smaller one: what goes, goes first",
      pods("10.1.0.0/23"),
      settled(pods("10.1.0.0/24", "10.1.1.0/24")),
      [
        "delete element inet wigglenet pods-ipv4 { 10.1.0.0/24, 10.1.1.0/24 }",
        "add element inet wigglenet pods-ipv4 { 10.1.0.0/23 }",
      ],
    ],
    [
      "of one address, as nft lists it",
      pods("10.1.2.7/32", "fd00::9/128"),
      settled(pods("10.1.2.7/32")),
      ["add element inet wigglenet pods-ipv6 { fd00::9 }"],
    ],
    [
      "a set was flushed",
      pods("10.1.0.0/24"),
      {
        ...settled(pods("10.1.0.0/24")),
        sets: {
          ...settled().sets,
          "pods-ipv4": { spec: "type ipv4_addr; flags interval", elements: [] },
          "pods-ipv6": { spec: "type ipv6_addr; flags interval", elements: [] },
        },
      },
      ["add element inet wigglenet pods-ipv4 { 10.1.0.0/24 }"],
    ],
    [
      "masquerade is switched off",
      { masqueraded: [] },
      settled(),
      ["flush chain inet wigglenet postrouting"],
    ],
    [
      "another own pod CIDR: rules are replaced",
      { masqueraded: ["10.2.0.0/24"] },
      settled(),
      [
        "flush chain inet wigglenet postrouting",
        "add rule inet wigglenet postrouting ip saddr 10.2.0.0/24 ip daddr != @pods-ipv4 ip daddr != @nodes-ipv4 masquerade fully-random",
      ],
    ],
    [
      "a chain was flushed",
      {},
      {
        ...settled(),
        chains: {
          ...settled().chains,
          postrouting: { spec: "type nat hook postrouting priority 100; policy accept", fingerprints: [] },
        },
      },
      [
        "add rule inet wigglenet postrouting ip saddr 10.1.0.0/24 ip daddr != @pods-ipv4 ip daddr != @nodes-ipv4 masquerade fully-random",
      ],
    ],
  ])("%s", (_, desired, observed, expected) => {
    expect(lines(ruleset(firewall(desired)), observed)).toEqual(expected);
  });

  const structure = settled();
  test.each<[title: string, observed: ObservedRuleset]>([
    [
      "a set of another type",
      { ...structure, sets: { ...structure.sets, "pods-ipv4": { spec: "type ipv4_addr", elements: [] } } },
    ],
    ["a set less", { ...structure, sets: Object.fromEntries(Object.entries(structure.sets).slice(1)) }],
    [
      "a set more",
      { ...structure, sets: { ...structure.sets, extra: { spec: "type ipv4_addr", elements: [] } } },
    ],
    [
      "a chain more, which another one may jump to",
      {
        ...structure,
        chains: {
          ...structure.chains,
          extra: {
            spec: "type undefined hook undefined priority undefined; policy undefined",
            fingerprints: [],
          },
        },
      },
    ],
    ["a chain less", { ...structure, chains: {} }],
    [
      "a policy of drop",
      {
        ...structure,
        chains: {
          ...structure.chains,
          postrouting: { spec: "type nat hook postrouting priority 100; policy drop", fingerprints: [] },
        },
      },
    ],
    ["a map", { ...structure, others: ["map"] }],
  ])("another structure is made anew: %s", (_, observed) => {
    expect(lines(ruleset(firewall()), observed)).toEqual([
      "delete table inet wigglenet",
      ...lines(ruleset(firewall()), undefined),
    ]);
  });

  test("5,000 nodes are one transaction, and one more is one line", () => {
    const nodes = Array.from({ length: 5_000 }, (_, n) => `172.16.${n >> 8}.${n & 255}`);
    expect(diffRuleset(ruleset(firewall({ nodes })), undefined)).toHaveLength(1);
    const one = lines(ruleset(firewall({ nodes: [...nodes, "192.0.2.1"] })), settled({ nodes }));
    expect(one).toEqual(["add element inet wigglenet nodes-ipv4 { 192.0.2.1 }"]);
  });
});
