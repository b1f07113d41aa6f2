import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { compareAddresses, families, hostPrefix, overlaps, parseAddress } from "./address.ts";
import { type OwnClaims, type Standing, settle } from "./claims.ts";
import { annotation, fromAnnotations, fromNode, type NodeRecord } from "./node.ts";

/** A node with what it claims; the key is its name's, and the older a node the earlier in the alphabet. */
function node(name: string, claims: string[] = [], tweak: Partial<NodeRecord> = {}): NodeRecord {
  const addresses = claims.filter((claim) => !claim.includes("/"));
  return {
    name,
    created: `2024-01-01T00:00:0${name.charCodeAt(0) % 10}Z`,
    publicKey: `key of ${name}`,
    podCidrs: claims.filter((claim) => claim.includes("/")),
    addresses,
    endpoints: addresses,
    clearToNodes: false,
    problems: [],
    ...tweak,
  };
}

function own(tweak: Partial<OwnClaims> = {}): OwnClaims {
  return {
    name: "own",
    publicKey: "key of own",
    podCidrs: [],
    addresses: [],
    reserved: [],
    reaches: families,
    ...tweak,
  };
}

/** What is in the tunnel: of prefixes the key, of keys the address. */
function stands(values: Record<string, string> = {}): Standing {
  const entries = Object.entries(values);
  return {
    owners: new Map(entries.filter(([name]) => name.includes("/"))),
    endpoints: new Map(entries.filter(([name]) => !name.includes("/"))),
    holders: new Map(),
  };
}

/** What each node holds, in short: `a: 10.1.0.0/24 192.0.2.1`; a node without a key has `!` after its name. */
function holdings(claims: OwnClaims, nodes: NodeRecord[], standing: Record<string, string> = {}): string[] {
  return settle(claims, nodes, stands(standing)).nodes.map(
    ({ record, publicKey, podCidrs, addresses }) =>
      `${record.name}${publicKey ? "" : "!"}: ${[...podCidrs, ...addresses].join(" ")}`,
  );
}

describe("prefixes of two nodes", () => {
  test.each<[title: string, a: string[], b: string[], expected: string[]]>([
    ["apart", ["10.1.0.0/24"], ["10.1.1.0/24"], ["a: 10.1.0.0/24", "b: 10.1.1.0/24"]],
    ["equal", ["10.1.0.0/24"], ["10.1.0.0/24"], ["a: 10.1.0.0/24", "b: "]],
    ["contained in an older one's", ["10.1.0.0/16"], ["10.1.7.0/24"], ["a: 10.1.0.0/16", "b: "]],
    ["containing an older one's", ["10.1.7.0/24"], ["10.1.0.0/16"], ["a: 10.1.7.0/24", "b: "]],
    ["one of two", ["10.1.0.0/24"], ["10.1.0.0/25", "fd00::/64"], ["a: 10.1.0.0/24", "b: fd00::/64"]],
    ["IPv6", ["fd00::/64"], ["fd00::/80"], ["a: fd00::/64", "b: "]],
    ["a number in the other family", ["0.0.1.0/24"], ["::1:0/120"], ["a: 0.0.1.0/24", "b: ::1:0/120"]],
    // An address inside another's pod CIDR would take a pod's traffic away.
    ["address in an older pod CIDR", ["10.1.0.0/24"], ["10.1.0.9"], ["a: 10.1.0.0/24", "b: "]],
    ["pod CIDR around an older address", ["192.0.2.9"], ["192.0.2.0/24"], ["a: 192.0.2.9", "b: "]],
    // Either would be the gain of who claims it: traffic to it goes as to any host outside (kube-vip#1385).
    ["an address twice: neither", ["192.0.2.9", "10.1.0.0/24"], ["192.0.2.9"], ["a: 10.1.0.0/24", "b: "]],
    ["address in its own pod CIDR", ["10.1.0.0/24", "10.1.0.9"], [], ["a: 10.1.0.0/24 10.1.0.9", "b: "]],
    [
      "overlapping ones of its own",
      ["10.1.0.0/16", "10.1.7.0/24"],
      [],
      ["a: 10.1.0.0/16 10.1.7.0/24", "b: "],
    ],
    [
      "a rival of both of a node's overlapping ones",
      ["10.1.0.0/16", "10.1.7.0/24"],
      ["10.1.7.0/25"],
      ["a: 10.1.0.0/16 10.1.7.0/24", "b: "],
    ],
  ])("%s", (_, a, b, expected) => {
    expect(holdings(own(), [node("a", a), node("b", b)])).toEqual(expected);
    expect(holdings(own(), [node("b", b), node("a", a)]).reverse()).toEqual(expected);
  });

  test("a third that overlaps only what was refused holds", () => {
    const nodes = [node("a", ["10.1.0.0/25"]), node("b", ["10.1.0.0/24"]), node("c", ["10.1.0.128/25"])];
    expect(holdings(own(), nodes)).toEqual(["a: 10.1.0.0/25", "b: ", "c: 10.1.0.128/25"]);
  });
});

describe("who wins", () => {
  const cidr = "10.1.0.0/24";
  const [a, b] = [node("a", [cidr]), node("b", [cidr])];
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      ["the older Node", own(), [a, b], {}, [`a: ${cidr}`, "b: "]],
      [
        "then the name",
        own(),
        [node("b", [cidr], { created: "" }), node("a", [cidr], { created: "" })],
        {},
        ["b: ", `a: ${cidr}`],
      ],
      ["what stands over what is older", own(), [a, b], { [cidr]: "key of b" }, ["a: ", `b: ${cidr}`]],
      ["what stands for the older", own(), [a, b], { [cidr]: "key of a" }, [`a: ${cidr}`, "b: "]],
      [
        "what stands for nobody any more decides nothing",
        own(),
        [a, b],
        { [cidr]: "key of c" },
        [`a: ${cidr}`, "b: "],
      ],
      [
        "a standing smaller one over an older larger one",
        own(),
        [node("a", ["10.0.0.0/8"]), b],
        { [cidr]: "key of b" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "standing counts for the prefix that stands, not for the node",
        own(),
        [a, node("b", [cidr, "10.2.0.0/24"])],
        { "10.2.0.0/24": "key of b" },
        [`a: ${cidr}`, "b: 10.2.0.0/24"],
      ],
      ["own pod CIDR", own({ podCidrs: [cidr] }), [a, b], {}, ["a: ", "b: "]],
      ["own pod CIDR over one that stands", own({ podCidrs: [cidr] }), [a], { [cidr]: "key of a" }, ["a: "]],
      ["own pod CIDR over a larger one", own({ podCidrs: [cidr] }), [node("a", ["10.0.0.0/8"])], {}, ["a: "]],
      ["own address", own({ addresses: ["192.0.2.1"] }), [node("a", ["192.0.2.1"])], {}, ["a: "]],
      [
        "own address over a pod CIDR",
        own({ addresses: ["192.0.2.1"] }),
        [node("a", ["192.0.2.0/24"])],
        {},
        ["a: "],
      ],
      // calico#5125: a tunnel that takes the API server's address locks the node out.
      [
        "the API server's address",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.100"])],
        {},
        ["a: "],
      ],
      [
        "a pod CIDR around it",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.0/24"])],
        {},
        ["a: "],
      ],
      [
        "the address of a node that is the API server: all else of it holds",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.100", cidr])],
        {},
        [`a: ${cidr}`],
      ],
      [
        "a standing address, though another claims it too: neither",
        own(),
        [node("a", ["192.0.2.9"]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of a" },
        ["a: ", "b: "],
      ],
      [
        "a standing address over an older pod CIDR around it",
        own(),
        [node("a", ["192.0.2.0/24"]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of b" },
        ["a: ", "b: 192.0.2.9"],
      ],
      [
        "an address twice, and a pod CIDR of one of the two around it: not by that way either",
        own(),
        [node("a", ["192.0.2.9", "192.0.2.8/31", "192.0.2.9/32", cidr]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of b" },
        [`a: ${cidr}`, "b: "],
      ],
      [
        "an address twice, inside of the pod CIDR in which its node stands",
        own(),
        [node("a", ["192.0.2.9"]), node("b", ["192.0.2.9", "192.0.2.0/24"])],
        { "192.0.2.0/24": "key of b" },
        ["a: ", "b: 192.0.2.0/24"],
      ],
      [
        "where a tunnel's packets go over an older pod CIDR around it",
        own(),
        [node("a", ["198.51.100.0/24"]), node("b", [cidr], { endpoints: ["198.51.100.9"] })],
        { "key of b": "198.51.100.9" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "a pod CIDR over where somebody says to be inside of it",
        own(),
        [node("a", [], { endpoints: ["10.1.0.9"] }), b],
        { [cidr]: "key of b", "key of a": "10.1.0.9" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "one way to two nodes (behind NAT) is no collision",
        own(),
        [node("a", [cidr], { endpoints: ["198.51.100.9"] }), node("b", [], { endpoints: ["198.51.100.9"] })],
        {},
        [`a: ${cidr}`, "b: "],
      ],
      [
        "no key: what can have a tunnel comes first",
        own(),
        [node("a", [cidr], { publicKey: "" }), b],
        {},
        ["a!: ", `b: ${cidr}`],
      ],
      [
        "no key, and yet its pod CIDR is its own",
        own(),
        [node("a", [cidr], { publicKey: "" })],
        {},
        [`a!: ${cidr}`],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    const given = nodes.map(({ publicKey, ...rest }) => (publicKey ? { publicKey, ...rest } : rest));
    expect(holdings(claims, given, standing)).toEqual(expected);
  });
});

describe("one key, two nodes (a cloned machine)", () => {
  const clone = { publicKey: "key of a" };
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      [
        "the older keeps it; the other's pod CIDR is nobody else's",
        own(),
        [node("b", ["10.2.0.0/24"], clone), node("a", ["10.1.0.0/24"])],
        {},
        ["b!: 10.2.0.0/24", "a: 10.1.0.0/24"],
      ],
      [
        "the one whose pod CIDR stands keeps it",
        own(),
        [node("a", ["10.1.0.0/24"]), node("b", ["10.2.0.0/24"], clone)],
        { "10.2.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24", "b: 10.2.0.0/24"],
      ],
      [
        "ours is never another's",
        own({ publicKey: "key of a" }),
        [node("a", ["10.1.0.0/24"])],
        { "10.1.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24"],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    expect(holdings(claims, nodes, standing)).toEqual(expected);
  });
});

test("each refusal says what collides with what, and what to do", () => {
  const { refused } = settle(
    own({ podCidrs: ["10.9.0.0/24"], reserved: ["192.0.2.100"] }),
    [
      node("a", ["10.1.0.0/24", "192.0.2.9"]),
      node("b", ["10.1.0.0/16", "192.0.2.9"], { publicKey: "key of a" }),
      node("c", ["10.9.0.0/25", "192.0.2.100"]),
    ],
    stands(),
  );
  expect(Object.fromEntries(refused)).toMatchInlineSnapshot(`
    {
      "a": [
        "address 192.0.2.9 is claimed by another node too",
      ],
      "b": [
        "its public key is that of node a: delete its private key file and restart its agent",
        "address 192.0.2.9 is claimed by node a too",
        "pod CIDR 10.1.0.0/16 overlaps pod CIDR 10.1.0.0/24 of node a",
      ],
      "c": [
        "pod CIDR 10.9.0.0/25 overlaps pod CIDR 10.9.0.0/24 of node own",
        "address 192.0.2.100 overlaps address 192.0.2.100 of node own",
      ],
    }
  `);
});

describe("properties", () => {
  // Few values, so that collisions are the rule; and each is one number, as 10,000 clusters take their time.
  const upTo = (count: number) => [...Array(count).keys()];
  const prefixes = [
    ...upTo(48).map((n) => `10.1.${n % 8}.0/${22 + Math.floor(n / 8)}`),
    ...upTo(56).map((n) => `fd00:1:0:${n % 8}::/${60 + Math.floor(n / 8)}`),
    ...["10.0.0.0/8", "fd00::/8", "192.0.2.0/24", "0.0.0.0/0", "::/0", "10.1.0.1/32"],
  ];
  const addresses = [
    ...upTo(8).flatMap((n) => [`192.0.2.${n}`, `2001:db8::${n}`, `10.1.${n}.9`]),
    ...["127.0.0.1", "fe80::1", "fd00:1:0:3::9"],
  ];
  const keys = upTo(8).map((n) => Buffer.alloc(32, n).toString("base64"));
  const junk = [
    "null",
    "[null]",
    "{}",
    "",
    "[[]]",
    "7",
    `{"length":9}`,
    `["10.1.0.0/24",{}]`,
    "[",
    '"',
    "x\0",
  ];
  const among = (values: string[], n: number) => values[Math.floor(n) % values.length] as string;

  /** An annotation out of a number: one in six is junk, one in twelve is not there. */
  function annotated(name: string, n: number, valid: (n: number) => string): Record<string, string> {
    if (n % 12 === 1) return {};
    return { [name]: n % 6 === 0 ? among(junk, n / 6) : valid(Math.floor(n / 12)) };
  }

  /** A list of up to three of the values. */
  const listOf = (values: string[]) => (n: number) =>
    JSON.stringify(upTo(n % 4).map((index) => among(values, n / 4 / 128 ** index)));

  const cluster = fc
    .array(fc.tuple(fc.nat(), fc.nat(), fc.nat(), fc.nat({ max: 15 })), { maxLength: 5 })
    .map((list) =>
      list.map(([key, podCidrs, nodeIps, kind], index) => {
        const age = kind >> 1;
        const metadata = {
          name: `node-${index}`,
          creationTimestamp: `2024-01-01T00:00:0${age}Z`,
          annotations: {
            ...annotated(annotation.publicKey, key, (n) => among(keys, n)),
            ...annotated(annotation.podCidrs, podCidrs, listOf(prefixes)),
            ...annotated(annotation.nodeIps, nodeIps, listOf(addresses)),
            [annotation.agent]: `{"version":"1.0.0","nodeIps":"","tunnelled":${age}}`,
          },
        };
        return kind % 2 === 0
          ? fromAnnotations({ metadata })
          : fromNode({ metadata, spec: { podCIDR: `10.1.${age}.0/24` } });
      }),
    );
  const ownClaims = fc.record({
    name: fc.constant("own"),
    publicKey: fc.constantFrom(...keys),
    podCidrs: fc.constantFrom([], ["10.1.3.0/24"], ["10.1.3.0/24", "fd00:1:0:3::/64"]),
    addresses: fc.constantFrom([], ["192.0.2.3"], ["192.0.2.3", "2001:db8::3"]),
    reserved: fc.constantFrom([], ["192.0.2.7"]),
    reaches: fc.constant(families),
  });

  /** What WireGuard has after a settlement. */
  function tunnel({ nodes }: ReturnType<typeof settle>): Standing {
    const peers = nodes.filter((settled) => settled.publicKey !== undefined);
    return {
      owners: new Map(
        peers.flatMap(({ publicKey: key = "", podCidrs, addresses }) =>
          [...podCidrs, ...addresses.map(hostPrefix)].map((value) => [value, key] as const),
        ),
      ),
      endpoints: new Map(
        peers.flatMap(({ publicKey: key = "", record: { endpoints } }) =>
          endpoints[0] === undefined ? [] : [[key, endpoints[0]] as const],
        ),
      ),
      holders: new Map(peers.map(({ publicKey: key = "", record: { name } }) => [key, name])),
    };
  }

  function check(claims: OwnClaims, settlement: ReturnType<typeof settle>): void {
    const held = [
      ...[...claims.podCidrs, ...claims.addresses, ...claims.reserved].map(
        (value) => ["own", value] as const,
      ),
      ...settlement.nodes.flatMap(({ record, podCidrs, addresses }) =>
        [...podCidrs, ...addresses].map((value) => [record.name, value] as const),
      ),
    ];
    for (const [index, [owner, value]] of held.entries())
      for (const [rival, other] of held.slice(index + 1))
        if (owner !== rival && overlaps(value, other))
          throw new Error(`${owner} and ${rival} both hold ${value} and ${other}`);
    const keys = [claims.publicKey, ...settlement.nodes.flatMap((settled) => settled.publicKey ?? [])];
    if (new Set(keys).size < keys.length) throw new Error(`a key is held twice: ${keys.join(", ")}`);
  }

  test("10,000 clusters: nothing throws, nothing is held twice, own never loses", () => {
    fc.assert(
      fc.property(ownClaims, cluster, (claims, nodes) => {
        const settlement = settle(claims, nodes, stands());
        check(claims, settlement);
        // The order of the nodes is no claim.
        const reversed = settle(claims, [...nodes].reverse(), stands());
        return Bun.deepEquals(tunnel(reversed), tunnel(settlement));
      }),
      { numRuns: 10_000 },
    );
  }, 60_000);

  test("whatever others write, what stands in the tunnel of a node that has not changed stays there", () => {
    const newcomers = fc.tuple(cluster, fc.integer({ min: 0, max: 9 }));
    fc.assert(
      fc.property(ownClaims, cluster, newcomers, (claims, before, [others, age]) => {
        const first = settle(claims, before, stands());
        const standing = tunnel(first);
        // As old as may be, so that age alone would win.
        const late = others.map((record, index) => ({
          ...record,
          name: `late-${index}`,
          created: `200${age}`,
        }));
        const second = settle(claims, [...late, ...before], standing);
        check(claims, second);
        const contested = new Set(late.flatMap((record) => record.addresses.map(hostPrefix)));
        const { owners, endpoints } = tunnel(second);
        for (const [value, key] of standing.owners)
          if (owners.get(value) !== key) {
            // Only an address that is claimed twice leaves, for nobody.
            expect([value, contested.has(value)]).toEqual([value, true]);
            expect(owners.has(value)).toBe(false);
          }
        // Nor is a node taken by a pod CIDR around its address or around the place of its tunnel.
        const places = [
          ...first.nodes.flatMap(({ publicKey: key, addresses }) => (key ? addresses : [])),
          ...new Set(standing.owners.values()),
        ].map((value) => standing.endpoints.get(value) ?? value);
        const covering = first.nodes.flatMap(({ podCidrs }) => podCidrs);
        const free = places.filter(
          (place) => isAddress(place) && !covering.some((prefix) => overlaps(prefix, place)),
        );
        const taken = second.nodes.flatMap(({ podCidrs }) => podCidrs);
        for (const prefix of taken)
          if (free.some((place) => overlaps(prefix, place)))
            throw new Error(`${prefix} takes one of ${free}`);
        for (const key of new Set(standing.owners.values()))
          if (standing.endpoints.has(key))
            expect(endpoints.get(key)).toBe(standing.endpoints.get(key) as string);
        // And it comes to rest: what is settled is settled the same again.
        expect(tunnel(settle(claims, [...late, ...before], tunnel(second)))).toEqual(tunnel(second));
      }),
      { numRuns: 1_000 },
    );
  }, 60_000);
});

const isAddress = (value: string) => parseAddress(value) !== undefined;

/** Milliseconds of processor time: how busy the machine is does not matter. */
function timeOf(work: () => void): number {
  const before = process.cpuUsage();
  work();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1_000;
}

test("5,000 nodes are settled in well under a second", () => {
  const nodes = Array.from({ length: 5_000 }, (_, index) => {
    const [high, low] = [index >> 8, index & 255];
    const claims = [`10.${high}.${low}.0/24`, `fd00:1:${high.toString(16)}:${low.toString(16)}::/64`];
    return node(`n${index}`, [...claims, `172.16.${high}.${low}`, `2001:db8::${index.toString(16)}`]);
  });
  let settlement = settle(own(), [], stands());
  const took = timeOf(() => {
    settlement = settle(own({ podCidrs: ["10.200.0.0/24"] }), nodes, stands());
  });
  expect(settlement.refused.size).toBe(0);
  expect(settlement.nodes.flatMap((settled) => settled.podCidrs).sort(compareAddresses)).toHaveLength(10_000);
  expect(took).toBeLessThan(900);
});

test("one node that claims all pod CIDRs of 5,000 others costs as little", () => {
  const cidrs = Array.from({ length: 5_000 }, (_, index) => `10.${index >> 8}.${index & 255}.0/24`);
  const nodes = [
    ...cidrs.map((cidr, index) => node(`n${index}`, [cidr])),
    node("zz", [...cidrs, "10.0.0.0/8"]),
  ];
  const standing = stands(Object.fromEntries(cidrs.map((cidr, index) => [cidr, `key of n${index}`])));
  let settlement = settle(own(), [], standing);
  const took = timeOf(() => {
    settlement = settle(own(), nodes, standing);
  });
  expect(settlement.nodes.at(-1)?.podCidrs).toEqual([]);
  expect(settlement.refused.get("zz")).toHaveLength(5_001);
  expect(took).toBeLessThan(900);
});
