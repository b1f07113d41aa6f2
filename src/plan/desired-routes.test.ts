import { describe, expect, test } from "bun:test";
import { keyless, native, node, routesOf, type Tweak } from "./fixtures/input.ts";
import type { NodeRecord } from "./node.ts";

describe("routes", () => {
  const ownGuards = ["10.1.0.0/24 unreachable", "fd00:1::/64 unreachable"];
  test.each<[title: string, Tweak, expected: string[]]>([
    // A packet to a dead address of the own pod CIDR must not leave by the default route.
    ["alone", { nodes: [] }, ownGuards],
    [
      "pod CIDRs in the main table over an unreachable one, node addresses in the other",
      {},
      [
        "10.1.0.0/24 unreachable",
        "10.1.1.0/24 tunnel",
        "10.1.1.0/24 unreachable",
        "192.0.2.1/32 tunnel 24601",
        "2001:db8::1/128 tunnel 24601",
        "fd00:1::/64 unreachable",
        "fd00:1:0:1::/64 tunnel",
        "fd00:1:0:1::/64 unreachable",
      ],
    ],
    [
      "a node without a key is unreachable rather than in the clear",
      { nodes: [keyless(1)] },
      [
        "10.1.0.0/24 unreachable",
        "10.1.1.0/24 unreachable",
        "fd00:1::/64 unreachable",
        "fd00:1:0:1::/64 unreachable",
      ],
    ],
    [
      "so is one that left a short while ago",
      { nodes: [], departed: ["10.1.9.0/24", "fd00:1:0:9::/64"] },
      [
        "10.1.0.0/24 unreachable",
        "10.1.9.0/24 unreachable",
        "fd00:1::/64 unreachable",
        "fd00:1:0:9::/64 unreachable",
      ],
    ],
    [
      "its address inside its pod CIDR goes the way that it went before",
      {
        nodes: [],
        departed: ["2001:db8:9::/64", "2001:db8:9::5"],
        underlay: [{ prefix: "::/0", via: "fe80::1", dev: "eth0", metric: 1024 }],
      },
      [
        "10.1.0.0/24 unreachable",
        "2001:db8:9::/64 unreachable",
        "2001:db8:9::5/128 via fe80::1 dev eth0",
        "fd00:1::/64 unreachable",
      ],
    ],
    ["one that left, and whose pod CIDR another has", { nodes: [], departed: ["10.1.0.0/24"] }, ownGuards],
    [
      "IPv4 routed natively",
      native("ipv4"),
      [
        "10.1.0.0/24 unreachable",
        "2001:db8::1/128 tunnel 24601",
        "fd00:1::/64 unreachable",
        "fd00:1:0:1::/64 tunnel",
        "fd00:1:0:1::/64 unreachable",
      ],
    ],
    [
      "IPv4 routed natively, departed",
      { ...native("ipv4"), nodes: [], departed: ["10.1.9.0/24"] },
      ownGuards,
    ],
    ["both routed natively", native("ipv4", "ipv6"), ownGuards],
    [
      "a claim that is refused has no route, nor an unreachable one of its own",
      { nodes: [node(1, { podCidrs: ["10.1.0.0/16"], addresses: ["192.0.2.200"] })] },
      ownGuards,
    ],
  ])("%s", (_, tweak, expected) => {
    expect(routesOf(tweak)).toEqual(expected);
  });

  describe("a node address inside its own pod CIDR stays on its way (netavark#270)", () => {
    const onLink = (tweak: Partial<NodeRecord> = {}) =>
      node(1, {
        podCidrs: ["2001:db8:1::/64"],
        addresses: ["2001:db8:1::1"],
        endpoints: ["2001:db8:1::1"],
        ...tweak,
      });
    const exceptions = (tweak: Tweak) =>
      routesOf(tweak).filter((text) => text.includes(" dev ") || text.includes("tunnel"));
    test.each<[title: string, Tweak, expected: string[]]>([
      [
        "by the default route",
        { nodes: [onLink()] },
        [
          "2001:db8:1::/64 tunnel",
          "2001:db8:1::1/128 tunnel 24601",
          "2001:db8:1::1/128 via fe80::1 dev eth0",
        ],
      ],
      [
        "on a link",
        {
          nodes: [onLink({ podCidrs: ["2001:db8:1::/80"] })],
          underlay: [{ prefix: "2001:db8:1::/64", via: undefined, dev: "eth1", metric: 256 }],
        },
        ["2001:db8:1::/80 tunnel", "2001:db8:1::1/128 tunnel 24601", "2001:db8:1::1/128 dev eth1"],
      ],
      [
        "so do this node's router and the API server, inside of a pod CIDR on the link",
        {
          nodes: [onLink({ podCidrs: ["2001:db8:1::/80"], addresses: [], endpoints: [] })],
          reserved: ["2001:db8:1::100"],
          underlay: [
            { prefix: "2001:db8:1::/64", via: undefined, dev: "eth1", metric: 256 },
            { prefix: "::/0", via: "2001:db8:1::fe", dev: "eth1", metric: 1024 },
          ],
        },
        ["2001:db8:1::/80 tunnel", "2001:db8:1::fe/128 dev eth1", "2001:db8:1::100/128 dev eth1"],
      ],
      [
        "of two equal routes by the one of lower metric",
        {
          nodes: [onLink()],
          underlay: [
            { prefix: "::/0", via: "fe80::2", dev: "wlan0", metric: 600 },
            { prefix: "::/0", via: "fe80::1", dev: "eth0", metric: 100 },
          ],
        },
        [
          "2001:db8:1::/64 tunnel",
          "2001:db8:1::1/128 tunnel 24601",
          "2001:db8:1::1/128 via fe80::1 dev eth0",
        ],
      ],
      [
        "nowhere if the underlay has no way",
        { nodes: [onLink()], underlay: [] },
        ["2001:db8:1::/64 tunnel", "2001:db8:1::1/128 tunnel 24601"],
      ],
      [
        "its ExternalIP as well, which is no address of the tunnel",
        { nodes: [onLink({ addresses: [], endpoints: ["2001:db8:1::1"] })] },
        ["2001:db8:1::/64 tunnel", "2001:db8:1::1/128 via fe80::1 dev eth0"],
      ],
      [
        "a node without a key too: it is not to be cut off",
        {
          nodes: [
            keyless(1, {
              podCidrs: ["2001:db8:1::/64"],
              addresses: ["2001:db8:1::1"],
              endpoints: ["2001:db8:1::1"],
            }),
          ],
        },
        ["2001:db8:1::1/128 via fe80::1 dev eth0"],
      ],
      ["not where the family is routed natively", { nodes: [onLink()], ...native("ipv6") }, []],
    ])("%s", (_, tweak, expected) => {
      expect(exceptions(tweak)).toEqual(expected);
    });
  });
});
