import { describe, expect, test } from "bun:test";
import { input, keyless, native, node, plan, routesOf, type Tweak, underlay } from "./fixtures/input.ts";
import type { NodeRecord } from "./overlay/node.ts";
import { podRange } from "./podcidr/ranges.ts";

describe("routes", () => {
  const ownGuards = ["main 10.1.0.0/24 unreachable", "main fd00:1::/64 unreachable"];
  test.each<[title: string, Tweak, expected: string[]]>([
    // A packet to a dead address of the own pod CIDR must not leave by the default route.
    ["alone", { nodes: [] }, ownGuards],
    [
      "pod CIDRs over unreachable ones, node addresses in the table of marked packets",
      {},
      [
        "main 10.1.0.0/24 unreachable",
        "24600 10.1.1.0/24 tunnel",
        "24600 10.1.1.0/24 unreachable",
        "24601 192.0.2.1/32 tunnel",
        "24601 2001:db8::1/128 tunnel",
        "main fd00:1::/64 unreachable",
        "24600 fd00:1:0:1::/64 tunnel",
        "24600 fd00:1:0:1::/64 unreachable",
      ],
    ],
    [
      "a node without a key is unreachable rather than in the clear",
      { nodes: [keyless(1)] },
      [
        "main 10.1.0.0/24 unreachable",
        "24600 10.1.1.0/24 unreachable",
        "main fd00:1::/64 unreachable",
        "24600 fd00:1:0:1::/64 unreachable",
      ],
    ],
    [
      "so is one that left a short while ago",
      { nodes: [], departed: ["10.1.9.0/24", "fd00:1:0:9::/64"] },
      [
        "main 10.1.0.0/24 unreachable",
        "24600 10.1.9.0/24 unreachable",
        "main fd00:1::/64 unreachable",
        "24600 fd00:1:0:9::/64 unreachable",
      ],
    ],
    [
      "its address inside its pod CIDR goes the way that it went before",
      { nodes: [], departed: ["2001:db8:9::/64", "2001:db8:9::5"] },
      [
        "main 10.1.0.0/24 unreachable",
        "24600 2001:db8:9::/64 unreachable",
        "24600 2001:db8:9::5/128 throw",
        "main fd00:1::/64 unreachable",
      ],
    ],
    ["one that left, and whose pod CIDR another has", { nodes: [], departed: ["10.1.0.0/24"] }, ownGuards],
    [
      "IPv4 routed natively",
      native("ipv4"),
      [
        "main 10.1.0.0/24 unreachable",
        "24601 2001:db8::1/128 tunnel",
        "main fd00:1::/64 unreachable",
        "24600 fd00:1:0:1::/64 tunnel",
        "24600 fd00:1:0:1::/64 unreachable",
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

  describe("what lies in a remote pod CIDR and is no pod is excepted", () => {
    /** As hosting providers do (netavark#270): the node has an address of the /64 that its pods have. */
    const onLink = (tweak: Partial<NodeRecord> = {}) =>
      node(1, {
        podCidrs: ["2001:db8:1::/64"],
        addresses: ["2001:db8:1::1"],
        endpoints: ["2001:db8:1::1"],
        ...tweak,
      });
    const exceptions = (tweak: Tweak) => routesOf(tweak).filter((text) => !text.includes("unreachable"));
    const pods = "24600 2001:db8:1::/64 tunnel";
    const itself = "24600 2001:db8:1::1/128 throw";
    const marked = "24601 2001:db8:1::1/128 tunnel";
    test.each<[title: string, Tweak, expected: string[]]>([
      ["the node's own address", { nodes: [onLink()] }, [pods, itself, marked]],
      [
        "its ExternalIP as well, which is no address of the tunnel",
        { nodes: [onLink({ addresses: [], endpoints: ["2001:db8:1::1"] })] },
        [pods, itself],
      ],
      [
        "of a node without a key too: it is not to be cut off",
        {
          nodes: [
            keyless(1, {
              podCidrs: ["2001:db8:1::/64"],
              addresses: ["2001:db8:1::1"],
              endpoints: ["2001:db8:1::1"],
            }),
          ],
        },
        [itself],
      ],
      ["not where the family is routed natively", { nodes: [onLink()], ...native("ipv6") }, []],
      [
        "gateways of this node, and no others",
        {
          nodes: [onLink({ addresses: [], endpoints: [] })],
          underlay: underlay({ gateways: ["2001:db8:1::fe", "fe80::1", "10.1.1.1"] }),
        },
        [pods, "24600 2001:db8:1::fe/128 throw"],
      ],
      [
        "a gateway in the pod CIDR of a node that left",
        { nodes: [], departed: ["10.1.9.0/24"], underlay: underlay({ gateways: ["10.1.9.1"] }) },
        ["24600 10.1.9.1/32 throw"],
      ],
      [
        "not in the own pod CIDR, which is not in this table",
        { nodes: [], underlay: underlay({ gateways: ["10.1.0.9"] }) },
        [],
      ],
      [
        "where a pod CIDR is a single address, the exception alone",
        {
          nodes: [
            node(1, { podCidrs: ["10.1.1.7/32", "10.1.1.8/32"], addresses: [], endpoints: ["10.1.1.7"] }),
          ],
        },
        ["24600 10.1.1.7/32 throw", "24600 10.1.1.8/32 tunnel"],
      ],
    ])("%s", (_, tweak, expected) => {
      expect(exceptions(tweak)).toEqual(expected);
    });
  });

  test("a pod CIDR of a node that left is not guarded where it covers one of ours", () => {
    expect(routesOf({ nodes: [], departed: ["10.1.0.0/16", "fd00:1::/80", "10.9.0.0/24"] })).toEqual([
      ...["main 10.1.0.0/24 unreachable", "24600 10.9.0.0/24 unreachable", "main fd00:1::/64 unreachable"],
    ]);
  });
});

describe("rules", () => {
  const rulesOf = (tweak: Tweak) =>
    plan(input(tweak)).rules.map(({ family, priority, text }) => `${family} ${priority} ${text}`);
  const both = (family: string) => [
    `${family} 2459 from all fwmark 0x1000000/0x1000000 lookup 24601`,
    `${family} 2460 from all lookup 24600`,
  ];
  test.each<[title: string, Tweak, expected: string[]]>([
    [
      "marked packets, remote pods, own pods",
      {},
      [
        ...both("ipv4"),
        "ipv4 2461 from all to 10.1.0.0/24 lookup 254",
        ...both("ipv6"),
        "ipv6 2461 from all to fd00:1::/64 lookup 254",
      ],
    ],
    [
      "one for each own pod CIDR",
      { own: { podRanges: ["10.2.0.0/24", "10.1.0.0/24"].map((prefix) => podRange(prefix, [])) } },
      [
        ...both("ipv4"),
        "ipv4 2461 from all to 10.1.0.0/24 lookup 254",
        "ipv4 2461 from all to 10.2.0.0/24 lookup 254",
        ...both("ipv6"),
      ],
    ],
    [
      "none for a family that is routed natively",
      native("ipv4"),
      [...both("ipv6"), "ipv6 2461 from all to fd00:1::/64 lookup 254"],
    ],
    ["none without a tunnel", native("ipv4", "ipv6"), []],
  ])("%s", (_, tweak, expected) => {
    expect(rulesOf(tweak)).toEqual(expected);
  });
});
