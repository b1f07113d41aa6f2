import { describe, expect, test } from "bun:test";
import { type FirewallInput, firewall } from "../../plan/firewall/firewall.ts";
import { loaded } from "../recorded/loaded.ts";
import listed from "../recorded/nft-table.txt";
import edited from "../recorded/nft-table-edited.txt";
import { diffDevices, parseDevices } from "./flowtable.ts";
import {
  diffRuleset,
  type ObservedRuleset,
  parseRuleset,
  type Ruleset,
  ruleset,
  settledRuleset,
} from "./nftables.ts";

type Tweak = Partial<FirewallInput>;

/** What was loaded when `recorded/nft-table.txt` was listed. */
function desired(tweak: Tweak = {}): Ruleset {
  return ruleset(firewall(loaded(tweak)));
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
  expect(lines(desired(), undefined).join("\n")).toMatchInlineSnapshot(`
    "add table inet wigglenet
    add set inet wigglenet own-ipv4 { type ipv4_addr; flags interval; elements = { 10.1.0.0/24 }; }
    add set inet wigglenet own-ipv6 { type ipv6_addr; flags interval; elements = { fd00:1::/64 }; }
    add set inet wigglenet remote-ipv4 { type ipv4_addr; flags interval; elements = { 10.1.1.0/24, 10.1.2.7 }; }
    add set inet wigglenet remote-ipv6 { type ipv6_addr; flags interval; elements = { fd00:1:0:1::/64 }; }
    add set inet wigglenet hosts-ipv4 { type ipv4_addr; }
    add set inet wigglenet hosts-ipv6 { type ipv6_addr; }
    add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }
    add set inet wigglenet nodes-ipv6 { type ipv6_addr; elements = { 2001:db8::1 }; }
    add set inet wigglenet native-ipv4 { type ipv4_addr; }
    add set inet wigglenet native-ipv6 { type ipv6_addr; }
    add set inet wigglenet unencrypted-ipv4 { type ipv4_addr; flags interval; elements = { 10.1.1.0/24 }; }
    add set inet wigglenet unencrypted-ipv6 { type ipv6_addr; flags interval; }
    add set inet wigglenet keep-ipv4 { type ipv4_addr; flags interval; elements = { 172.20.0.0/16 }; }
    add set inet wigglenet keep-ipv6 { type ipv6_addr; flags interval; elements = { 2001:db8:9::9 }; }
    add chain inet wigglenet prerouting { type filter hook prerouting priority -90; policy accept; }
    add rule inet wigglenet prerouting meta nfproto ipv4 iifname "veth*" ip saddr != @own-ipv4 fib saddr . iif oif missing counter drop
    add rule inet wigglenet prerouting meta nfproto ipv4 ct direction original ct reply ip daddr @own-ipv4 ip saddr @own-ipv4 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting meta nfproto ipv4 ct direction reply ct status & dnat == 0 ip saddr @own-ipv4 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting meta nfproto ipv6 iifname "veth*" ip6 saddr fe80::/10 accept
    add rule inet wigglenet prerouting meta nfproto ipv6 iifname "veth*" ip6 saddr ::/128 accept
    add rule inet wigglenet prerouting meta nfproto ipv6 iifname "veth*" ip6 saddr != @own-ipv6 fib saddr . iif oif missing counter drop
    add rule inet wigglenet prerouting meta nfproto ipv6 ct direction original ct reply ip6 daddr @own-ipv6 ip6 saddr @own-ipv6 meta mark set meta mark or 0x1000000
    add rule inet wigglenet prerouting meta nfproto ipv6 ct direction reply ct status & dnat == 0 ip6 saddr @own-ipv6 meta mark set meta mark or 0x1000000
    add chain inet wigglenet input { type filter hook input priority 0; policy accept; }
    add rule inet wigglenet input meta nfproto ipv4 iifname "lo" accept
    add rule inet wigglenet input meta nfproto ipv4 iifname != "veth*" ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input meta nfproto ipv4 ip saddr @unencrypted-ipv4 accept
    add rule inet wigglenet input meta nfproto ipv4 iifname != "wigglenet" ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input meta nfproto ipv6 iifname "lo" accept
    add rule inet wigglenet input meta nfproto ipv6 icmpv6 type 133 accept
    add rule inet wigglenet input meta nfproto ipv6 icmpv6 type 134 accept
    add rule inet wigglenet input meta nfproto ipv6 icmpv6 type 135 accept
    add rule inet wigglenet input meta nfproto ipv6 icmpv6 type 136 accept
    add rule inet wigglenet input meta nfproto ipv6 icmpv6 type 137 accept
    add rule inet wigglenet input meta nfproto ipv6 iifname != "veth*" ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet input meta nfproto ipv6 ip6 saddr @unencrypted-ipv6 accept
    add rule inet wigglenet input meta nfproto ipv6 iifname != "wigglenet" ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add chain inet wigglenet forward { type filter hook forward priority 0; policy accept; }
    add rule inet wigglenet forward meta nfproto ipv4 iifname != "wigglenet" ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 ip saddr != @unencrypted-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 iifname != "veth*" ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" oifname "wigglenet" ct mark & 0x2000000 == 0 ct state new,established ct mark set ct mark or 0x2000000
    add rule inet wigglenet forward meta nfproto ipv4 iifname "wigglenet" oifname "veth*" ct mark & 0x2000000 == 0 ct state new,established ct mark set ct mark or 0x2000000
    add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" oifname != "wigglenet" ct mark & 0x2000000 != 0 ct direction original ct reply ip daddr @own-ipv4 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" oifname != "wigglenet" ct mark & 0x2000000 != 0 ct direction reply ct status & dnat == 0 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 oifname != "wigglenet" ct state invalid,untracked ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 oifname != "wigglenet" ct state invalid,untracked ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 oifname != "wigglenet" ct direction original ct status & 0x18 == 0x8 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 oifname != "wigglenet" ct direction original ct status & 0x18 == 0x8 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv4 ct state established,related ip daddr @own-ipv4 accept
    add rule inet wigglenet forward meta nfproto ipv4 ct status & dnat != 0 ip daddr @own-ipv4 accept
    add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" ip daddr @own-ipv4 accept
    add rule inet wigglenet forward meta nfproto ipv4 iifname "wigglenet" ip daddr @own-ipv4 accept
    add rule inet wigglenet forward meta nfproto ipv4 ip daddr @own-ipv4 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 iifname != "wigglenet" ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 ip6 saddr != @unencrypted-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 iifname != "veth*" ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 iifname "veth*" oifname "wigglenet" ct mark & 0x2000000 == 0 ct state new,established ct mark set ct mark or 0x2000000
    add rule inet wigglenet forward meta nfproto ipv6 iifname "wigglenet" oifname "veth*" ct mark & 0x2000000 == 0 ct state new,established ct mark set ct mark or 0x2000000
    add rule inet wigglenet forward meta nfproto ipv6 iifname "veth*" oifname != "wigglenet" ct mark & 0x2000000 != 0 ct direction original ct reply ip6 daddr @own-ipv6 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 iifname "veth*" oifname != "wigglenet" ct mark & 0x2000000 != 0 ct direction reply ct status & dnat == 0 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 oifname != "wigglenet" ct state invalid,untracked ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 oifname != "wigglenet" ct state invalid,untracked ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 oifname != "wigglenet" ct direction original ct status & 0x18 == 0x8 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 oifname != "wigglenet" ct direction original ct status & 0x18 == 0x8 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet forward meta nfproto ipv6 ct state established,related ip6 daddr @own-ipv6 accept
    add rule inet wigglenet forward meta nfproto ipv6 ct status & dnat != 0 ip6 daddr @own-ipv6 accept
    add rule inet wigglenet forward meta nfproto ipv6 iifname "veth*" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 1 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 2 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 3 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 4 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 128 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 icmpv6 type 129 accept
    add rule inet wigglenet forward meta nfproto ipv6 iifname "wigglenet" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet forward meta nfproto ipv6 ip6 daddr @own-ipv6 counter drop
    add chain inet wigglenet postrouting { type filter hook postrouting priority -150; policy accept; }
    add rule inet wigglenet postrouting meta nfproto ipv4 oifname != "wigglenet" ip daddr @remote-ipv4 ip daddr != @hosts-ipv4 counter drop
    add rule inet wigglenet postrouting meta nfproto ipv4 oifname != "wigglenet" ct direction reply ct status & dnat != 0 ip saddr @own-ipv4 ip daddr @nodes-ipv4 accept
    add rule inet wigglenet postrouting meta nfproto ipv4 oifname != "wigglenet" ct direction original ct reply ip daddr != @own-ipv4 ip saddr @own-ipv4 ip daddr @nodes-ipv4 counter accept
    add rule inet wigglenet postrouting meta nfproto ipv4 oifname != "wigglenet" ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @nodes-ipv4 counter drop
    add rule inet wigglenet postrouting meta nfproto ipv6 oifname != "wigglenet" ip6 daddr @remote-ipv6 ip6 daddr != @hosts-ipv6 counter drop
    add rule inet wigglenet postrouting meta nfproto ipv6 oifname != "wigglenet" ct direction reply ct status & dnat != 0 ip6 saddr @own-ipv6 ip6 daddr @nodes-ipv6 accept
    add rule inet wigglenet postrouting meta nfproto ipv6 oifname != "wigglenet" ct direction original ct reply ip6 daddr != @own-ipv6 ip6 saddr @own-ipv6 ip6 daddr @nodes-ipv6 counter accept
    add rule inet wigglenet postrouting meta nfproto ipv6 oifname != "wigglenet" ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @nodes-ipv6 counter drop
    add chain inet wigglenet srcnat { type nat hook postrouting priority 100; policy accept; }
    add rule inet wigglenet srcnat meta nfproto ipv4 ct status & dnat != 0 ip saddr @remote-ipv4 ip daddr != @own-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat meta nfproto ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat meta nfproto ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat meta nfproto ipv6 ct status & dnat != 0 ip6 saddr @remote-ipv6 ip6 daddr != @own-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat meta nfproto ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat meta nfproto ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random"
  `);
});

describe("what nft listed", () => {
  test("of what was loaded: nothing is left to do", () => {
    expect(parseRuleset(listed)).toEqual({ ...settledRuleset(desired()), passed: 0 });
    expect(diffRuleset(desired(), parseRuleset(listed))).toEqual([]);
  });

  test("packets that were counted as they passed, of both families, and not those that were dropped", () => {
    const counted = listed
      .replaceAll(/("packets": )0(, "bytes": 0}}, {"accept")/g, "$17$2")
      .replaceAll('"packets": 0', '"packets": 100');
    expect(parseRuleset(counted).passed).toBe(7 + 7);
  });

  test("a rule that does something else under the same comment is another", () => {
    const observed = parseRuleset(listed.replace('{"drop": null}', '{"accept": null}'));
    expect(diffRuleset(desired(), observed)).not.toEqual([]);
  });

  test("the order of a listing is the kernel's", () => {
    const { nftables } = JSON.parse(listed);
    const [first, ...others] = nftables.filter((entry: object) => !("rule" in entry));
    const rules = nftables.filter((entry: object) => "rule" in entry);
    const shuffled = JSON.stringify({ nftables: [first, ...others.reverse(), ...rules] });
    expect(diffRuleset(desired(), parseRuleset(shuffled))).toEqual([]);
  });

  test("of one that was edited by hand: made anew in one transaction", () => {
    const observed = parseRuleset(edited);
    expect(observed.sets["remote-ipv4"]?.elements).toContain("10.9.0.5-10.9.0.9");
    expect(observed.sets["nodes-ipv4"]?.elements).toContain("192.0.2.9");
    expect(observed.chains.prerouting?.spec).toBe("type filter hook prerouting priority -90; policy drop");
    expect(observed.chains.prerouting?.fingerprints).toContain("");
    expect(observed.others).toEqual(["map"]);
    const [first, ...rest] = lines(desired(), observed);
    expect(first).toBe("delete table inet wigglenet");
    expect(rest).toEqual(lines(desired(), undefined));
  });
});

describe("desired and observed → transaction", () => {
  const settled = (tweak: Tweak = {}) => settledRuleset(desired(tweak));
  const rules = (settings: Tweak, chain = "forward") =>
    lines(desired(settings), undefined).filter((line) => line.includes(` wigglenet ${chain} meta`));
  const made = (chain: string, settings: Tweak) => [
    `flush chain inet wigglenet ${chain}`,
    ...rules(settings, chain),
  ];
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
    ["masquerade is switched off", off, settled(), [...made("forward", off), ...made("srcnat", off)]],
    [
      "of one family alone, and not at random: rules are replaced",
      other,
      settled(),
      [...made("forward", other), ...made("srcnat", other)],
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
          srcnat: { spec: "type nat hook postrouting priority 100; policy accept", fingerprints: [] },
        },
      },
      rules(ipv4, "srcnat"),
    ],
  ])("%s", (_, tweak, observed, expected) => {
    expect(lines(desired(tweak), observed)).toEqual(expected);
  });

  const structure = settled();
  test.each<[title: string, observed: ObservedRuleset]>([
    [
      "a set of another type",
      { ...structure, sets: { ...structure.sets, "own-ipv4": { spec: "type ipv4_addr", elements: [] } } },
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
          srcnat: { spec: "type nat hook postrouting priority 100; policy drop", fingerprints: [] },
        },
      },
    ],
    ["a map", { ...structure, others: ["map"] }],
  ])("another structure is made anew: %s", (_, observed) => {
    expect(lines(desired(), observed)).toEqual([
      "delete table inet wigglenet",
      ...lines(desired(), undefined),
    ]);
  });

  const flowtable = { devices: ["eth0"], packets: 9 };
  const offload = "ct state established,related ip saddr @own-ipv4 ct packets > 9 flow add @fastpath";
  test("flows are offloaded: the table is made anew, with a flow table before the rules that name it", () => {
    const all = lines(desired({ flowtable }), settled());
    expect(all.slice(0, 3)).toEqual([
      "delete table inet wigglenet",
      "add table inet wigglenet",
      "add flowtable inet wigglenet fastpath { hook ingress priority 0; }",
    ]);
    expect(all.filter((line) => line.includes("saddr @own-ipv4") && line.includes("@fastpath"))).toEqual([
      `add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" oifname "wigglenet" ${offload}`,
      `add rule inet wigglenet forward meta nfproto ipv4 iifname "veth*" ${offload.replace("ct packets", "ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ct packets")}`,
    ]);
    expect(diffRuleset(desired({ flowtable }), settled({ flowtable }))).toEqual([]);
    expect(lines(desired(), settled({ flowtable }))[0]).toBe("delete table inet wigglenet");
    expect(lines(desired(), settled({ flowtable }))).not.toContainEqual(expect.stringContaining("flowtable"));
  });

  test("another address is a node's: what was offloaded to it is looked at again, in the same transaction", () => {
    const settings = { flowtable, nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] };
    expect(lines(desired(settings), settled({ flowtable }))).toEqual([
      "flush chain inet wigglenet forward",
      "delete flowtable inet wigglenet fastpath",
      "add flowtable inet wigglenet fastpath { hook ingress priority 0; }",
      "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.2 }; }",
      ...rules(settings),
    ]);
    expect(lines(desired({ flowtable }), settled(settings))).toEqual([
      "flush set inet wigglenet nodes-ipv4",
      "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }",
    ]);
  });

  test("other rules at forward: what the earlier ones let be offloaded passes the new ones", () => {
    const observed = settled({ flowtable });
    observed.chains.forward!.fingerprints.splice(3, 1);
    expect(lines(desired({ flowtable }), observed)).toEqual([
      "flush chain inet wigglenet forward",
      "delete flowtable inet wigglenet fastpath",
      "add flowtable inet wigglenet fastpath { hook ingress priority 0; }",
      ...rules({ flowtable }),
    ]);
    expect(lines(desired(), settled({ filter: { ipv4: false, ipv6: false } }))[0]).toBe(
      "flush chain inet wigglenet forward",
    );
  });

  test("what nft lists of a flow table, with and without devices", () => {
    const listing = (...entries: object[]) => JSON.stringify({ nftables: [{ metainfo: {} }, ...entries] });
    const listed = {
      family: "inet",
      name: "fastpath",
      table: "wigglenet",
      handle: 1,
      hook: "ingress",
      prio: 0,
    };
    for (const dev of [undefined, "eth0", ["eth0", "veth1"]]) {
      const observed = parseRuleset(listing({ flowtable: { ...listed, ...(dev && { dev }) } }));
      expect(observed).toEqual({
        flowtables: { fastpath: "hook ingress priority 0" },
        sets: {},
        chains: {},
        others: [],
        passed: 0,
      });
      expect(parseDevices(listing({ flowtable: { ...listed, ...(dev && { dev }) } }))).toEqual(
        dev === undefined ? [] : [dev].flat(),
      );
    }
  });

  test("devices of a flow table", () => {
    const change = (desired: string[], present: string[]) =>
      diffDevices(desired, present).flatMap(({ stdin = "" }) => stdin.trimEnd().split("\n"));
    const line = (verb: string, devices: string) =>
      `${verb} flowtable inet wigglenet fastpath { hook ingress priority 0; devices = { ${devices} }; }`;
    expect(change(["eth0", "veth1"], [])).toEqual([line("add", '"eth0", "veth1"')]);
    expect(change(["eth0", "veth2"], ["veth1", "eth0"])).toEqual([
      line("add", '"veth2"'),
      line("delete", '"veth1"'),
    ]);
    expect(change(["eth0"], ["eth0"])).toEqual([]);
    // The kernel takes 255 in one message.
    const many = Array.from({ length: 300 }, (_, n) => `veth${n}`);
    expect(change(many, []).map((line) => line.match(/veth/g)?.length)).toEqual([128, 128, 44]);
  });

  test("5,000 nodes are one transaction, and one more is one line", () => {
    const nodes = Array.from({ length: 5_000 }, (_, n) => `172.16.${n >> 8}.${n & 255}`);
    expect(diffRuleset(desired({ nodes }), undefined)).toHaveLength(1);
    const one = lines(desired({ nodes: [...nodes, "192.0.2.1"] }), settled({ nodes }));
    expect(one).toEqual(["add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.1 }; }"]);
  });
});
