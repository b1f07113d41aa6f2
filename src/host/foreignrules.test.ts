import { expect, test } from "bun:test";
import { rules as ownRules, type Route } from "../plan/overlay/routes.ts";
import { catchingRules } from "./foreignrules.ts";
import { parseRules } from "./rules.ts";

const routes: Route[] = [
  { type: "unreachable", prefix: "10.1.0.0/24", table: "main" },
  { type: "unreachable", prefix: "10.1.1.0/24", table: "24600" },
];
const rules = ownRules(["ipv4"], ["10.1.0.0/24"]);

test.each<[title: string, rule: object, named: string | undefined]>([
  ["for all", { priority: 100, src: "all", table: "77" }, "100: from all lookup 77"],
  // Without a priority the kernel gives the one before the first (wg-quick).
  [
    "inverted",
    { priority: 2458, not: null, src: "all", fwmark: "0xca6c", table: "51820" },
    "2458: not from all fwmark 0xca6c/0xffffffff lookup 51820",
  ],
  [
    "to remote pods",
    { priority: 9, src: "all", dst: "10.1.0.0", dstlen: 16, table: "77" },
    "9: from all to 10.1.0.0/16 lookup 77",
  ],
  ["from the node", { priority: 9, src: "192.0.2.5", table: "77" }, "9: from 192.0.2.5 lookup 77"],
  [
    "that prohibits",
    { priority: 9, src: "10.1.0.0", srclen: 24, action: "8" },
    "9: from 10.1.0.0/24 type prohibit",
  ],
  ["that skips ours", { priority: 9, src: "all", goto: 3000 }, "9: from all goto 3000"],
  ["that skips others", { priority: 9, src: "all", goto: 2459 }, undefined],
  ["at our priority, before ours", { priority: 2460, src: "all", table: "77" }, "2460: from all lookup 77"],
  ["after ours", { priority: 30400, src: "192.0.2.5", table: "30400" }, undefined],
  ["of this node's own addresses", { priority: 0, src: "all", table: "255" }, undefined],
  ["to others", { priority: 9, src: "all", dst: "198.51.100.0", dstlen: 24, table: "77" }, undefined],
  ["from others", { priority: 9, src: "198.51.100.7", table: "77" }, undefined],
  ["by a mark", { priority: 9, src: "all", fwmark: "0x7", fwmask: "0xff", table: "77" }, undefined],
  ["that is one of ours, by somebody else", { priority: 2460, src: "all", table: "24600" }, undefined],
  [
    "of a protocol",
    { priority: 9, src: "all", ipproto: "6", table: "77" },
    "9: from all ipproto 6 lookup 77",
  ],
  ["of a port", { priority: 9, src: "all", dport: 443, table: "77" }, "9: from all dport 443 lookup 77"],
  [
    "of a service type",
    { priority: 9, src: "all", tos: "0x10", table: "77" },
    "9: from all tos 0x10 lookup 77",
  ],
  [
    "by a pod's link",
    { priority: 9, src: "all", iif: "veth0a1b2c3d", table: "77" },
    "9: from all iif veth0a1b2c3d lookup 77",
  ],
  [
    "by the tunnel",
    { priority: 9, src: "all", iif: "wigglenet", table: "77" },
    "9: from all iif wigglenet lookup 77",
  ],
  ["by another link", { priority: 9, src: "all", iif: "eth0", table: "77" }, undefined],
  [
    "of this node's own programs",
    { priority: 9, src: "all", iif: "lo", uid_start: 0, uid_end: 5, table: "77" },
    undefined,
  ],
  ["of a port of others", { priority: 9, src: "198.51.100.7", dport: 443, table: "77" }, undefined],
  ["of a port with a mark", { priority: 9, src: "all", dport: 443, fwmark: "0x7", table: "77" }, undefined],
  ["of a VRF", { priority: 1000, src: "all", l3mdev: null }, undefined],
])("a rule %s", (_, rule, named) => {
  const ours = [
    { priority: 2459, src: "all", fwmark: "0x1000000", fwmask: "0x1000000", table: "24601", protocol: "246" },
    { priority: 2460, src: "all", table: "24600", protocol: "246" },
    { priority: 2461, src: "all", dst: "10.1.0.0", dstlen: 24, table: "254", protocol: "246" },
  ];
  const listed = [rule as (typeof ours)[0], ...ours].toSorted((a, b) => a.priority - b.priority);
  const observed = parseRules("ipv4", JSON.stringify(listed));
  expect(catchingRules(observed, { routes, rules }, ["192.0.2.5"], "wigglenet")).toEqual(
    named ? [named] : [],
  );
});
