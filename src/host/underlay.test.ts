import { expect, test } from "bun:test";
import { gatewaysIn, mainReader } from "./underlay.ts";

test.each<[title: string, line: string, expected: string[]]>([
  ["none", "192.0.2.0/24 dev eth0 proto 2 scope 253 src 192.0.2.5 ", []],
  ["a default route", "default via 192.0.2.1 dev eth0 ", ["192.0.2.1"]],
  ["of IPv6", "default via fe80::1 dev eth0 proto 9 metric 1024 pref medium", ["fe80::1"]],
  ["an IPv6 one of an IPv4 route (RFC 5549)", "10.8.0.0/16 via inet6 fe80::1 dev eth0 ", ["fe80::1"]],
  [
    "of several next hops",
    "10.9.0.0/16 \\\tnexthop via 192.0.2.2 dev eth0 weight 1 \\\tnexthop via 192.0.2.3 dev eth0 weight 1 ",
    ["192.0.2.2", "192.0.2.3"],
  ],
])("%s", (_, line, expected) => {
  expect(gatewaysIn(line)).toEqual(expected);
});

test("what the main table says: gateways, links of default routes, prefixes on links; nothing of the tunnel", () => {
  const { read, result } = mainReader("wigglenet");
  const lines = [
    "default via 192.0.2.1 dev eth0 ",
    "7 10.1.0.0/24 proto 246 metric 4096 ",
    "10.1.0.7 dev veth0a1b2c3d scope 253 ",
    "10.1.2.0/24 dev wigglenet scope 253 ",
    "10.9.0.0/16 \\\tnexthop via 192.0.2.3 dev eth1 weight 1 \\\tnexthop via 192.0.2.2 dev eth1 weight 1 ",
    "192.0.2.0/24 dev eth0 proto 2 scope 253 src 192.0.2.5 ",
    "2001:db8:1::/64 dev eth0 proto 2 metric 256 pref medium",
    "fd00:1:0:1::9 via 2001:db8:1::1 dev eth0 proto 246 metric 1024 onlink pref medium",
    "default via fe80::1 dev eth2 proto 9 metric 1024 pref medium",
    "10.1.0.9 dev cali12ab scope 253 ",
    "7 10.1.0.10 proto 80 ",
    "fd00:1::9 dev lxc1 metric 1024 pref medium",
    "",
  ];
  for (const line of lines) read(line);
  expect(result()).toEqual({
    gateways: ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fe80::1"],
    defaultGateways: ["192.0.2.1", "fe80::1"],
    onLink: ["192.0.2.0/24", "2001:db8:1::/64"],
    defaultLinks: ["eth0", "eth2"],
    hostRoutes: [
      { address: "10.1.0.9", link: "cali12ab" },
      { address: "fd00:1::9", link: "lxc1" },
    ],
  });
});
