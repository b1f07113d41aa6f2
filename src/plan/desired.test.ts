import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Desired, type PlanInput, plan, type Route } from "./desired.ts";
import type { Firewall, Rule } from "./firewall.ts";
import type { NodeRecord } from "./node.ts";
import { podRange } from "./pods.ts";

/** Node number n: 10.1.n.0/24 and fd00:1:0:n::/64 on 192.0.2.n and 2001:db8::n. */
function node(n: number, tweak: Partial<NodeRecord> = {}): NodeRecord {
  const addresses = [`192.0.2.${n}`, `2001:db8::${n}`];
  return {
    name: `n${n}`,
    created: "2024-01-01T00:00:00Z",
    publicKey: `key-${n}`,
    podCidrs: [`10.1.${n}.0/24`, `fd00:1:0:${n}::/64`],
    addresses,
    endpoints: addresses,
    clearToNodes: false,
    problems: [],
    ...tweak,
  };
}

function keyless(n: number, tweak: Partial<NodeRecord> = {}): NodeRecord {
  const { publicKey: _, ...record } = node(n, tweak);
  return record;
}

interface Tweak {
  nodes?: NodeRecord[];
  own?: Partial<PlanInput["own"]>;
  settings?: Partial<PlanInput["settings"]>;
  underlay?: PlanInput["underlay"];
  underlayMtu?: number;
  departed?: string[];
  reserved?: string[];
  standing?: Record<string, string>;
}

/** Own node number 0, dual-stack, with one other. */
function input({ own, settings, standing, ...rest }: Tweak = {}): PlanInput {
  return {
    own: {
      name: "n0",
      publicKey: "key-0",
      podRanges: [podRange("10.1.0.0/24", []), podRange("fd00:1::/64", [])],
      addresses: ["192.0.2.200", "2001:db8::200"],
      endpoints: ["192.0.2.200", "2001:db8::200"],
      ...own,
    },
    nodes: [node(1)],
    settings: {
      port: 24601,
      tunnelFamilies: ["ipv4", "ipv6"],
      nativeRouting: { ipv4: false, ipv6: false },
      linkName: "wigglenet",
      masquerade: { ipv4: true, ipv6: true },
      masqueradeRandomFully: true,
      nonMasqueradeCidrs: [],
      filter: { ipv4: false, ipv6: false },
      ...settings,
    },
    underlayMtu: 1500,
    standing: { owners: new Map(Object.entries(standing ?? {})), endpoints: new Map(), holders: new Map() },
    underlay: [
      { prefix: "0.0.0.0/0", via: "192.0.2.254", dev: "eth0", metric: 0 },
      { prefix: "192.0.2.0/24", via: undefined, dev: "eth0", metric: 0 },
      { prefix: "::/0", via: "fe80::1", dev: "eth0", metric: 1024 },
      { prefix: "2001:db8::/64", via: undefined, dev: "eth0", metric: 256 },
    ],
    departed: [],
    reserved: [],
    ...rest,
  };
}

/** A route in a line: `10.1.1.0/24 tunnel`, `192.0.2.1/32 tunnel 24601`, `10.1.1.0/24 unreachable`. */
function line(route: Route): string {
  switch (route.type) {
    case "tunnel":
      return `${route.prefix} tunnel${route.table === "main" ? "" : ` ${route.table}`}`;
    case "unreachable":
      return `${route.prefix} unreachable`;
    case "underlay":
      return `${route.prefix} ${route.via ? `via ${route.via} ` : ""}dev ${route.dev}`;
  }
}

const routesOf = (tweak?: Tweak) => plan(input(tweak)).routes.map(line);
const peersOf = (tweak?: Tweak) =>
  plan(input(tweak)).peers.map((peer) => `${peer.publicKey} ${peer.endpoint} ${peer.allowedIps.join(",")}`);
const native = (...families: ("ipv4" | "ipv6")[]) => ({
  settings: { nativeRouting: { ipv4: families.includes("ipv4"), ipv6: families.includes("ipv6") } },
});

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
          "type": "unreachable",
        },
        {
          "prefix": "10.1.1.0/24",
          "table": "main",
          "type": "tunnel",
        },
        {
          "prefix": "10.1.1.0/24",
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
          "type": "unreachable",
        },
        {
          "prefix": "fd00:1:0:1::/64",
          "table": "main",
          "type": "tunnel",
        },
        {
          "prefix": "fd00:1:0:1::/64",
          "type": "unreachable",
        },
      ],
      "ruleFamilies": [
        "ipv4",
        "ipv6",
      ],
    }
  `);
  expect(cni).toContain(`"mtu": 1420`);
});

test("a peer without an endpoint gets its pods' packets, as it may come to us, and none for its addresses", () => {
  const { peers, routes, firewall } = plan(
    input({ own: { endpoints: ["2001:db8::200"] }, nodes: [node(1, { endpoints: ["192.0.2.1"] })] }),
  );
  expect(peers.map((peer) => peer.endpoint)).toEqual([undefined]);
  expect(firewall.sets.nodes).toEqual([]);
  const tunnelled = routes.filter((route) => route.type === "tunnel");
  expect(tunnelled.map((route) => `${route.table} ${route.prefix}`)).toEqual([
    "main 10.1.1.0/24",
    "main fd00:1:0:1::/64",
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
      "the API server's address stays outside",
      { reserved: ["192.0.2.1"] },
      ["key-1 192.0.2.1:24601 10.1.1.0/24,2001:db8::1/128,fd00:1:0:1::/64"],
    ],
    ["our own key", { nodes: [node(1, { publicKey: "key-0" })] }, []],
  ])("%s", (_, tweak, expected) => {
    expect(peersOf(tweak)).toEqual(expected);
  });
});

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
          nodes: [onLink()],
          underlay: [{ prefix: "2001:db8:1::/64", via: undefined, dev: "eth1", metric: 256 }],
        },
        ["2001:db8:1::/64 tunnel", "2001:db8:1::1/128 tunnel 24601", "2001:db8:1::1/128 dev eth1"],
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

describe("link, rules, MTU, firewall, CNI file", () => {
  const pick = ({ link, ruleFamilies, firewall, cni }: Desired) => ({
    mtu: link?.mtu,
    addresses: link?.addresses,
    rules: ruleFamilies,
    ...firewall.sets,
    marked: familiesOf(firewall, "mark"),
    dropped: familiesOf(firewall, "drop"),
    masqueraded: familiesOf(firewall, "masquerade-random", "masquerade"),
    cniMtu: cni === undefined ? undefined : JSON.parse(cni).plugins[0].mtu,
  });
  const familiesOf = ({ rules }: Firewall, ...verdicts: Rule["verdict"][]) => [
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
      "nor is a router inside the own one",
      { underlay: [{ prefix: "::/0", via: "fd00:1::fe", dev: "eth0", metric: 1024 }] },
      { hosts: ["fd00:1::fe"] },
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

describe("problems", () => {
  const problemsOf = (tweak: Tweak) => Object.fromEntries(plan(input(tweak)).problems);
  test.each<[title: string, Tweak, expected: Record<string, string[]>]>([
    ["none", {}, {}],
    ["of the annotations", { nodes: [keyless(1, { problems: ["bad"] })] }, { n1: ["bad"] }],
    [
      "of a claim, after those",
      { nodes: [keyless(1, { problems: ["bad"], podCidrs: ["10.1.0.0/25"] })] },
      { n1: ["bad", "pod CIDR 10.1.0.0/25 overlaps pod CIDR 10.1.0.0/24 of node n0"] },
    ],
    [
      "no endpoint",
      { own: { endpoints: ["192.0.2.200"] }, nodes: [node(1, { endpoints: ["2001:db8::1"] })] },
      {
        n1: [
          "none of its addresses has a family that this node has too (ipv4) and WG_IP_FAMILY allows (ipv4, ipv6)",
        ],
      },
    ],
    [
      "we have no address",
      { own: { endpoints: [] }, settings: { tunnelFamilies: ["ipv6"] } },
      {
        n1: [
          "none of its addresses has a family that this node has too (no address) and WG_IP_FAMILY allows (ipv6)",
        ],
      },
    ],
    ["without a tunnel no endpoint is missed", { ...native("ipv4", "ipv6"), own: { endpoints: [] } }, {}],
  ])("%s", (_, tweak, expected) => {
    expect(problemsOf(tweak)).toEqual(expected);
  });
});

test("the order in which the cluster says it makes no difference", () => {
  const nodes = [1, 2, 3, 4, 5, 6].map((n) =>
    node(n, n > 4 ? { podCidrs: ["10.1.1.0/25", `10.2.${n}.0/24`] } : {}),
  );
  const underlay = input().underlay;
  const departed = ["10.9.0.0/24", "10.8.0.0/24", "fd00:9::/64"];
  const expected = plan(input({ nodes, departed }));
  fc.assert(
    fc.property(
      fc.shuffledSubarray(nodes, { minLength: 6 }),
      fc.shuffledSubarray([...underlay], { minLength: 4 }),
      fc.shuffledSubarray(departed, { minLength: 3 }),
      (nodes, underlay, departed) => {
        expect(plan(input({ nodes, underlay, departed }))).toEqual(expected);
      },
    ),
  );
});
