import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Firewall, Rule } from "./firewall/model.ts";
import {
  input,
  keyless,
  type Listed,
  native,
  node,
  peersOf,
  plan,
  type Tweak,
  underlay,
} from "./fixtures/input.ts";

test("two nodes, dual-stack: all of it", () => {
  const { cni, firewall, ...rest } = plan(input());
  // Its rules have tests of their own.
  expect(firewall.sets).toMatchInlineSnapshot(`
    {
      "hosts": [],
      "keep": [],
      "native": [],
      "nodes": [
        "192.0.2.1",
        "2001:db8::1",
      ],
      "own": [
        "10.1.0.0/24",
        "fd00:1::/64",
      ],
      "remote": [
        "10.1.1.0/24",
        "fd00:1:0:1::/64",
      ],
      "unencrypted": [],
    }
  `);
  expect(rest).toMatchInlineSnapshot(`
    {
      "link": {
        "addresses": [
          "10.1.0.1/32",
          "fd00:1::1/128",
        ],
        "mtu": 1420,
      },
      "peers": [
        {
          "allowedIps": [
            "10.1.1.0/24",
            "192.0.2.1/32",
            "2001:db8::1/128",
            "fd00:1:0:1::/64",
          ],
          "endpoint": "192.0.2.1:24601",
          "node": "n1",
          "publicKey": "key-1",
        },
      ],
      "problems": Map {},
      "routes": [
        {
          "prefix": "10.1.0.0/24",
          "table": "main",
          "type": "unreachable",
        },
        {
          "prefix": "10.1.1.0/24",
          "table": "24600",
          "type": "tunnel",
        },
        {
          "prefix": "10.1.1.0/24",
          "table": "24600",
          "type": "unreachable",
        },
        {
          "prefix": "192.0.2.1/32",
          "table": "24601",
          "type": "tunnel",
        },
        {
          "prefix": "2001:db8::1/128",
          "table": "24601",
          "type": "tunnel",
        },
        {
          "prefix": "fd00:1::/64",
          "table": "main",
          "type": "unreachable",
        },
        {
          "prefix": "fd00:1:0:1::/64",
          "table": "24600",
          "type": "tunnel",
        },
        {
          "prefix": "fd00:1:0:1::/64",
          "table": "24600",
          "type": "unreachable",
        },
      ],
      "rules": [
        {
          "family": "ipv4",
          "priority": 2459,
          "text": "from all fwmark 0x1000000/0x1000000 lookup 24601",
        },
        {
          "family": "ipv4",
          "priority": 2460,
          "text": "from all lookup 24600",
        },
        {
          "family": "ipv4",
          "priority": 2461,
          "text": "from all to 10.1.0.0/24 lookup 254",
        },
        {
          "family": "ipv6",
          "priority": 2459,
          "text": "from all fwmark 0x1000000/0x1000000 lookup 24601",
        },
        {
          "family": "ipv6",
          "priority": 2460,
          "text": "from all lookup 24600",
        },
        {
          "family": "ipv6",
          "priority": 2461,
          "text": "from all to fd00:1::/64 lookup 254",
        },
      ],
      "standing": {
        "endpoints": 
    Map {
          "key-1" => "192.0.2.1",
        }
    ,
        "holders": 
    Map {
          "key-1" => "n1",
        }
    ,
        "nodes": 
    Map {
          "10.1.1.0/24" => "n1",
          "fd00:1:0:1::/64" => "n1",
          "192.0.2.1/32" => "n1",
          "2001:db8::1/128" => "n1",
        }
    ,
        "owners": 
    Map {
          "10.1.1.0/24" => "key-1",
          "fd00:1:0:1::/64" => "key-1",
          "192.0.2.1/32" => "key-1",
          "2001:db8::1/128" => "key-1",
        }
    ,
      },
    }
  `);
  expect(cni?.plugins[0]).toMatchObject({ type: "ptp", mtu: 1420 });
});

test("a peer without an endpoint gets its pods' packets, as it may come to us, and none for its addresses", () => {
  const { peers, routes, firewall } = plan(
    input({ own: { endpoints: ["2001:db8::200"] }, nodes: [node(1, { endpoints: ["192.0.2.1"] })] }),
  );
  expect(peers.map((peer) => peer.endpoint)).toEqual([undefined]);
  expect(firewall.sets.nodes).toEqual([]);
  const tunnelled = routes.filter((route) => route.type === "tunnel");
  expect(tunnelled.map((route) => `${route.table} ${route.prefix}`)).toEqual([
    "24600 10.1.1.0/24",
    "24600 fd00:1:0:1::/64",
  ]);
});

describe("peers", () => {
  const all = "10.1.1.0/24,192.0.2.1/32,2001:db8::1/128,fd00:1:0:1::/64";
  test.each<[title: string, Tweak, expected: string[]]>([
    ["alone", { nodes: [] }, []],
    ["the first family of the peer that both have", {}, [`key-1 192.0.2.1:24601 ${all}`]],
    [
      "IPv6 first",
      { nodes: [node(1, { endpoints: ["2001:db8::1", "192.0.2.1"] })] },
      [`key-1 [2001:db8::1]:24601 ${all}`],
    ],
    ["we have IPv6 only", { own: { endpoints: ["2001:db8::200"] } }, [`key-1 [2001:db8::1]:24601 ${all}`]],
    ["WG_IP_FAMILY=ipv6", { settings: { tunnelFamilies: ["ipv6"] } }, [`key-1 [2001:db8::1]:24601 ${all}`]],
    ["WG_IP_FAMILY=ipv4", { settings: { tunnelFamilies: ["ipv4"] } }, [`key-1 192.0.2.1:24601 ${all}`]],
    [
      "no family in common: it may still come to us",
      { own: { endpoints: ["2001:db8::200"] }, nodes: [node(1, { endpoints: ["192.0.2.1"] })] },
      [`key-1 undefined ${all}`],
    ],
    [
      "WG_IP_FAMILY=ipv6 on an IPv4 underlay",
      { own: { endpoints: ["192.0.2.200"] }, settings: { tunnelFamilies: ["ipv6"] } },
      [`key-1 undefined ${all}`],
    ],
    ["another port", { settings: { port: 51820 } }, [`key-1 192.0.2.1:51820 ${all}`]],
    ["a node without a key", { nodes: [keyless(1)] }, []],
    [
      "an endpoint that is no address of its own (1:1 NAT)",
      { nodes: [node(1, { addresses: [], endpoints: ["203.0.113.1"] })] },
      ["key-1 203.0.113.1:24601 10.1.1.0/24,fd00:1:0:1::/64"],
    ],
    [
      "nothing to reach: a peer all the same",
      { nodes: [node(1, { podCidrs: [], addresses: [] })] },
      ["key-1 192.0.2.1:24601 "],
    ],
    [
      "sorted by key",
      { nodes: [node(2, { podCidrs: [], addresses: [] }), node(1, { podCidrs: [], addresses: [] })] },
      ["key-1 192.0.2.1:24601 ", "key-2 192.0.2.2:24601 "],
    ],
    ["IPv4 routed natively", native("ipv4"), ["key-1 192.0.2.1:24601 2001:db8::1/128,fd00:1:0:1::/64"]],
    ["IPv6 routed natively", native("ipv6"), ["key-1 192.0.2.1:24601 10.1.1.0/24,192.0.2.1/32"]],
    [
      "no pod CIDR over the API server's address",
      { reserved: ["10.1.1.7"] },
      ["key-1 192.0.2.1:24601 192.0.2.1/32,2001:db8::1/128,fd00:1:0:1::/64"],
    ],
    ["our own key", { nodes: [node(1, { publicKey: "key-0" })] }, []],
  ])("%s", (_, tweak, expected) => {
    expect(peersOf(tweak)).toEqual(expected);
  });
});

describe("link, rules, MTU, firewall, CNI file", () => {
  const pick = ({ link, rules, firewall, cni }: Listed) => ({
    mtu: link?.mtu,
    addresses: link?.addresses,
    rules: [...new Set(rules.map((rule) => rule.family))],
    ...firewall.sets,
    marked: familiesOf(rulesOf(firewall), "mark"),
    dropped: familiesOf(rulesOf(firewall), "drop"),
    masqueraded: familiesOf(own(firewall), "masquerade-random", "masquerade"),
    cniMtu: cni?.plugins[0]?.mtu,
  });
  const rulesOf = ({ chains }: Firewall) => chains.flatMap(({ rules }) => rules);
  const own = (firewall: Firewall) => rulesOf(firewall).filter((rule) => rule.match.from === "@own");
  const familiesOf = (rules: Rule[], ...verdicts: Rule["verdict"][]) => [
    ...new Set(rules.filter((rule) => verdicts.includes(rule.verdict)).map((rule) => rule.family)),
  ];
  test.each<[title: string, Tweak, expected: object]>([
    [
      "1500",
      {},
      { mtu: 1420, cniMtu: 1420, addresses: ["10.1.0.1/32", "fd00:1::1/128"], rules: ["ipv4", "ipv6"] },
    ],
    ["an underlay of 1450 (cilium#23917, k3s#5101)", { underlayMtu: 1450 }, { mtu: 1370, cniMtu: 1370 }],
    [
      "an underlay of 1280 (Tailscale): what IPv6 needs at least",
      { underlayMtu: 1280 },
      { mtu: 1280, cniMtu: 1280 },
    ],
    ["jumbo frames", { underlayMtu: 9000 }, { mtu: 8920, cniMtu: 8920 }],
    [
      "both routed natively: no link, no overhead",
      native("ipv4", "ipv6"),
      {
        mtu: undefined,
        cniMtu: 1500,
        rules: [],
        nodes: [],
        native: ["192.0.2.1", "2001:db8::1"],
        marked: [],
        dropped: [],
        masqueraded: ["ipv4", "ipv6"],
      },
    ],
    [
      "IPv4 routed natively",
      native("ipv4"),
      {
        mtu: 1420,
        addresses: ["fd00:1::1/128"],
        rules: ["ipv6"],
        nodes: ["2001:db8::1"],
        native: ["192.0.2.1"],
        marked: ["ipv6"],
        dropped: ["ipv6"],
        masqueraded: ["ipv4", "ipv6"],
      },
    ],
    [
      "all pod CIDRs are known to the firewall, of nodes without a key too",
      { nodes: [node(1), keyless(2)] },
      {
        own: ["10.1.0.0/24", "fd00:1::/64"],
        remote: ["10.1.1.0/24", "10.1.2.0/24", "fd00:1:0:1::/64", "fd00:1:0:2::/64"],
        nodes: ["192.0.2.1", "2001:db8::1"],
        native: [],
        unencrypted: [],
      },
    ],
    [
      // A node's NIC may hold an address of the very /64 that its pods have.
      "nodes inside their own pod CIDRs are no pods: this one, one by its endpoint, one by its address",
      {
        own: { endpoints: ["192.0.2.200", "fd00:1::a"] },
        nodes: [
          node(1, { endpoints: ["192.0.2.1", "fd00:1:0:1::a"] }),
          node(2, { addresses: ["10.1.2.10"] }),
          node(3),
        ],
      },
      { hosts: ["10.1.2.10", "fd00:1::a", "fd00:1:0:1::a"] },
    ],
    [
      "nor are a temporary address of this node, or a virtual IP that it has for now",
      { own: { onLinks: ["192.0.2.200", "10.1.0.77", "fd00:1::7e3f"] } },
      { hosts: ["10.1.0.77", "fd00:1::7e3f"] },
    ],
    [
      "nor is a router inside the own one",
      { underlay: underlay({ gateways: ["fd00:1::fe"] }) },
      { hosts: ["fd00:1::fe"] },
    ],
    [
      "nor is one inside another node's, or the API server there",
      {
        underlay: underlay({ gateways: ["fd00:1:0:1::fe", "fe80::1"] }),
        reserved: ["192.0.2.254"],
        nodes: [node(1, { podCidrs: ["fd00:1:0:1::/64"] })],
      },
      { hosts: ["fd00:1:0:1::fe"] },
    ],
    [
      // An nftables interval set refuses a prefix inside another, and with it the whole transaction: one node's
      // annotation would have stopped the firewall and the CNI file of all.
      "a node's pod CIDRs one inside the other",
      { nodes: [node(1, { podCidrs: ["10.2.0.0/16", "10.2.0.0/24", "10.2.9.0/24", "10.3.0.0/24"] })] },
      { own: ["10.1.0.0/24", "fd00:1::/64"], remote: ["10.2.0.0/16", "10.3.0.0/24"] },
    ],
    [
      "a node whose agent is of the other kind",
      { nodes: [node(1, { clearToNodes: true, podCidrs: ["10.2.0.0/16", "10.2.9.0/24"] }), node(2)] },
      { unencrypted: ["10.2.0.0/16"] },
    ],
    [
      "what is not masqueraded, one inside the other",
      { settings: { nonMasqueradeCidrs: ["172.16.9.0/24", "2001:db8::/32", "172.16.0.0/12"] } },
      { keep: ["172.16.0.0/12", "2001:db8::/32"] },
    ],
    [
      "a node behind 1:1 NAT: its endpoint is no address behind the tunnel",
      { nodes: [node(1, { addresses: [], endpoints: ["203.0.113.1"] })] },
      { nodes: [], native: [] },
    ],
    [
      "filter, routed natively",
      { settings: { ...native("ipv4", "ipv6").settings, filter: { ipv4: false, ipv6: true } } },
      { dropped: ["ipv6"], marked: [] },
    ],
    [
      "no masquerade",
      { settings: { masquerade: { ipv4: true, ipv6: false } } },
      { masqueraded: ["ipv4"], marked: ["ipv4", "ipv6"] },
    ],
    [
      "no pod CIDR yet: no CNI file, so no pod starts",
      { own: { podRanges: [] } },
      { cniMtu: undefined, addresses: [], own: [] },
    ],
  ])("%s", (_, tweak, expected) => {
    expect(pick(plan(input(tweak)))).toMatchObject(expected);
  });
});

test("the order in which the cluster says it makes no difference", () => {
  const nodes = [1, 2, 3, 4, 5, 6].map((n) =>
    node(n, n > 4 ? { podCidrs: ["10.1.1.0/25", `10.2.${n}.0/24`] } : {}),
  );
  const gateways = ["10.1.1.9", "fe80::1", "192.0.2.254", "fd00:1:0:1::9"];
  const departed = ["10.9.0.0/24", "10.8.0.0/24", "fd00:9::/64"];
  const expected = plan(input({ nodes, underlay: underlay({ gateways }), departed }));
  fc.assert(
    fc.property(
      fc.shuffledSubarray(nodes, { minLength: 6 }),
      fc.shuffledSubarray(gateways, { minLength: 4 }),
      fc.shuffledSubarray(departed, { minLength: 3 }),
      (nodes, gateways, departed) => {
        expect(plan(input({ nodes, underlay: underlay({ gateways }), departed }))).toEqual(expected);
      },
    ),
  );
});
