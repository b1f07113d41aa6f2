import { describe, expect, test } from "bun:test";
import { routeTable, rules } from "../../plan/overlay/routes.ts";
import recorded from "../recorded/ip-monitor.txt";
import { classify, type Expectation, expectation, type Signal } from "./monitor.ts";

const remote = { prefixes: ["10.1.1.0/24", "fd00:1:0:1::/64"], hosts: ["192.0.2.7/32", "2001:db8:1::7/128"] };

/** What there should be in the recording: one remote node, dual-stack, with an address in each of its pod CIDRs. */
const desired = {
  routes: routeTable([
    ...["10.1.0.0/24", "fd00:1::/64"].map((prefix) => ({
      type: "unreachable" as const,
      prefix,
      table: "main" as const,
    })),
    ...(["unreachable", "tunnel"] as const).flatMap((type) =>
      remote.prefixes.map((prefix) => ({ type, prefix, table: "24600" as const })),
    ),
    ...["10.1.1.9/32", "fd00:1:0:1::9/128"].map((prefix) => ({
      type: "throw" as const,
      prefix,
      table: "24600" as const,
    })),
    ...remote.hosts.map((prefix) => ({ type: "tunnel" as const, prefix, table: "24601" as const })),
  ]),
  rules: rules(["ipv4", "ipv6"], ["10.1.0.0/24", "fd00:1::/64"]),
};
const expected = expectation("wigglenet", desired, []);
const nothing = { routes: routeTable([]), rules: [] };

// As systemd-networkd does it with IPv4Forwarding=no. The recording has these lines, after longer ones of new links.
test.each<[Signal, string]>([
  ["links", "inet eth1 forwarding off "],
  ["links", "inet veth1 forwarding off "],
  ["none", "inet6 eth1 forwarding off "],
  ["none", "inet eth1 forwarding off rp_filter off "],
])("%s: %s", (signal, text) => {
  expect(classify(`[NETCONF]${text}`, expected)).toBe(signal);
});

test("what is expected of a node without any route", () => {
  const { newGateway, places, ...rest } = expectation("wigglenet", nothing, []);
  expect(rest).toEqual({ link: "wigglenet", rules: new Set(), devices: [] });
  expect(places.has("main 10.1.0.0/24 true")).toBe(false);
  expect(newGateway("192.0.2.1")).toBe(false);
});

test("a gateway that matters is one in a pod CIDR that the plan did not know, whichever way it is written", () => {
  const { newGateway } = expectation("wigglenet", desired, ["10.1.1.1", "fd00:1:0:1::1"]);
  const asked = [
    "10.1.1.1",
    "10.1.1.2",
    "10.1.1.2",
    "192.0.2.1",
    "fd00:1:0:1::1",
    "fd00:1:0:1::2",
    "10.1.0.9",
    "x",
  ];
  expect(asked.filter(newGateway)).toEqual(["10.1.1.2", "10.1.1.2", "fd00:1:0:1::2", "10.1.0.9"]);
});

const recordedLines = recorded.split("\n").filter(Boolean);

/** The signal of a line of the recording, given by how it begins. */
function signalOf(beginning: string, expectation: Expectation): Signal {
  const line = recordedLines.find((candidate) => candidate.startsWith(beginning));
  if (line === undefined) throw new Error(`the recording has no line that begins with ${beginning}`);
  return classify(line, expectation);
}

describe("recorded lines", () => {
  test.each<[signal: Signal, line: string]>([
    // Own writes.
    ["none", "[ROUTE]7 10.1.0.0/24 proto 246"],
    ["none", "[ROUTE]7 10.1.1.0/24 table 24600 proto 246"],
    ["none", "[ROUTE]9 10.1.1.9 table 24600 proto 246"],
    ["none", "[ROUTE]10.1.1.0/24 dev wigglenet table 24600 proto 246"],
    ["none", "[ROUTE]192.0.2.7 dev wigglenet table 24601 proto 246"],
    ["none", "[ROUTE]7 fd00:1::/64 dev lo proto 246"],
    ["none", "[ROUTE]7 fd00:1:0:1::/64 dev lo table 24600 proto 246"],
    ["none", "[ROUTE]9 fd00:1:0:1::9 dev lo table 24600 proto 246"],
    ["none", "[ROUTE]fd00:1:0:1::/64 dev wigglenet table 24600 proto 246"],
    ["none", "[ROUTE]2001:db8:1::7 dev wigglenet table 24601 proto 246"],
    ["links", "[NETCONF]inet all forwarding off "],
    ["links", "[NETCONF]inet default forwarding off "],
    ["links", "[NETCONF]inet wigglenet forwarding off "],
    ["links", "[NETCONF]inet6 all forwarding off "],
    ["none", "[NETCONF]inet all forwarding on "],
    ["none", "[NETCONF]inet wigglenet forwarding on "],
    ["none", "[NETCONF]inet wigglenet rp_filter loose "],
    // Others' links come with what is set for new ones, and may have a reason.
    ["none", "[NETCONF]inet veth1 forwarding off rp_filter off mc_forwarding off "],
    ["none", "[NETCONF]inet6 veth1 forwarding off mc_forwarding off "],
    ["none", "[NETCONF]inet6 eth1 forwarding off "],
    ["none", "[RULE]2459:\tfrom all fwmark 0x1000000/0x1000000 lookup 24601 proto 246"],
    ["none", "[RULE]2460:\tfrom all lookup 24600 proto 246"],
    ["none", "[RULE]2461:\tfrom all to 10.1.0.0/24 lookup 254 proto 246"],
    ["none", "[RULE]2461:\tfrom all to fd00:1::/64 lookup 254 proto 246"],
    // What was ours is gone, or another's is in its place.
    ["everything", "[ROUTE]Deleted 10.1.1.0/24 dev wigglenet table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted 7 10.1.1.0/24 table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted 9 10.1.1.9 table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted fd00:1:0:1::/64 dev wigglenet table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted 7 fd00:1:0:1::/64 dev lo table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted 9 fd00:1:0:1::9 dev lo table 24600 proto 246"],
    ["everything", "[ROUTE]Deleted 192.0.2.7 dev wigglenet table 24601 proto 246"],
    ["everything", "[ROUTE]Deleted 2001:db8:1::7 dev wigglenet table 24601 proto 246"],
    ["everything", "[ROUTE]10.1.1.0/24 dev eth0 table 24600 scope 253"],
    ["everything", "[RULE]Deleted 2459:\tfrom all fwmark"],
    ["everything", "[RULE]Deleted 2460:\tfrom all lookup 24600"],
    ["everything", "[RULE]Deleted 2461:\tfrom all to fd00:1::/64"],
    // With our protocol, and not among what should be: version 1.0.0 had these.
    ["everything", "[ROUTE]10.1.1.0/24 dev wigglenet proto 246"],
    ["everything", "[ROUTE]7 10.1.1.0/24 proto 246"],
    ["everything", "[ROUTE]10.1.1.9 via 192.0.2.1 dev eth0 proto 246 onlink"],
    ["everything", "[RULE]24601:\tfrom all fwmark 0x1000000/0x1000000 lookup 24601 proto 246"],
    ["everything", "[RULE]2460:\tfrom all to 10.6.0.0/24 lookup 24600 proto 246"],
    ["none", "[RULE]Deleted 24601:\tfrom all fwmark"],
    // On our own link nobody else has routes, but the kernel.
    ["everything", "[ROUTE]10.1.2.0/24 dev wigglenet scope 253"],
    ["everything", "[ROUTE]fd00:1:0:2::/64 dev wigglenet metric 1024"],
    ["none", "[ROUTE]fd00:1::1 dev wigglenet proto 2"],
    ["none", "[ROUTE]fe80::/64 dev wigglenet proto 2"],
    // Others' rules matter ahead of ours alone.
    ["everything", "[RULE]300:\tfrom 192.0.2.7 lookup 30400"],
    ["everything", "[RULE]Deleted 300:\tfrom 192.0.2.7 lookup 30400"],
    ["none", "[RULE]30400:\tfrom 192.0.2.7 lookup 30400"],
    ["none", "[RULE]Deleted 30400:\tfrom 192.0.2.7 lookup 30400"],
    // Others' routes.
    ["none", "[ROUTE]6 10.50.0.0/16"],
    ["none", "[ROUTE]default via 192.0.2.1 dev eth0"],
    ["none", "[ROUTE]Deleted default via 192.0.2.1 dev eth0"],
    ["none", "[ROUTE]Deleted default via fe80::1 dev eth0"],
    ["none", "[ROUTE]192.0.2.0/24 dev eth0 proto 2"],
    ["none", "[ROUTE]7 10.1.3.0/24 metric 4096"],
    ["none", "[ROUTE]2 10.1.0.1 dev wigglenet table 255"],
    ["none", "[ROUTE]5 ff00::/8 dev wigglenet table 255"],
    // A gateway that lies in a remote pod CIDR, one of two next hops.
    ["everything", "[ROUTE]10.61.0.0/16 \\\tnexthop via 192.0.2.2 dev eth0"],
    ["none", "[ROUTE]10.60.0.0/16 via inet6 fe80::1 dev eth0"],
    // A pod starts and ends.
    ["none", "[LINK]6: veth0a1b2c3d@pod0: <BROADCAST"],
    ["none", "[ADDR]6: veth0a1b2c3d    inet 10.1.0.1/32"],
    ["none", "[ROUTE]2 10.1.0.1 dev veth0a1b2c3d table 255"],
    ["none", "[ROUTE]10.1.0.7 dev veth0a1b2c3d"],
    ["none", "[ADDR]Deleted 6: veth0a1b2c3d"],
    ["none", "[LINK]Deleted 6: veth0a1b2c3d@NONE"],
    // Links and addresses of the node, and an address, an MTU of the tunnel.
    ["links", "[LINK]2: eth0@peer0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450"],
    ["links", "[LINK]2: eth0@peer0: <BROADCAST,MULTICAST,M-DOWN> mtu 1450"],
    ["links", "[ADDR]2: eth0    inet 192.0.2.5/24"],
    ["links", "[ADDR]Deleted 2: eth0    inet6 2001:db8:1::5/64"],
    ["links", "[ADDR]4: wigglenet    inet 10.1.0.1/32"],
    ["links", "[LINK]4: wigglenet: <POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1400"],
    // flannel#869, #1348: with the link its routes go.
    ["everything", "[LINK]4: wigglenet: <POINTOPOINT,MULTICAST,NOARP> mtu 1400"],
    ["everything", "[LINK]Deleted 4: wigglenet: <POINTOPOINT"],
    ["everything", "[ADDR]Deleted 4: wigglenet    inet 10.1.0.1/32"],
  ])("%s: %s", (signal, beginning) => {
    expect(signalOf(beginning, expected)).toBe(signal);
  });

  test.each<[signal: Signal, line: string, devices: string[]]>([
    ["links", "[LINK]6: veth0a1b2c3d@pod0: <BROADCAST", ["eth0", "veth*"]],
    ["links", "[LINK]Deleted 6: veth0a1b2c3d@NONE", ["veth0a1b2c3d"]],
    ["none", "[LINK]Deleted 6: veth0a1b2c3d@NONE", ["eth0", "veth0"]],
    ["none", "[ADDR]6: veth0a1b2c3d    inet 10.1.0.1/32", ["veth*"]],
  ])("%s: %s, where flows of %p are offloaded", (signal, beginning, devices) => {
    expect(signalOf(beginning, expectation("wigglenet", desired, [], devices))).toBe(signal);
  });
});

test.each<[signal: Signal, line: string]>([
  ["none", "[LINK]1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default"],
  // A node's address may be there.
  ["links", "[ADDR]1: lo    inet 198.51.100.1/32 scope global lo"],
  ["links", "[ADDR]Deleted 1: lo    inet6 2001:db8:7::1/128 scope global lo"],
  // IPv6 is switched off on all links, or on again.
  ["everything", "[ADDR]Deleted 1: lo    inet6 ::1/128 scope 254 \\       valid_lft forever"],
  ["everything", "[ADDR]1: lo    inet6 ::1/128 scope 254 \\       valid_lft forever"],
])("the loopback link: %s: %s", (signal, line) => {
  expect(classify(line, expected)).toBe(signal);
});

test.each<[title: string, line: string]>([
  ["an empty line", ""],
  ["a label that is not asked for", "[NEIGH]192.0.2.1 dev eth0 lladdr 0e:d8:d5:39:f5:e0 REACHABLE"],
  ["what ip says when it loses messages", "netlink receive error No buffer space available (105)"],
])("nothing: %s", (_, line) => {
  expect(classify(line, expected)).toBe("none");
});

describe("addresses of links that are not ours", () => {
  const addresses = {
    listed: new Set(["192.0.2.5", "2001:db8:1::5"]),
    inside: ["10.1.0.0/24"],
    links: ["lan*"],
  };
  const expected = { ...expectation("wigglenet", nothing, []), addresses };
  test.each<[signal: string, line: string]>([
    // As kube-proxy in IPVS mode has for each Service, and Docker for its bridges.
    ["later", "[ADDR]5: kube-ipvs0    inet 10.96.0.1/32 scope global kube-ipvs0"],
    ["later", "[ADDR]Deleted 5: kube-ipvs0    inet6 fd00:96::1/128 scope global"],
    ["later", "[ADDR]6: docker0    inet 172.17.0.1/16 brd 172.17.255.255 scope global docker0"],
    ["later", "[ADDR]1: lo    inet 198.51.100.1/32 scope global lo"],
    // Of the Node, wherever it is.
    ["links", "[ADDR]3: eth0    inet 192.0.2.5/24 brd 192.0.2.255 scope global eth0"],
    ["links", "[ADDR]Deleted 1: lo    inet6 2001:db8:1::5/128 scope global"],
    // Of NODE_IP_INTERFACES.
    ["links", "[ADDR]7: lan0    inet 203.0.113.9/24 scope global lan0"],
    // In the own pod CIDR: no pod's.
    ["links", "[ADDR]8: br0    inet 10.1.0.77/32 scope global br0"],
    ["links", "[ADDR]4: wigglenet    inet 10.9.0.1/32 scope global wigglenet"],
    ["links", "[LINK]6: docker0: <BROADCAST,UP> mtu 1500"],
  ])("%s: %s", (signal, line) => {
    expect(classify(line, expected)).toBe(signal as Signal);
  });

  test("each may be what an expression asks for", () => {
    const { addresses: _, ...all } = expected;
    expect(classify("[ADDR]6: docker0    inet 172.17.0.1/16 scope global docker0", all)).toBe("links");
  });
});
