import { describe, expect, test } from "bun:test";
import { podRange } from "./ranges.ts";

type Case = [subnet: string, excluded: string[], gateway: string, stretches: [string, string][]];

describe("the addresses of a pod CIDR, as host-local takes them", () => {
  test.each<Case>([
    // IPv4: without network and broadcast address; IPv6: without the subnet-router anycast address.
    ["10.1.0.0/24", [], "10.1.0.1", [["10.1.0.1", "10.1.0.254"]]],
    ["10.1.0.0/16", [], "10.1.0.1", [["10.1.0.1", "10.1.255.254"]]],
    ["10.1.0.4/30", [], "10.1.0.5", [["10.1.0.5", "10.1.0.6"]]],
    ["fd00:1::/64", [], "fd00:1::1", [["fd00:1::1", "fd00:1::ffff:ffff:ffff:ffff"]]],
    ["fd00:1::/126", [], "fd00:1::1", [["fd00:1::1", "fd00:1::3"]]],
    ["fd00:1::/80", ["fd00:2::1", "10.1.0.1"], "fd00:1::1", [["fd00:1::1", "fd00:1::ffff:ffff:ffff"]]],
    // A provider's on-link /64, with the node's own address and its router in it.
    ["2001:db8::/64", ["2001:db8::1"], "2001:db8::2", [["2001:db8::2", "2001:db8::ffff:ffff:ffff:ffff"]]],
    [
      "2001:db8::/64",
      ["2001:db8::5"],
      "2001:db8::1",
      [
        ["2001:db8::1", "2001:db8::4"],
        ["2001:db8::6", "2001:db8::ffff:ffff:ffff:ffff"],
      ],
    ],
    [
      "10.1.0.0/29",
      ["10.1.0.5", "10.1.0.3", "10.1.0.3"],
      "10.1.0.1",
      [
        ["10.1.0.1", "10.1.0.2"],
        ["10.1.0.4", "10.1.0.4"],
        ["10.1.0.6", "10.1.0.6"],
      ],
    ],
    [
      "10.1.0.0/29",
      ["10.1.0.2"],
      "10.1.0.1",
      [
        ["10.1.0.1", "10.1.0.1"],
        ["10.1.0.3", "10.1.0.6"],
      ],
    ],
    ["10.1.0.0/29", ["10.1.0.6"], "10.1.0.1", [["10.1.0.1", "10.1.0.5"]]],
    // Network and broadcast addresses were never to be given out.
    ["10.1.0.0/29", ["10.1.0.0", "10.1.0.7"], "10.1.0.1", [["10.1.0.1", "10.1.0.6"]]],
    ["fd00:1::/126", ["fd00:1::"], "fd00:1::1", [["fd00:1::1", "fd00:1::3"]]],
  ])("%s without %j", (subnet, excluded, gateway, stretches) => {
    expect(podRange(subnet, excluded)).toEqual({ subnet, gateway, stretches });
  });

  test.each<[subnet: string, excluded: string[], says: string]>([
    [
      "10.1.0.0/31",
      [],
      "pod CIDR 10.1.0.0/31 has no room for a gateway and a pod: give this node a larger one",
    ],
    ["10.1.0.9/32", [], "pod CIDR 10.1.0.9/32 has no room"],
    ["fd00:1::/127", [], "pod CIDR fd00:1::/127 has no room"],
    ["fd00:1::9/128", [], "pod CIDR fd00:1::9/128 has no room"],
    [
      "10.1.0.4/30",
      ["10.1.0.5"],
      "has no room for a gateway and a pod besides the node's own 10.1.0.5: give",
    ],
    [
      "10.1.0.4/30",
      ["10.1.0.5", "10.1.0.6"],
      "besides the node's own 10.1.0.5, 10.1.0.6: give this node a larger",
    ],
    ["fd00:1::/126", ["fd00:1::1", "fd00:1::2"], "besides the node's own fd00:1::1, fd00:1::2: give"],
  ])("%s without %j: too small", (subnet, excluded, says) => {
    expect(() => podRange(subnet, excluded)).toThrow(says);
  });
});
