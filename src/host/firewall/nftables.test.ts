import { describe, expect, test } from "bun:test";
import { nodeReader } from "../executor.ts";
import listed from "../recorded/nft-table.txt";
import edited from "../recorded/nft-table-edited.txt";
import { desired, lines } from "./fixtures/nftables.ts";
import { diffDevices, parseDevices } from "./flowtable.ts";
import { diffRuleset, settledRuleset } from "./nftables.ts";
import { type ObservedRuleset, parseRuleset, recount } from "./nftlisting.ts";

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
    add chain inet wigglenet prerouting-ipv4
    add chain inet wigglenet prerouting-ipv6
    add chain inet wigglenet input { type filter hook input priority 0; policy accept; }
    add chain inet wigglenet input-ipv4
    add chain inet wigglenet input-ipv6
    add chain inet wigglenet forward { type filter hook forward priority 0; policy accept; }
    add chain inet wigglenet postrouting { type filter hook postrouting priority -150; policy accept; }
    add chain inet wigglenet postrouting-ipv4
    add chain inet wigglenet postrouting-ipv6
    add chain inet wigglenet srcnat { type nat hook postrouting priority 100; policy accept; }
    add chain inet wigglenet srcnat-ipv4
    add chain inet wigglenet srcnat-ipv6
    add chain inet wigglenet from-own-ipv4
    add chain inet wigglenet from-own-ipv6
    add chain inet wigglenet tunnelled
    add chain inet wigglenet tunnelled-ipv4
    add chain inet wigglenet tunnelled-ipv6
    add chain inet wigglenet guards
    add chain inet wigglenet guards-ipv4
    add chain inet wigglenet guards-ipv6
    add chain inet wigglenet from-pods
    add chain inet wigglenet from-pods-ipv4
    add chain inet wigglenet from-pods-ipv6
    add chain inet wigglenet outward-ipv4
    add chain inet wigglenet outward-ipv6
    add chain inet wigglenet from-tunnel
    add chain inet wigglenet from-tunnel-ipv4
    add chain inet wigglenet from-tunnel-ipv6
    add chain inet wigglenet to-nodes-ipv4
    add chain inet wigglenet to-nodes-ipv6
    add rule inet wigglenet prerouting iifname != "veth*" accept
    add rule inet wigglenet prerouting meta nfproto ipv4 goto prerouting-ipv4
    add rule inet wigglenet prerouting meta nfproto ipv6 goto prerouting-ipv6
    add rule inet wigglenet prerouting-ipv4 ip saddr @own-ipv4 goto from-own-ipv4
    add rule inet wigglenet prerouting-ipv4 fib saddr . iif oif missing counter drop
    add rule inet wigglenet prerouting-ipv6 ip6 saddr @own-ipv6 goto from-own-ipv6
    add rule inet wigglenet prerouting-ipv6 ip6 saddr fe80::/10 accept
    add rule inet wigglenet prerouting-ipv6 ip6 saddr ::/128 accept
    add rule inet wigglenet prerouting-ipv6 fib saddr . iif oif missing counter drop
    add rule inet wigglenet input iifname "lo" accept
    add rule inet wigglenet input iifname "veth*" accept
    add rule inet wigglenet input meta nfproto ipv4 goto input-ipv4
    add rule inet wigglenet input meta nfproto ipv6 goto input-ipv6
    add rule inet wigglenet input-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input-ipv4 iifname "wigglenet" accept
    add rule inet wigglenet input-ipv4 ip saddr @unencrypted-ipv4 accept
    add rule inet wigglenet input-ipv4 ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet input-ipv6 icmpv6 type { 133, 134, 135, 136, 137 } accept
    add rule inet wigglenet input-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet input-ipv6 iifname "wigglenet" accept
    add rule inet wigglenet input-ipv6 ip6 saddr @unencrypted-ipv6 accept
    add rule inet wigglenet input-ipv6 ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet forward ct mark & 0x2000000 != 0 goto tunnelled
    add rule inet wigglenet forward goto guards
    add rule inet wigglenet postrouting oifname "wigglenet" accept
    add rule inet wigglenet postrouting meta nfproto ipv4 goto postrouting-ipv4
    add rule inet wigglenet postrouting meta nfproto ipv6 goto postrouting-ipv6
    add rule inet wigglenet postrouting-ipv4 oifname "veth*" ip daddr @own-ipv4 accept
    add rule inet wigglenet postrouting-ipv4 ip daddr @remote-ipv4 ip daddr != @hosts-ipv4 counter drop
    add rule inet wigglenet postrouting-ipv4 ip daddr @nodes-ipv4 goto to-nodes-ipv4
    add rule inet wigglenet postrouting-ipv6 oifname "veth*" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet postrouting-ipv6 ip6 daddr @remote-ipv6 ip6 daddr != @hosts-ipv6 counter drop
    add rule inet wigglenet postrouting-ipv6 ip6 daddr @nodes-ipv6 goto to-nodes-ipv6
    add rule inet wigglenet srcnat meta nfproto ipv4 goto srcnat-ipv4
    add rule inet wigglenet srcnat meta nfproto ipv6 goto srcnat-ipv6
    add rule inet wigglenet srcnat-ipv4 ct status & dnat != 0 ip saddr @remote-ipv4 ip daddr != @own-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ct status & dnat != 0 ip6 saddr @remote-ipv6 ip6 daddr != @own-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random
    add rule inet wigglenet srcnat-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 masquerade fully-random
    add rule inet wigglenet from-own-ipv4 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv4 ct direction original ct status & snat != 0 ct reply ip daddr @own-ipv4 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv4 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction original ct status & snat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction original ct status & snat != 0 ct reply ip6 daddr @own-ipv6 meta mark set meta mark or 0x1000000
    add rule inet wigglenet from-own-ipv6 ct direction reply ct status & dnat == 0 meta mark set meta mark or 0x1000000
    add rule inet wigglenet tunnelled iifname "veth*" oifname "wigglenet" ct state established accept
    add rule inet wigglenet tunnelled meta nfproto ipv4 goto tunnelled-ipv4
    add rule inet wigglenet tunnelled meta nfproto ipv6 goto tunnelled-ipv6
    add rule inet wigglenet tunnelled-ipv4 iifname "wigglenet" oifname "veth*" ct state established ip daddr @own-ipv4 accept
    add rule inet wigglenet tunnelled-ipv4 iifname "veth*" oifname != "wigglenet" ct direction original ct reply ip daddr @own-ipv4 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet tunnelled-ipv4 iifname "veth*" oifname != "wigglenet" ct direction reply ct status & dnat == 0 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet tunnelled-ipv4 goto guards
    add rule inet wigglenet tunnelled-ipv6 iifname "wigglenet" oifname "veth*" ct state established ip6 daddr @own-ipv6 accept
    add rule inet wigglenet tunnelled-ipv6 iifname "veth*" oifname != "wigglenet" ct direction original ct reply ip6 daddr @own-ipv6 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet tunnelled-ipv6 iifname "veth*" oifname != "wigglenet" ct direction reply ct status & dnat == 0 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet tunnelled-ipv6 goto guards
    add rule inet wigglenet guards iifname "veth*" goto from-pods
    add rule inet wigglenet guards iifname "wigglenet" goto from-tunnel
    add rule inet wigglenet guards meta nfproto ipv4 goto guards-ipv4
    add rule inet wigglenet guards meta nfproto ipv6 goto guards-ipv6
    add rule inet wigglenet guards-ipv4 ip saddr @remote-ipv4 ip saddr != @hosts-ipv4 ip saddr != @unencrypted-ipv4 counter drop
    add rule inet wigglenet guards-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet guards-ipv4 ct state established,related accept
    add rule inet wigglenet guards-ipv4 ct status & dnat != 0 accept
    add rule inet wigglenet guards-ipv4 ip daddr @own-ipv4 counter drop
    add rule inet wigglenet guards-ipv6 ip6 saddr @remote-ipv6 ip6 saddr != @hosts-ipv6 ip6 saddr != @unencrypted-ipv6 counter drop
    add rule inet wigglenet guards-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet guards-ipv6 ct state established,related accept
    add rule inet wigglenet guards-ipv6 ct status & dnat != 0 accept
    add rule inet wigglenet guards-ipv6 icmpv6 type { 1, 2, 3, 4, 128, 129 } accept
    add rule inet wigglenet guards-ipv6 ip6 daddr @own-ipv6 counter drop
    add rule inet wigglenet from-pods oifname "wigglenet" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet from-pods oifname "wigglenet" accept
    add rule inet wigglenet from-pods meta nfproto ipv4 goto from-pods-ipv4
    add rule inet wigglenet from-pods meta nfproto ipv6 goto from-pods-ipv6
    add rule inet wigglenet from-pods-ipv4 oifname "veth*" ip daddr @own-ipv4 accept
    add rule inet wigglenet from-pods-ipv4 ct state invalid,untracked jump outward-ipv4
    add rule inet wigglenet from-pods-ipv4 ct direction original ct status & 0x18 == 0x8 jump outward-ipv4
    add rule inet wigglenet from-pods-ipv6 oifname "veth*" ip6 daddr @own-ipv6 accept
    add rule inet wigglenet from-pods-ipv6 ct state invalid,untracked jump outward-ipv6
    add rule inet wigglenet from-pods-ipv6 ct direction original ct status & 0x18 == 0x8 jump outward-ipv6
    add rule inet wigglenet outward-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr != @own-ipv4 ip daddr != @remote-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet outward-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 ip daddr @hosts-ipv4 ip daddr != @nodes-ipv4 ip daddr != @keep-ipv4 counter drop
    add rule inet wigglenet outward-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr != @own-ipv6 ip6 daddr != @remote-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet outward-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 ip6 daddr @hosts-ipv6 ip6 daddr != @nodes-ipv6 ip6 daddr != @keep-ipv6 counter drop
    add rule inet wigglenet from-tunnel meta nfproto ipv4 goto from-tunnel-ipv4
    add rule inet wigglenet from-tunnel meta nfproto ipv6 goto from-tunnel-ipv6
    add rule inet wigglenet from-tunnel-ipv4 ip saddr @own-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 oifname "wigglenet" accept
    add rule inet wigglenet from-tunnel-ipv4 ct status & dnat == 0 ct reply ip daddr != @own-ipv4 ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 ct state invalid,untracked ip daddr != @own-ipv4 counter drop
    add rule inet wigglenet from-tunnel-ipv4 oifname "veth*" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet from-tunnel-ipv6 ip6 saddr @own-ipv6 ip6 saddr != @hosts-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 oifname "wigglenet" accept
    add rule inet wigglenet from-tunnel-ipv6 ct status & dnat == 0 ct reply ip6 daddr != @own-ipv6 ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 ct state invalid,untracked ip6 daddr != @own-ipv6 counter drop
    add rule inet wigglenet from-tunnel-ipv6 oifname "veth*" ct mark & 0x2000000 == 0 ct state established,new ct mark set ct mark or 0x2000000
    add rule inet wigglenet to-nodes-ipv4 ip saddr != @own-ipv4 accept
    add rule inet wigglenet to-nodes-ipv4 ct direction reply ct status & dnat != 0 accept
    add rule inet wigglenet to-nodes-ipv4 ct direction original ct reply ip daddr != @own-ipv4 counter accept
    add rule inet wigglenet to-nodes-ipv4 ip saddr != @hosts-ipv4 counter drop
    add rule inet wigglenet to-nodes-ipv6 ip6 saddr != @own-ipv6 accept
    add rule inet wigglenet to-nodes-ipv6 ct direction reply ct status & dnat != 0 accept
    add rule inet wigglenet to-nodes-ipv6 ct direction original ct reply ip6 daddr != @own-ipv6 counter accept
    add rule inet wigglenet to-nodes-ipv6 ip6 saddr != @hosts-ipv6 counter drop"
  `);
});

/** By which the listed rules differ from those that were just made. */
function withoutHandles(observed: ObservedRuleset): ObservedRuleset {
  const chains = Object.entries(observed.chains).map(([name, { spec, rules }]) => [
    name,
    { spec, rules: rules.map(({ form }) => ({ form, handle: undefined })) },
  ]);
  return { ...observed, chains: Object.fromEntries(chains) };
}

describe("what nft listed", () => {
  test("of what was loaded: nothing is left to do", () => {
    expect(withoutHandles(parseRuleset(listed)!)).toEqual({
      ...settledRuleset(desired()),
      passed: 0,
      counting: ["to-nodes-ipv4", "to-nodes-ipv6"],
    });
    expect(diffRuleset(desired(), parseRuleset(listed))).toEqual([]);
  });

  test("packets that were counted as they passed, of both families, and not those that were dropped", () => {
    const counted = listed
      .replaceAll(/("packets": )0(, "bytes": 0}}, {"accept")/g, "$17$2")
      .replaceAll('"packets": 0', '"packets": 100');
    expect(parseRuleset(counted)?.passed).toBe(7 + 7);
  });

  test("packets that were counted since are read of their chains alone", async () => {
    const { nftables } = JSON.parse(listed.replaceAll('"packets": 0', '"packets": 7')) as {
      nftables: { table?: object; rule?: { chain: string } }[];
    };
    const asked: string[] = [];
    const reader = {
      ...nodeReader,
      // As nft lists a chain: without its table.
      $: async (_: TemplateStringsArray, ...[, chain]: unknown[]) => {
        asked.push(String(chain));
        return JSON.stringify({ nftables: nftables.filter(({ rule }) => rule?.chain === chain) });
      },
    };
    const known = parseRuleset(listed)!;
    expect(await recount(reader, known)).toEqual({ ...known, passed: 7 + 7 });
    expect(asked).toEqual(["to-nodes-ipv4", "to-nodes-ipv6"]);
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
    const observed = parseRuleset(edited)!;
    expect(observed.sets["remote-ipv4"]?.elements).toContain("10.9.0.5-10.9.0.9");
    expect(observed.sets["nodes-ipv4"]?.elements).toContain("192.0.2.9");
    expect(observed.chains.prerouting?.spec).toBe("type filter hook prerouting priority -90; policy drop");
    expect(observed.chains.prerouting?.rules).toHaveLength(4);
    expect(observed.maps.theirs?.spec).toBe("type ipv4_addr : verdict");
    expect(observed.others).toEqual(["counter"]);
    const [first, ...rest] = lines(desired(), observed);
    expect(first).toBe("delete table inet wigglenet");
    expect(rest).toEqual(lines(desired(), undefined));
  });
});

test("what nft lists of a flow table, with and without devices", () => {
  const listing = (...entries: object[]) =>
    JSON.stringify({ nftables: [{ metainfo: {} }, { table: {} }, ...entries] });
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
      maps: {},
      chains: {},
      others: [],
      passed: 0,
      counting: [],
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
