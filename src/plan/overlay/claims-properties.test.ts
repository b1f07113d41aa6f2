import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { compareAddresses, contains, hostPrefix, overlaps } from "../../net/address.ts";
import { node, own, stands } from "../fixtures/claims.ts";
import { type OwnClaims, type Standing, settle } from "./claims.ts";
import { annotation, fromAnnotations, fromNode, type NodeRecord } from "./node.ts";

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
  const ownClaims = fc
    .tuple(
      fc.constantFrom(...keys),
      fc.constantFrom([], ["10.1.3.0/24"], ["10.1.3.0/24", "fd00:1:0:3::/64"]),
      fc.constantFrom([], ["192.0.2.3"], ["192.0.2.3", "2001:db8::3"]),
      fc.constantFrom([], ["192.0.2.7"]),
      fc.constantFrom([], ["192.0.2.0/24", "10.0.0.0/14"]),
    )
    .map(([publicKey, podCidrs, addresses, apiServer, onLink]) =>
      own({ publicKey, podCidrs, addresses, bounds: { ownAddresses: addresses, apiServer, onLink } }),
    );

  type Settled = ReturnType<typeof settle>;

  /** What the next pass knows. */
  function remembered({ standing, nodes }: Settled): Standing {
    const endpoints = nodes.flatMap(({ publicKey, record }): [string, string][] =>
      publicKey && record.endpoints[0] ? [[publicKey, record.endpoints[0]]] : [],
    );
    return { ...standing, endpoints: new Map(endpoints) };
  }

  /** What an agent knows that has just been restarted: the kernel tells no names. */
  const restarted = (settled: Settled): Standing => ({
    ...remembered(settled),
    nodes: new Map(),
    holders: new Map(),
  });

  /** What WireGuard has: for each prefix the key. */
  const tunnel = ({ standing }: Settled) =>
    new Map([...standing.owners].sort(([a], [b]) => compareAddresses(a, b)));

  function check(claims: OwnClaims, settlement: Settled): void {
    for (const { record, podCidrs } of settlement.nodes)
      for (const address of claims.bounds.apiServer)
        if (
          !record.addresses.includes(address) &&
          podCidrs.some(
            (prefix) =>
              contains(prefix, address) &&
              (prefix === hostPrefix(address) ||
                !claims.bounds.onLink.some((network) => contains(network, prefix))),
          )
        )
          throw new Error(`${record.name} has the API server's ${address} in ${podCidrs}`);
    for (const { record, podCidrs } of settlement.nodes)
      for (const network of claims.bounds.onLink)
        if (podCidrs.some((prefix) => contains(prefix, network)))
          throw new Error(`${record.name} has all of ${network}, which is on a link`);
    const held = [
      ...[...claims.podCidrs, ...claims.addresses].map((value) => ["own", value] as const),
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

  /** Nodes that come later, as old as may be, so that age alone would win. */
  const latecomers = fc
    .tuple(cluster, fc.integer({ min: 0, max: 9 }))
    .map(([nodes, age]) =>
      nodes.map((record, index) => ({ ...record, name: `late-${index}`, created: `200${age}` })),
    );
  /** What one of them writes next. */
  const whatever = fc.array(latecomers, { minLength: 1, maxLength: 4 });

  test.each<[title: string, known: (settled: Settled) => Standing]>([
    ["that goes on", remembered],
    ["that is restarted before each", restarted],
  ])(
    "for an agent %s nothing that others hold changes, whatever one node writes",
    (_, known) => {
      fc.assert(
        fc.property(ownClaims, cluster, whatever, (claims, before, writes) => {
          // What is undecided among them from the start is not held by anybody.
          const first = settle(claims, before, stands());
          let last = first;
          let nodes = before;
          for (const late of writes) {
            nodes = [...late.slice(0, 1), ...before];
            last = settle(claims, nodes, known(last));
            check(claims, last);
            for (const [prefix, key] of first.standing.owners)
              expect([prefix, last.standing.owners.get(prefix)]).toEqual([prefix, key]);
          }
          // And it comes to rest: what is settled is settled the same again.
          expect(tunnel(settle(claims, nodes, known(last)))).toEqual(tunnel(last));
        }),
        { numRuns: 1_000 },
      );
    },
    60_000,
  );

  test("for an agent that has just booted it is dropped at worst, never sent to another node", () => {
    fc.assert(
      fc.property(ownClaims, cluster, latecomers, fc.boolean(), (claims, before, late, again) => {
        const clean = settle(claims, before, stands());
        let booted = settle(claims, [...late, ...before], stands());
        // Nor later, when it knows what it settled itself.
        if (again) booted = settle(claims, [...late, ...before], remembered(booted));
        check(claims, booted);
        for (const [prefix, key] of clean.standing.owners) {
          const now = [...booted.standing.owners].filter(([other]) => overlaps(other, prefix));
          for (const [other, owner] of now)
            if (owner !== key) throw new Error(`${prefix} of ${key} is with ${owner}, as ${other}`);
          // It is with its node, or known to be nobody's: it does not leave in the clear.
          const guards = guarded(booted);
          const kept =
            now.some(([other]) => other === prefix) || guards.some((each) => contains(each, prefix));
          expect([prefix, kept]).toEqual([prefix, true]);
        }
      }),
      { numRuns: 1_000 },
    );
  }, 60_000);

  /** What has an unreachable route or is in a set of the guard, and is in no peer. */
  const guarded = ({ nodes, contested }: Settled) => [
    ...contested.podCidrs,
    ...contested.addresses,
    ...nodes.flatMap((each) => (each.publicKey === undefined ? [...each.podCidrs, ...each.addresses] : [])),
  ];
});

describe("what it costs, counted in comparisons and looks", () => {
  const honest = Array.from({ length: 1_000 }, (_, index) => {
    const [high, low] = [index >> 8, index & 255];
    const claims = [`10.${high}.${low}.0/24`, `fd00:1:${high.toString(16)}:${low.toString(16)}::/64`];
    return node(`n${index}`, [...claims, `172.16.${high}.${low}`, `2001:db8::${index.toString(16)}`]);
  });
  const cost = (more: NodeRecord[], standing: Standing) =>
    settle(own(), [...honest, ...more], standing).steps;
  const newcomer = node("newcomer", ["10.200.0.0/24", "fd00:1:200::/64", "172.16.200.1", "2001:db8::200:1"]);
  const standing = { ...settle(own(), honest, stands()).standing, endpoints: new Map<string, string>() };

  /** A node as it is read from what somebody wrote. */
  const written = (podCidrs: string, nodeIps = "[]") =>
    fromAnnotations({
      metadata: {
        name: "hostile",
        creationTimestamp: "2001-01-01T00:00:00Z",
        annotations: {
          [annotation.publicKey]: Buffer.alloc(32, 9).toString("base64"),
          [annotation.podCidrs]: podCidrs,
          [annotation.nodeIps]: nodeIps,
          [annotation.agent]: `{"version":"1.0.0","nodeIps":"","tunnelled":256}`,
        },
      },
    });

  test.each<[title: string, record: () => NodeRecord]>([
    [
      "138 nested prefixes",
      () => {
        const nested = Array.from({ length: 138 }, (_, n) =>
          n < 25 ? `10.0.0.0/${32 - n}` : `fd00:1::/${128 - (n - 25)}`,
        );
        return written(JSON.stringify(nested));
      },
    ],
    [
      "256 entries of each",
      () =>
        written(
          JSON.stringify(Array.from({ length: 256 }, (_, n) => `10.0.${n}.0/24`)),
          JSON.stringify(Array.from({ length: 256 }, (_, n) => `172.16.0.${n}`)),
        ),
    ],
    ["a list of 256 KiB", () => written(JSON.stringify(Array(14_000).fill("10.99.0.0/24")))],
    ["a string of 256 KiB", () => written(JSON.stringify(["1".repeat(250_000)]))],
    ["256 KiB of brackets", () => written("[".repeat(250_000))],
    ["all of the address space that is allowed", () => written(`["10.0.0.0/8","fd00::/20"]`)],
  ])("%s: no more than one node more", (_, record) => {
    const hostile = record();
    expect(hostile.podCidrs.length).toBeLessThanOrEqual(16);
    expect(hostile.endpoints.length).toBeLessThanOrEqual(16);
    expect(hostile.problems.join().length).toBeLessThan(2_000);
    // It has 32 claims, a newcomer 4.
    for (const known of [standing, stands()])
      expect(cost([hostile], known)).toBeLessThan(cost([newcomer], known) * 1.02);
  });

  test("100 hostile nodes: no more than 100 nodes more", () => {
    const nested = JSON.stringify(Array.from({ length: 16 }, (_, n) => `fd00:1::/${20 + 4 * n}`));
    const hostile = Array.from({ length: 100 }, (_, index) => ({
      ...written(nested),
      name: `hostile-${index}`,
    }));
    // 400 honest nodes have as many claims as those have.
    for (const known of [standing, stands()])
      expect(cost(hostile, known)).toBeLessThan(cost([newcomer], known) * 1.5);
  });
});

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
