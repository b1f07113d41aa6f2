import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { compareAddresses, families, hostPrefix, overlaps, parseAddress } from "./address.ts";
import { type OwnClaims, type Standing, settle } from "./claims.ts";
import { node, own, stands } from "./fixtures/claims.ts";
import { annotation, fromAnnotations, fromNode } from "./node.ts";

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
    for (const { record, podCidrs } of settlement.nodes)
      for (const address of claims.reserved)
        if (!record.addresses.includes(address) && podCidrs.some((prefix) => overlaps(prefix, address)))
          throw new Error(`${record.name} has the API server's ${address} in ${podCidrs}`);
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
