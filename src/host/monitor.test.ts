import { describe, expect, test } from "bun:test";
import type { Route } from "../plan/desired.ts";
import { classify, type Expectation, expectation, type Signal } from "./monitor.ts";
import recorded from "./recorded/ip-monitor.txt";

const unreachable = (prefix: string): Route => ({ type: "unreachable", prefix });
const tunnel = (prefix: string, table: "main" | "24601" = "main"): Route => ({
  type: "tunnel",
  prefix,
  table,
});

/** What there should be in the recording: one remote node, dual-stack. */
const routes = [
  unreachable("10.1.1.0/24"),
  unreachable("fd00:1:0:1::/64"),
  tunnel("10.1.1.0/24"),
  tunnel("fd00:1:0:1::/64"),
  tunnel("192.0.2.1/32", "24601"),
  tunnel("2001:db8::1/128", "24601"),
];
const expected = expectation("wigglenet", routes);
/** With a copy of a route of the underlay among ours. */
const following = expectation("wigglenet", [
  ...routes,
  { type: "underlay", prefix: "10.1.1.9/32", via: "192.0.2.1", dev: "eth0" },
]);

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
  expect(expectation("wigglenet", [])).toEqual({
    link: "wigglenet",
    places: new Set(),
    followsUnderlay: false,
    devices: [],
  });
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
    ["none", "[ROUTE]unreachable 10.1.1.0/24 proto 246"],
    ["none", "[ROUTE]unreachable fd00:1:0:1::/64 dev lo proto 246"],
    ["none", "[ROUTE]10.1.1.0/24 dev wigglenet proto 246"],
    ["none", "[ROUTE]fd00:1:0:1::/64 dev wigglenet proto 246"],
    ["none", "[ROUTE]192.0.2.1 dev wigglenet table 24601 proto 246"],
    ["none", "[ROUTE]2001:db8::1 dev wigglenet table 24601 proto 246"],
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
    ["none", "[RULE]24601:\tfrom all fwmark 0x1000000/0x1000000 lookup 24601 proto 246"],
    // What was ours is gone, or another's is in its place.
    ["everything", "[ROUTE]Deleted 10.1.1.0/24 dev wigglenet proto 246"],
    ["everything", "[ROUTE]Deleted unreachable 10.1.1.0/24 proto 246"],
    ["everything", "[ROUTE]Deleted fd00:1:0:1::/64 dev wigglenet proto 246"],
    ["everything", "[ROUTE]Deleted unreachable fd00:1:0:1::/64 dev lo proto 246"],
    ["everything", "[ROUTE]Deleted 192.0.2.1 dev wigglenet table 24601 proto 246"],
    ["everything", "[ROUTE]Deleted 2001:db8::1 dev wigglenet table 24601 proto 246"],
    ["everything", "[ROUTE]10.1.1.0/24 dev eth0 scope link"],
    ["everything", "[ROUTE]unreachable 10.1.1.0/24 metric 4096"],
    ["everything", "[RULE]Deleted 24601:\tfrom all fwmark"],
    // With our protocol, and not among what should be.
    ["everything", "[ROUTE]10.1.1.9 via 192.0.2.1 dev eth0 proto 246 onlink"],
    ["everything", "[RULE]55:\tfrom all fwmark 0x1000000/0x1000000 lookup 24601 proto 246"],
    // Others' rules and routes.
    ["none", "[RULE]56:\tfrom 10.0.0.0/8 lookup 100"],
    ["none", "[RULE]Deleted 56:\tfrom 10.0.0.0/8 lookup 100"],
    ["none", "[ROUTE]blackhole 10.50.0.0/16"],
    ["none", "[ROUTE]default via 192.0.2.1 dev eth0"],
    ["none", "[ROUTE]local 10.1.0.1 dev wigglenet table local"],
    ["none", "[ROUTE]multicast ff00::/8 dev wigglenet table local"],
    // A pod starts and ends.
    ["none", "[LINK]6: veth0a1b2c3d@pod0: <BROADCAST"],
    ["none", "[ADDR]6: veth0a1b2c3d    inet 10.1.0.1/32"],
    ["none", "[ROUTE]local 10.1.0.1 dev veth0a1b2c3d table local"],
    ["none", "[ROUTE]10.1.0.7 dev veth0a1b2c3d scope link"],
    ["none", "[ADDR]Deleted 6: veth0a1b2c3d"],
    ["none", "[LINK]Deleted 6: veth0a1b2c3d@NONE"],
    // Links and addresses of the node, and an address, an MTU of the tunnel.
    ["links", "[LINK]3: eth0@peer0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450"],
    ["links", "[LINK]3: eth0@peer0: <BROADCAST,MULTICAST,M-DOWN> mtu 1450"],
    ["links", "[ADDR]3: eth0    inet 192.0.2.5/24"],
    ["links", "[ADDR]Deleted 3: eth0    inet6 2001:db8:1::5/64"],
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
    expect(signalOf(beginning, expectation("wigglenet", routes, devices))).toBe(signal);
  });

  test.each<[signal: Signal, line: string]>([
    ["none", "[ROUTE]10.1.1.9 via 192.0.2.1 dev eth0 proto 246 onlink"],
    ["everything", "[ROUTE]default via 192.0.2.1 dev eth0"],
    ["everything", "[ROUTE]Deleted default via fe80::1 dev eth0"],
    ["everything", "[ROUTE]192.0.2.0/24 dev eth0 proto kernel"],
    ["none", "[ROUTE]local 192.0.2.5 dev eth0 table local"],
    ["none", "[ROUTE]10.1.0.7 dev veth0a1b2c3d scope link"],
    // Its IPv4 routes, and our copies of them, went with it without a word.
    ["everything", "[LINK]3: eth0@peer0: <BROADCAST,MULTICAST,M-DOWN> mtu 1450"],
    ["links", "[LINK]3: eth0@peer0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450"],
    ["none", "[LINK]6: veth0a1b2c3d@pod0: <BROADCAST,MULTICAST,M-DOWN>"],
  ])("while routes of the underlay are followed, %s: %s", (signal, beginning) => {
    expect(signalOf(beginning, following)).toBe(signal);
  });
});

test.each<[signal: Signal, line: string]>([
  ["none", "[LINK]1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default"],
  // A node's address may be there.
  ["links", "[ADDR]1: lo    inet 198.51.100.1/32 scope global lo"],
  ["links", "[ADDR]Deleted 1: lo    inet6 2001:db8:7::1/128 scope global lo"],
])("the loopback link: %s: %s", (signal, line) => {
  expect(classify(line, following)).toBe(signal);
});

test.each<[title: string, line: string]>([
  ["an empty line", ""],
  ["a label that is not asked for", "[NEIGH]192.0.2.1 dev eth0 lladdr 0e:d8:d5:39:f5:e0 REACHABLE"],
  ["what ip says when it loses messages", "netlink receive error No buffer space available (105)"],
])("nothing: %s", (_, line) => {
  expect(classify(line, following)).toBe("none");
});
