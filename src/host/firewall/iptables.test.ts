import { describe, expect, test } from "bun:test";
import { nodeReader } from "../executor.ts";
import listedSet from "../recorded/ipset-remote-ipv4.txt";
import listedLegacy from "../recorded/iptables-legacy-filter.txt";
import listedNft from "../recorded/iptables-nft-filter.txt";
import { accepting, text, wanted, wantedSets } from "./fixtures/iptables.ts";
import { diffSets, type ObservedSets, observeSets, parseSets } from "./ipset.ts";
import { diffChains, observeChains, parseChain, parsePassed, settledChains, variants } from "./iptables.ts";

describe("from nothing", () => {
  test("IPv4", () => {
    const ipv4 = diffChains("nft", wanted(), {}).filter(({ argv }) => argv[0] === "iptables-nft-restore");
    expect(text(ipv4)).toMatchInlineSnapshot(`
      "iptables-nft-restore --noflush -w 10
      *mangle
      :WIGGLENET-PREROUTING - [0:0]
      :WIGGLENET-POSTROUTING - [0:0]
      :WIGGLENET-FROM-OWN - [0:0]
      :WIGGLENET-TO-NODES - [0:0]
      -A WIGGLENET-PREROUTING ! -i veth+ -j RETURN
      -A WIGGLENET-PREROUTING -m set --match-set WIGGLENET-own-ipv4 src -g WIGGLENET-FROM-OWN
      -A WIGGLENET-PREROUTING -m rpfilter --invert -j DROP
      -A WIGGLENET-POSTROUTING -o wigglenet -j RETURN
      -A WIGGLENET-POSTROUTING -o veth+ -m set --match-set WIGGLENET-own-ipv4 dst -j RETURN
      -A WIGGLENET-POSTROUTING -m set --match-set WIGGLENET-remote-ipv4 dst -m set ! --match-set WIGGLENET-hosts-ipv4 dst -j DROP
      -A WIGGLENET-POSTROUTING -m set --match-set WIGGLENET-nodes-ipv4 dst -g WIGGLENET-TO-NODES
      -A WIGGLENET-FROM-OWN -m conntrack --ctdir ORIGINAL -m conntrack ! --ctstate SNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-FROM-OWN -m conntrack --ctrepldst 10.1.0.0/24 --ctdir ORIGINAL -m conntrack --ctstate SNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-FROM-OWN -m conntrack --ctdir REPLY -m conntrack ! --ctstate DNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-TO-NODES -m set ! --match-set WIGGLENET-own-ipv4 src -j RETURN
      -A WIGGLENET-TO-NODES -m conntrack --ctdir REPLY -m conntrack --ctstate DNAT -j RETURN
      -A WIGGLENET-TO-NODES -m conntrack ! --ctrepldst 10.1.0.0/24 --ctdir ORIGINAL -j RETURN
      -A WIGGLENET-TO-NODES -m set ! --match-set WIGGLENET-hosts-ipv4 src -j DROP
      -I PREROUTING 1 -j WIGGLENET-PREROUTING
      -I POSTROUTING 1 -j WIGGLENET-POSTROUTING
      COMMIT
      iptables-nft-restore --noflush -w 10
      *filter
      :WIGGLENET-INPUT - [0:0]
      :WIGGLENET-FILTER - [0:0]
      :WIGGLENET-TUNNELLED - [0:0]
      :WIGGLENET-GUARDS - [0:0]
      :WIGGLENET-FROM-PODS - [0:0]
      :WIGGLENET-OUTWARD - [0:0]
      :WIGGLENET-FROM-TUNNEL - [0:0]
      -A WIGGLENET-INPUT -i lo -j RETURN
      -A WIGGLENET-INPUT -i veth+ -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -j DROP
      -A WIGGLENET-INPUT -i wigglenet -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-unencrypted-ipv4 src -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-remote-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -j DROP
      -A WIGGLENET-FILTER -m connmark --mark 0x2000000/0x2000000 -g WIGGLENET-TUNNELLED
      -A WIGGLENET-FILTER -g WIGGLENET-GUARDS
      -A WIGGLENET-TUNNELLED -i veth+ -o wigglenet -m conntrack --ctstate ESTABLISHED -j RETURN
      -A WIGGLENET-TUNNELLED -i wigglenet -o veth+ -m conntrack --ctstate ESTABLISHED -m set --match-set WIGGLENET-own-ipv4 dst -j RETURN
      -A WIGGLENET-TUNNELLED -i veth+ ! -o wigglenet -m conntrack --ctrepldst 10.1.0.0/24 --ctdir ORIGINAL -m set ! --match-set WIGGLENET-own-ipv4 dst -j DROP
      -A WIGGLENET-TUNNELLED -i veth+ ! -o wigglenet -m conntrack --ctdir REPLY -m conntrack ! --ctstate DNAT -m set ! --match-set WIGGLENET-own-ipv4 dst -j DROP
      -A WIGGLENET-TUNNELLED -g WIGGLENET-GUARDS
      -A WIGGLENET-GUARDS -i veth+ -g WIGGLENET-FROM-PODS
      -A WIGGLENET-GUARDS -i wigglenet -g WIGGLENET-FROM-TUNNEL
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-remote-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -m set ! --match-set WIGGLENET-unencrypted-ipv4 src -j DROP
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -j DROP
      -A WIGGLENET-GUARDS -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
      -A WIGGLENET-GUARDS -m conntrack --ctstate DNAT -j RETURN
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-own-ipv4 dst -j DROP
      -A WIGGLENET-FROM-PODS -o wigglenet -m connmark ! --mark 0x2000000/0x2000000 -m conntrack --ctstate NEW,ESTABLISHED -j CONNMARK --set-xmark 0x2000000/0x2000000
      -A WIGGLENET-FROM-PODS -o wigglenet -j RETURN
      -A WIGGLENET-FROM-PODS -o veth+ -m set --match-set WIGGLENET-own-ipv4 dst -j RETURN
      -A WIGGLENET-FROM-PODS -m conntrack --ctstate INVALID,UNTRACKED -j WIGGLENET-OUTWARD
      -A WIGGLENET-FROM-PODS -m conntrack --ctdir ORIGINAL -m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT -j WIGGLENET-OUTWARD
      -A WIGGLENET-OUTWARD -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -m set ! --match-set WIGGLENET-own-ipv4 dst -m set ! --match-set WIGGLENET-remote-ipv4 dst -m set ! --match-set WIGGLENET-nodes-ipv4 dst -m set ! --match-set WIGGLENET-keep-ipv4 dst -j DROP
      -A WIGGLENET-OUTWARD -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -m set --match-set WIGGLENET-hosts-ipv4 dst -m set ! --match-set WIGGLENET-nodes-ipv4 dst -m set ! --match-set WIGGLENET-keep-ipv4 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -j DROP
      -A WIGGLENET-FROM-TUNNEL -o wigglenet -j RETURN
      -A WIGGLENET-FROM-TUNNEL -m conntrack ! --ctrepldst 10.1.0.0/24 -m conntrack ! --ctstate DNAT -m set ! --match-set WIGGLENET-own-ipv4 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -m conntrack --ctstate INVALID,UNTRACKED -m set ! --match-set WIGGLENET-own-ipv4 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -o veth+ -m connmark ! --mark 0x2000000/0x2000000 -m conntrack --ctstate NEW,ESTABLISHED -j CONNMARK --set-xmark 0x2000000/0x2000000
      -I INPUT 1 -j WIGGLENET-INPUT
      -I FORWARD 1 -j WIGGLENET-FILTER
      COMMIT
      iptables-nft-restore --noflush -w 10
      *nat
      :WIGGLENET-SRCNAT - [0:0]
      -A WIGGLENET-SRCNAT -m conntrack --ctstate DNAT -m set --match-set WIGGLENET-remote-ipv4 src -m set ! --match-set WIGGLENET-own-ipv4 dst -j MASQUERADE --random-fully
      -A WIGGLENET-SRCNAT -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -m set ! --match-set WIGGLENET-own-ipv4 dst -m set ! --match-set WIGGLENET-remote-ipv4 dst -m set ! --match-set WIGGLENET-nodes-ipv4 dst -m set ! --match-set WIGGLENET-keep-ipv4 dst -j MASQUERADE --random-fully
      -A WIGGLENET-SRCNAT -m set --match-set WIGGLENET-own-ipv4 src -m set ! --match-set WIGGLENET-hosts-ipv4 src -m set --match-set WIGGLENET-hosts-ipv4 dst -m set ! --match-set WIGGLENET-nodes-ipv4 dst -m set ! --match-set WIGGLENET-keep-ipv4 dst -j MASQUERADE --random-fully
      -I POSTROUTING 1 -j WIGGLENET-SRCNAT
      COMMIT
      "
    `);
  });

  test("IPv6", () => {
    const ipv6 = diffChains("legacy", wanted(), {}).filter(
      ({ argv }) => argv[0] === "ip6tables-legacy-restore",
    );
    expect(text(ipv6)).toMatchInlineSnapshot(`
      "ip6tables-legacy-restore --noflush -w 10
      *mangle
      :WIGGLENET-PREROUTING - [0:0]
      :WIGGLENET-POSTROUTING - [0:0]
      :WIGGLENET-FROM-OWN - [0:0]
      :WIGGLENET-TO-NODES - [0:0]
      -A WIGGLENET-PREROUTING ! -i veth+ -j RETURN
      -A WIGGLENET-PREROUTING -m set --match-set WIGGLENET-own-ipv6 src -g WIGGLENET-FROM-OWN
      -A WIGGLENET-PREROUTING -s fe80::/10 -j RETURN
      -A WIGGLENET-PREROUTING -s ::/128 -j RETURN
      -A WIGGLENET-PREROUTING -m rpfilter --invert -j DROP
      -A WIGGLENET-POSTROUTING -o wigglenet -j RETURN
      -A WIGGLENET-POSTROUTING -o veth+ -m set --match-set WIGGLENET-own-ipv6 dst -j RETURN
      -A WIGGLENET-POSTROUTING -m set --match-set WIGGLENET-remote-ipv6 dst -m set ! --match-set WIGGLENET-hosts-ipv6 dst -j DROP
      -A WIGGLENET-POSTROUTING -m set --match-set WIGGLENET-nodes-ipv6 dst -g WIGGLENET-TO-NODES
      -A WIGGLENET-FROM-OWN -m conntrack --ctdir ORIGINAL -m conntrack ! --ctstate SNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-FROM-OWN -m conntrack --ctrepldst fd00:1::/64 --ctdir ORIGINAL -m conntrack --ctstate SNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-FROM-OWN -m conntrack --ctdir REPLY -m conntrack ! --ctstate DNAT -j MARK --set-xmark 0x1000000/0x1000000
      -A WIGGLENET-TO-NODES -m set ! --match-set WIGGLENET-own-ipv6 src -j RETURN
      -A WIGGLENET-TO-NODES -m conntrack --ctdir REPLY -m conntrack --ctstate DNAT -j RETURN
      -A WIGGLENET-TO-NODES -m conntrack ! --ctrepldst fd00:1::/64 --ctdir ORIGINAL -j RETURN
      -A WIGGLENET-TO-NODES -m set ! --match-set WIGGLENET-hosts-ipv6 src -j DROP
      -I PREROUTING 1 -j WIGGLENET-PREROUTING
      -I POSTROUTING 1 -j WIGGLENET-POSTROUTING
      COMMIT
      ip6tables-legacy-restore --noflush -w 10
      *filter
      :WIGGLENET-INPUT - [0:0]
      :WIGGLENET-FILTER - [0:0]
      :WIGGLENET-TUNNELLED - [0:0]
      :WIGGLENET-GUARDS - [0:0]
      :WIGGLENET-FROM-PODS - [0:0]
      :WIGGLENET-OUTWARD - [0:0]
      :WIGGLENET-FROM-TUNNEL - [0:0]
      -A WIGGLENET-INPUT -i lo -j RETURN
      -A WIGGLENET-INPUT -i veth+ -j RETURN
      -A WIGGLENET-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 133 -j RETURN
      -A WIGGLENET-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 134 -j RETURN
      -A WIGGLENET-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j RETURN
      -A WIGGLENET-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 136 -j RETURN
      -A WIGGLENET-INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 137 -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -j DROP
      -A WIGGLENET-INPUT -i wigglenet -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-unencrypted-ipv6 src -j RETURN
      -A WIGGLENET-INPUT -m set --match-set WIGGLENET-remote-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -j DROP
      -A WIGGLENET-FILTER -m connmark --mark 0x2000000/0x2000000 -g WIGGLENET-TUNNELLED
      -A WIGGLENET-FILTER -g WIGGLENET-GUARDS
      -A WIGGLENET-TUNNELLED -i veth+ -o wigglenet -m conntrack --ctstate ESTABLISHED -j RETURN
      -A WIGGLENET-TUNNELLED -i wigglenet -o veth+ -m conntrack --ctstate ESTABLISHED -m set --match-set WIGGLENET-own-ipv6 dst -j RETURN
      -A WIGGLENET-TUNNELLED -i veth+ ! -o wigglenet -m conntrack --ctrepldst fd00:1::/64 --ctdir ORIGINAL -m set ! --match-set WIGGLENET-own-ipv6 dst -j DROP
      -A WIGGLENET-TUNNELLED -i veth+ ! -o wigglenet -m conntrack --ctdir REPLY -m conntrack ! --ctstate DNAT -m set ! --match-set WIGGLENET-own-ipv6 dst -j DROP
      -A WIGGLENET-TUNNELLED -g WIGGLENET-GUARDS
      -A WIGGLENET-GUARDS -i veth+ -g WIGGLENET-FROM-PODS
      -A WIGGLENET-GUARDS -i wigglenet -g WIGGLENET-FROM-TUNNEL
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-remote-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -m set ! --match-set WIGGLENET-unencrypted-ipv6 src -j DROP
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -j DROP
      -A WIGGLENET-GUARDS -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
      -A WIGGLENET-GUARDS -m conntrack --ctstate DNAT -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 1 -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 2 -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 3 -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 4 -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j RETURN
      -A WIGGLENET-GUARDS -p ipv6-icmp -m icmp6 --icmpv6-type 129 -j RETURN
      -A WIGGLENET-GUARDS -m set --match-set WIGGLENET-own-ipv6 dst -j DROP
      -A WIGGLENET-FROM-PODS -o wigglenet -m connmark ! --mark 0x2000000/0x2000000 -m conntrack --ctstate NEW,ESTABLISHED -j CONNMARK --set-xmark 0x2000000/0x2000000
      -A WIGGLENET-FROM-PODS -o wigglenet -j RETURN
      -A WIGGLENET-FROM-PODS -o veth+ -m set --match-set WIGGLENET-own-ipv6 dst -j RETURN
      -A WIGGLENET-FROM-PODS -m conntrack --ctstate INVALID,UNTRACKED -j WIGGLENET-OUTWARD
      -A WIGGLENET-FROM-PODS -m conntrack --ctdir ORIGINAL -m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT -j WIGGLENET-OUTWARD
      -A WIGGLENET-OUTWARD -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -m set ! --match-set WIGGLENET-own-ipv6 dst -m set ! --match-set WIGGLENET-remote-ipv6 dst -m set ! --match-set WIGGLENET-nodes-ipv6 dst -m set ! --match-set WIGGLENET-keep-ipv6 dst -j DROP
      -A WIGGLENET-OUTWARD -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -m set --match-set WIGGLENET-hosts-ipv6 dst -m set ! --match-set WIGGLENET-nodes-ipv6 dst -m set ! --match-set WIGGLENET-keep-ipv6 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -j DROP
      -A WIGGLENET-FROM-TUNNEL -o wigglenet -j RETURN
      -A WIGGLENET-FROM-TUNNEL -m conntrack ! --ctrepldst fd00:1::/64 -m conntrack ! --ctstate DNAT -m set ! --match-set WIGGLENET-own-ipv6 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -m conntrack --ctstate INVALID,UNTRACKED -m set ! --match-set WIGGLENET-own-ipv6 dst -j DROP
      -A WIGGLENET-FROM-TUNNEL -o veth+ -m connmark ! --mark 0x2000000/0x2000000 -m conntrack --ctstate NEW,ESTABLISHED -j CONNMARK --set-xmark 0x2000000/0x2000000
      -I INPUT 1 -j WIGGLENET-INPUT
      -I FORWARD 1 -j WIGGLENET-FILTER
      COMMIT
      ip6tables-legacy-restore --noflush -w 10
      *nat
      :WIGGLENET-SRCNAT - [0:0]
      -A WIGGLENET-SRCNAT -m conntrack --ctstate DNAT -m set --match-set WIGGLENET-remote-ipv6 src -m set ! --match-set WIGGLENET-own-ipv6 dst -j MASQUERADE --random-fully
      -A WIGGLENET-SRCNAT -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -m set ! --match-set WIGGLENET-own-ipv6 dst -m set ! --match-set WIGGLENET-remote-ipv6 dst -m set ! --match-set WIGGLENET-nodes-ipv6 dst -m set ! --match-set WIGGLENET-keep-ipv6 dst -j MASQUERADE --random-fully
      -A WIGGLENET-SRCNAT -m set --match-set WIGGLENET-own-ipv6 src -m set ! --match-set WIGGLENET-hosts-ipv6 src -m set --match-set WIGGLENET-hosts-ipv6 dst -m set ! --match-set WIGGLENET-nodes-ipv6 dst -m set ! --match-set WIGGLENET-keep-ipv6 dst -j MASQUERADE --random-fully
      -I POSTROUTING 1 -j WIGGLENET-SRCNAT
      COMMIT
      "
    `);
  });

  test.each<[title: string, own: string[], marks: string[], pass: string]>([
    [
      "several own pod CIDRs: a rule for each, and one that excludes them all",
      ["10.1.0.0/24", "10.7.0.0/16", "fd00:1::/64"],
      ["--ctrepldst 10.1.0.0/24", "--ctrepldst 10.7.0.0/16"],
      "-m conntrack ! --ctrepldst 10.1.0.0/24 --ctdir ORIGINAL -m conntrack ! --ctrepldst 10.7.0.0/16 -j RETURN",
    ],
    [
      "none of this family: no mark of a translated connection",
      ["fd00:1::/64"],
      [],
      "-m conntrack --ctdir ORIGINAL -j RETURN",
    ],
  ])("where replies go, with %s", (_, ownPodCidrs, marks, pass) => {
    const rules = wanted({ ownPodCidrs })
      .filter(({ family, table }) => family === "ipv4" && table === "mangle")
      .flatMap((chain) => chain.rules)
      .filter((rule) => rule.includes("--ctdir ORIGINAL"));
    expect(rules.filter((rule) => rule.includes("-m conntrack --ctstate SNAT -j MARK"))).toEqual(
      marks.map((mark) => expect.stringContaining(`-m conntrack ${mark} --ctdir ORIGINAL`)),
    );
    expect(rules.filter((rule) => rule.endsWith("-j RETURN"))).toEqual([expect.stringContaining(pass)]);
  });

  test("sets", () => {
    expect(text(diffSets(wantedSets(), {}, "wanted"))).toMatchInlineSnapshot(`
      "ipset restore
      create WIGGLENET-own-ipv4 hash:net family inet maxelem 262144
      add WIGGLENET-own-ipv4 10.1.0.0/24
      create WIGGLENET-remote-ipv4 hash:net family inet maxelem 262144
      add WIGGLENET-remote-ipv4 10.1.1.0/24
      add WIGGLENET-remote-ipv4 10.1.2.7
      create WIGGLENET-hosts-ipv4 hash:net family inet maxelem 262144
      create WIGGLENET-nodes-ipv4 hash:net family inet maxelem 262144
      add WIGGLENET-nodes-ipv4 192.0.2.1
      create WIGGLENET-native-ipv4 hash:net family inet maxelem 262144
      create WIGGLENET-unencrypted-ipv4 hash:net family inet maxelem 262144
      add WIGGLENET-unencrypted-ipv4 10.1.1.0/24
      create WIGGLENET-keep-ipv4 hash:net family inet maxelem 262144
      add WIGGLENET-keep-ipv4 172.20.0.0/16
      create WIGGLENET-own-ipv6 hash:net family inet6 maxelem 262144
      add WIGGLENET-own-ipv6 fd00:1::/64
      create WIGGLENET-remote-ipv6 hash:net family inet6 maxelem 262144
      add WIGGLENET-remote-ipv6 fd00:1:0:1::/64
      create WIGGLENET-hosts-ipv6 hash:net family inet6 maxelem 262144
      create WIGGLENET-nodes-ipv6 hash:net family inet6 maxelem 262144
      add WIGGLENET-nodes-ipv6 2001:db8::1
      create WIGGLENET-native-ipv6 hash:net family inet6 maxelem 262144
      create WIGGLENET-unencrypted-ipv6 hash:net family inet6 maxelem 262144
      create WIGGLENET-keep-ipv6 hash:net family inet6 maxelem 262144
      add WIGGLENET-keep-ipv6 2001:db8:9::9
      "
    `);
  });

  test("what a policy of DROP needs", () => {
    expect(text(diffChains("nft", accepting(), {}))).toMatchInlineSnapshot(`
      "iptables-nft-restore --noflush -w 10
      *filter
      :WIGGLENET-FORWARD - [0:0]
      -A WIGGLENET-FORWARD -s 10.1.0.0/24 -j ACCEPT
      -A WIGGLENET-FORWARD -d 10.1.0.0/24 -j ACCEPT
      -A FORWARD -j WIGGLENET-FORWARD
      COMMIT
      ip6tables-nft-restore --noflush -w 10
      *filter
      :WIGGLENET-FORWARD - [0:0]
      -A WIGGLENET-FORWARD -s fd00:1::/64 -j ACCEPT
      -A WIGGLENET-FORWARD -d fd00:1::/64 -j ACCEPT
      -A FORWARD -j WIGGLENET-FORWARD
      COMMIT
      "
    `);
  });

  test.each([...variants])("one transaction for each table and family: %s", (variant) => {
    const programs = diffChains(variant, wanted(), {}).map(
      ({ argv, stdin }) => `${argv[0]} ${stdin?.split("\n")[0]}`,
    );
    expect(programs).toEqual([
      `iptables-${variant}-restore *mangle`,
      `iptables-${variant}-restore *filter`,
      `iptables-${variant}-restore *nat`,
      `ip6tables-${variant}-restore *mangle`,
      `ip6tables-${variant}-restore *filter`,
      `ip6tables-${variant}-restore *nat`,
    ]);
  });
});

describe("what was listed", () => {
  const forward = (family: "ipv4" | "ipv6") =>
    settledChains(wanted())[`${family} filter WIGGLENET-GUARDS`]?.rules ?? [];
  const both = [...forward("ipv4"), ...forward("ipv6")];

  test.each([
    ["iptables-nft", listedNft],
    ["iptables-legacy", listedLegacy],
  ])("%s -S: the rules that were loaded", (_, listed) => {
    expect(both.length).toBe(20);
    expect(parseChain(listed)).toEqual(both);
  });

  test("a rule that does something else under the same comment is another", () => {
    expect(parseChain(listedNft.replace("-j DROP", "-j RETURN"))).not.toEqual(parseChain(listedNft));
  });

  test.each<[title: string, listing: string, rules: string[]]>([
    ["an empty chain", "-N WIGGLENET-FILTER\n", []],
    ["a rule that matches everything", "-N X\n-A X -j ACCEPT\n", ["-j ACCEPT"]],
    ["what it has counted", "-A X -i lo -c 12 3456 -j DROP\n", ["-i lo -j DROP"]],
    [
      "the comment that an earlier agent gave it",
      '-A X -i lo -m comment --comment "wigglenet:4f42e499a137" -m conntrack --ctdir REPLY -c 1 2 -j DROP\n',
      ["-i lo -m conntrack --ctdir REPLY -j DROP"],
    ],
    [
      "no quotes, as older versions print it",
      "-A X -m comment --comment wigglenet:4f42e499a137 -j DROP\n",
      ["-j DROP"],
    ],
    [
      "a comment that looks like more than one",
      '-A X -m comment --comment "a \\" -j DROP -c 1 2" -c 0 0 -j ACCEPT\n',
      ["-j ACCEPT"],
    ],
  ])("a chain: %s", (_, listing, rules) => {
    expect(parseChain(listing)).toEqual(rules);
  });

  test("packets that were counted as they passed", () => {
    const lines = [
      '-A X ! -o wigglenet -m comment --comment "wigglenet:1" -m conntrack --ctdir REPLY --ctstate DNAT -c 9 900 -j RETURN',
      '-A X ! -o wigglenet -m comment --comment "wigglenet:2" -m conntrack --ctdir ORIGINAL -m conntrack ! --ctrepldst 10.1.0.0/24 -c 7 700 -j RETURN',
      '-A X ! -o wigglenet -m comment --comment "wigglenet:3" -m conntrack --ctdir ORIGINAL -c 5 500 -j DROP',
    ];
    expect(parsePassed(`-N X\n${lines.join("\n")}\n`)).toBe(7);
    expect(parseChain(lines.join("\n"))).toHaveLength(3);
  });

  const header = listedSet.split("\n")[0];
  test.each<[title: string, listing: string, sets: ObservedSets]>([
    ["what was loaded", listedSet, { "WIGGLENET-remote-ipv4": ["10.1.1.0/24", "10.1.2.7"] }],
    ["none without members", `${header}\n`, { "WIGGLENET-remote-ipv4": [] }],
    [
      "with what another added",
      `${listedSet}add WIGGLENET-remote-ipv4 10.9.0.0/16 timeout 60\n`,
      { "WIGGLENET-remote-ipv4": ["10.1.1.0/24", "10.1.2.7", "10.9.0.0/16"] },
    ],
    [
      "several, and the prompts between",
      `ipset> create WIGGLENET-own-ipv6 hash:net family inet6\nipset> ${listedSet}ipset> `,
      { "WIGGLENET-own-ipv6": [], "WIGGLENET-remote-ipv4": ["10.1.1.0/24", "10.1.2.7"] },
    ],
    ["nothing", "ipset> ", {}],
  ])("sets: %s", (_, listing, sets) => {
    expect(parseSets(listing)).toEqual(sets);
  });

  test("the members of a set, as they are wanted", () => {
    expect(parseSets(listedSet)["WIGGLENET-remote-ipv4"]).toEqual(wantedSets()["WIGGLENET-remote-ipv4"]);
  });
});

test("without the programs there is nothing of ours: nftables needs neither", async () => {
  const path = process.env.PATH;
  try {
    process.env.PATH = "/nonexistent";
    const [observedSets, observedChains] = [
      await observeSets(nodeReader),
      await observeChains(nodeReader, "legacy"),
    ];
    expect(observedSets).toEqual({});
    expect([...new Set(Object.values(observedChains))]).toEqual([undefined]);
  } finally {
    process.env.PATH = path;
  }
});
