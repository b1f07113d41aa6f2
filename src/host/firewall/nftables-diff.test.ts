import { describe, expect, test } from "bun:test";
import { desired, lines, type Tweak } from "./fixtures/nftables.ts";
import { diffRuleset, settledRuleset } from "./nftables.ts";
import type { ObservedRuleset } from "./nftlisting.ts";

describe("desired and observed → transaction", () => {
  /** As it is listed: each rule has a handle, from 1 on in each chain. */
  const settled = (tweak: Tweak = {}): ObservedRuleset => {
    const ruleset = settledRuleset(desired(tweak));
    for (const chain of Object.values(ruleset.chains))
      chain.rules = chain.rules.map(({ form }, index) => ({ form, handle: index + 1 }));
    return ruleset;
  };
  const textOf = (line: string) => line.replace(/^(add|insert) rule inet wigglenet \S+ /, "");
  const rules = (settings: Tweak, chain: string) =>
    lines(desired(settings), undefined).filter((line) =>
      line.startsWith(`add rule inet wigglenet ${chain} `),
    );
  /** Whose rules are these alone, each with its handle. */
  const gone = (chain: string, before: Tweak, after: Tweak) => {
    const stay = rules(after, chain).map(textOf);
    return rules(before, chain)
      .map(textOf)
      .flatMap((text, index) =>
        stay.includes(text) ? [] : [`delete rule inet wigglenet ${chain} handle ${index + 1}`],
      );
  };
  const off = { masquerade: { ipv4: false, ipv6: false } };
  const ipv4 = { masquerade: { ipv4: true, ipv6: false } };
  const other = { ...ipv4, masqueradeRandomFully: false };
  const pods = (...remotePodCidrs: string[]) => ({ remotePodCidrs });
  test.each<[title: string, tweak: Tweak, observed: ObservedRuleset, lines: string[]]>([
    ["nothing changed", {}, settled(), []],
    [
      "a node joins",
      { nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] },
      settled(),
      ["add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.2 }; }"],
    ],
    [
      "the last node of a family leaves",
      { nodes: ["2001:db8::1"] },
      settled(),
      ["flush set inet wigglenet nodes-ipv4"],
    ],
    [
      "a node leaves: the others stay, in the same transaction",
      {},
      settled({ nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] }),
      [
        "flush set inet wigglenet nodes-ipv4",
        "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }",
      ],
    ],
    [
      // Added first, it would be refused as overlapping.
      "a larger pod CIDR over a smaller one: what goes, goes first",
      pods("10.1.0.0/23"),
      settled(pods("10.1.0.0/24", "10.1.1.0/24")),
      [
        "flush set inet wigglenet remote-ipv4",
        "add set inet wigglenet remote-ipv4 { type ipv4_addr; flags interval; elements = { 10.1.0.0/23 }; }",
      ],
    ],
    [
      "of one address, as nft lists it",
      pods("10.1.2.7/32", "fd00::9/128"),
      settled(pods("10.1.2.7/32")),
      ["add set inet wigglenet remote-ipv6 { type ipv6_addr; flags interval; elements = { fd00::9 }; }"],
    ],
    [
      "a set was flushed",
      pods("10.1.0.0/24"),
      {
        ...settled(pods("10.1.0.0/24")),
        sets: {
          ...settled(pods("10.1.0.0/24")).sets,
          "remote-ipv4": { spec: "type ipv4_addr; flags interval", elements: [] },
        },
      },
      ["add set inet wigglenet remote-ipv4 { type ipv4_addr; flags interval; elements = { 10.1.0.0/24 }; }"],
    ],
    [
      "masquerade is switched off: single rules go",
      off,
      settled(),
      [
        ...["srcnat-ipv4", "srcnat-ipv6", "from-pods-ipv4", "from-pods-ipv6"].flatMap((chain) =>
          gone(chain, {}, off),
        ),
        "flush chain inet wigglenet outward-ipv4",
        "flush chain inet wigglenet outward-ipv6",
        "delete chain inet wigglenet outward-ipv4",
        "delete chain inet wigglenet outward-ipv6",
      ],
    ],
    [
      "of one family alone, and not at random: rules are replaced",
      other,
      settled(),
      [
        "flush chain inet wigglenet srcnat-ipv4",
        ...rules(other, "srcnat-ipv4"),
        "flush chain inet wigglenet srcnat-ipv6",
        ...rules(other, "srcnat-ipv6"),
        ...gone("from-pods-ipv6", {}, other),
        "flush chain inet wigglenet outward-ipv6",
        "delete chain inet wigglenet outward-ipv6",
      ],
    ],
    [
      "another own pod CIDR: no rule changes",
      { ownPodCidrs: ["10.2.0.0/24", "fd00:1::/64"] },
      settled(),
      [
        "flush set inet wigglenet own-ipv4",
        "add set inet wigglenet own-ipv4 { type ipv4_addr; flags interval; elements = { 10.2.0.0/24 }; }",
      ],
    ],
    [
      "a chain was flushed",
      ipv4,
      {
        ...settled(ipv4),
        chains: {
          ...settled(ipv4).chains,
          "srcnat-ipv4": { spec: "", rules: [] },
        },
      },
      rules(ipv4, "srcnat-ipv4"),
    ],
  ])("%s", (_, tweak, observed, expected) => {
    expect(lines(desired(tweak), observed)).toEqual(expected);
  });

  const without = <T>(all: Record<string, T>, name: string): Record<string, T> =>
    Object.fromEntries(Object.entries(all).filter(([each]) => each !== name));
  const there = settled();
  const more = { spec: "type ipv4_addr", elements: [] };
  const accept = { form: "[]", handle: 7 };
  test.each<[title: string, observed: ObservedRuleset, lines: string[]]>([
    [
      "a set less, as after an upgrade",
      { ...there, sets: without(there.sets, "hosts-ipv4") },
      ["add set inet wigglenet hosts-ipv4 { type ipv4_addr; }"],
    ],
    ["a set more", { ...there, sets: { ...there.sets, extra: more } }, ["delete set inet wigglenet extra"]],
    [
      "a map more, and the chain that it leads to",
      {
        ...there,
        maps: { extra: { spec: "type ipv4_addr : verdict", elements: ["10.1.0.2 : jump theirs"] } },
        chains: { ...there.chains, theirs: { spec: "", rules: [accept] } },
      },
      [
        "flush chain inet wigglenet theirs",
        "delete map inet wigglenet extra",
        "delete chain inet wigglenet theirs",
      ],
    ],
    [
      "a chain more, and a rule that leads to it",
      {
        ...there,
        chains: {
          ...there.chains,
          theirs: { spec: "type filter hook forward priority 5; policy drop", rules: [] },
          input: { ...there.chains.input!, rules: [accept, ...there.chains.input!.rules] },
        },
      },
      [
        "delete rule inet wigglenet input handle 7",
        "flush chain inet wigglenet theirs",
        "delete chain inet wigglenet theirs",
      ],
    ],
    [
      "a chain less: it is there before the rules that lead to it",
      {
        ...there,
        chains: {
          ...without(there.chains, "input-ipv6"),
          input: { ...there.chains.input!, rules: there.chains.input!.rules.slice(0, 1) },
        },
      },
      ["add chain inet wigglenet input-ipv6", ...rules({}, "input").slice(1), ...rules({}, "input-ipv6")],
    ],
    [
      "rules that were made since the table was listed have no handle: their chain is filled anew",
      {
        ...there,
        chains: { ...there.chains, "input-ipv4": { spec: "", rules: [{ ...accept, handle: undefined }] } },
      },
      ["flush chain inet wigglenet input-ipv4", ...rules({}, "input-ipv4")],
    ],
  ])("single objects: %s", (_, observed, expected) => {
    expect(lines(desired(), observed)).toEqual(expected);
  });

  test.each<[title: string, observed: ObservedRuleset]>([
    [
      "a set of another type",
      { ...there, sets: { ...there.sets, "own-ipv4": { spec: "type ipv4_addr", elements: [] } } },
    ],
    [
      "a policy of drop",
      {
        ...there,
        chains: {
          ...there.chains,
          srcnat: { spec: "type nat hook postrouting priority 100; policy drop", rules: [] },
        },
      },
    ],
    [
      "a base chain where a regular one is ours",
      {
        ...there,
        chains: {
          ...there.chains,
          "input-ipv4": { spec: "type filter hook input priority 9; policy accept", rules: [] },
        },
      },
    ],
    ["a counter", { ...there, others: ["counter"] }],
  ])("what cannot be changed is made anew, in one transaction: %s", (_, observed) => {
    expect(lines(desired(), observed)).toEqual([
      "delete table inet wigglenet",
      ...lines(desired(), undefined),
    ]);
  });

  const flowtable = { devices: ["eth0"], packets: 9 };
  const elsewhere = "ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4";
  const offload = "ct state established,related ip saddr @own-ipv4 ct packets > 9 flow add @fastpath";
  const offloading = ["tunnelled", "from-pods-ipv4", "from-pods-ipv6"];
  test("flows are offloaded: a flow table comes before the rules that name it, and goes after them", () => {
    const all = lines(desired({ flowtable }), settled());
    expect(all[0]).toBe("add flowtable inet wigglenet fastpath { hook ingress priority 0; }");
    const made = rules({ flowtable }, "from-pods-ipv4").filter((line) => line.includes("@fastpath"));
    expect(made.map(textOf)).toEqual([
      `oifname "wigglenet" ${offload}`,
      `oifname "veth*" ${offload.replace("ct packets", `ip daddr @own-ipv4 ${elsewhere} ct packets`)}`,
      offload.replace("ct packets", `${elsewhere} ct packets`),
    ]);
    expect(rules({ flowtable }, "tunnelled").map(textOf)[0]).toBe(
      'iifname "veth*" oifname "wigglenet" ct state established,related ct packets > 9 flow add @fastpath',
    );
    expect(diffRuleset(desired({ flowtable }), settled({ flowtable }))).toEqual([]);
    const off = lines(desired(), settled({ flowtable }));
    expect(off.at(-1)).toBe("delete flowtable inet wigglenet fastpath");
    expect(off.filter((line) => line.includes("fastpath"))).toEqual(off.slice(-1));
  });

  test("another address is a node's: what was offloaded to it is looked at again, in the same transaction", () => {
    const settings = { flowtable, nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] };
    expect(lines(desired(settings), settled({ flowtable }))).toEqual([
      ...offloading.map((chain) => `flush chain inet wigglenet ${chain}`),
      "delete flowtable inet wigglenet fastpath",
      "add flowtable inet wigglenet fastpath { hook ingress priority 0; }",
      "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.2 }; }",
      ...offloading.flatMap((chain) => rules(settings, chain)),
    ]);
    expect(lines(desired({ flowtable }), settled(settings))).toEqual([
      "flush set inet wigglenet nodes-ipv4",
      "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }",
    ]);
  });

  test("other rules at forward: what the earlier ones let be offloaded passes the new ones", () => {
    const observed = settled({ flowtable });
    observed.chains["guards-ipv4"]!.rules.splice(3);
    expect(lines(desired({ flowtable }), observed)).toEqual([
      ...offloading.map((chain) => `flush chain inet wigglenet ${chain}`),
      "delete flowtable inet wigglenet fastpath",
      "add flowtable inet wigglenet fastpath { hook ingress priority 0; }",
      ...rules({ flowtable }, "tunnelled"),
      ...rules({ flowtable }, "guards-ipv4").slice(3),
      ...["from-pods-ipv4", "from-pods-ipv6"].flatMap((chain) => rules({ flowtable }, chain)),
    ]);
  });

  test("5,000 nodes are one transaction, and one more is one line", () => {
    const nodes = Array.from({ length: 5_000 }, (_, n) => `172.16.${n >> 8}.${n & 255}`);
    expect(diffRuleset(desired({ nodes }), undefined)).toHaveLength(1);
    const one = lines(desired({ nodes: [...nodes, "192.0.2.1"] }), settled({ nodes }));
    expect(one).toEqual(["add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }"]);
  });
});
