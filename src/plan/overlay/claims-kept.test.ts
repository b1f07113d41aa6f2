/** Claims that are kept from change to change, beside the same claims settled from nothing each time. */
import { beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { node, own, stands } from "../fixtures/claims.ts";
import { Claims, type OwnClaims, type Standing, settle } from "./claims.ts";
import { wayTo } from "./keys.ts";
import type { NodeRecord } from "./node.ts";

type Change = readonly [name: string, record: NodeRecord | undefined];

/** What there is to be known of claims after an update. */
function outcome(claims: Claims, nodes: ReadonlyMap<string, NodeRecord>) {
  const settled = [...nodes.keys()].flatMap((name) => claims.get(name) ?? []);
  return {
    nodes: settled,
    refused: settled.map(({ record, refused }) => [record.name, refused]),
    contested: [[...claims.contested.podCidrs].sort(), [...claims.contested.addresses].sort()],
    standing: claims.standing,
  };
}

/** The same from nothing. */
function fromNothing(claims: OwnClaims, nodes: ReadonlyMap<string, NodeRecord>, standing: Standing) {
  const {
    nodes: settled,
    refused,
    contested,
    standing: next,
  } = settle(claims, [...nodes.values()], standing);
  const endpoints = settled.flatMap(({ publicKey, record }): [string, string][] => {
    const way = wayTo(record, claims.reaches);
    return publicKey === undefined || way === undefined ? [] : [[publicKey, way]];
  });
  return {
    nodes: settled,
    refused: settled.map(({ record }) => [record.name, refused.get(record.name) ?? []]),
    contested: [[...contested.podCidrs].sort(), [...contested.addresses].sort()],
    standing: { ...next, endpoints: new Map(endpoints) },
  };
}

describe("after any changes all is as if it were settled from nothing", () => {
  // So few values that collisions are the rule.
  const cidr = fc.constantFrom(
    ...["10.1.0.0/24", "10.1.0.0/25", "10.1.0.128/25", "10.1.1.0/24", "10.1.0.0/16", "10.0.0.0/8"],
    ...["192.0.2.1/32", "192.0.2.0/24", "fd00:1::/64", "fd00:1::/60", "fd00:1:0:1::/64", "0.0.0.0/0"],
  );
  const address = fc.constantFrom(
    "192.0.2.1",
    "192.0.2.2",
    "10.1.0.9",
    "10.1.1.9",
    "fd00:1::9",
    "192.0.2.200",
  );
  const name = fc.constantFrom(..."abcdef");
  const record = fc
    .record({
      name,
      created: fc.constantFrom("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
      key: fc.constantFrom("own", "a", "b", "c", "d", undefined, undefined),
      podCidrs: fc.uniqueArray(cidr, { maxLength: 3 }),
      addresses: fc.uniqueArray(address, { maxLength: 2 }),
      endpoints: fc.uniqueArray(address, { maxLength: 2 }),
    })
    .map(({ key, ...rest }): NodeRecord => {
      const publicKey = key === undefined ? {} : { publicKey: `key of ${key}` };
      return { ...rest, ...publicKey, clearToNodes: false, problems: [] };
    });
  const change = fc.oneof(
    { weight: 4, arbitrary: record.map((each): Change => [each.name, each]) },
    { weight: 1, arbitrary: name.map((each): Change => [each, undefined]) },
  );
  const changes = fc.array(fc.array(change, { maxLength: 3 }), { minLength: 1, maxLength: 12 });
  const ownClaims = fc.constantFrom(
    own(),
    own({ publicKey: null }),
    own({ podCidrs: ["10.1.1.0/24"], addresses: ["192.0.2.2"] }),
    own({ reaches: ["ipv6"], bounds: { apiServer: ["192.0.2.1", "10.1.0.9"], onLink: ["192.0.2.0/24"] } }),
    own({ bounds: { onLink: ["10.1.0.0/24"], ownAddresses: ["192.0.2.200"], allowed: ["10.0.0.0/8"] } }),
  );
  const known = fc.constantFrom(
    stands(),
    stands({ "10.1.0.0/24": "key of a", "192.0.2.1/32": "key of b", "key of a": "192.0.2.2" }),
    stands({ "10.0.0.0/8": "key of a", "10.1.0.0/24": "key of b", "10.9.0.0/24": "key of x" }),
    { ...stands({ "10.1.0.0/16": "key of c" }), nodes: new Map([["10.1.0.0/16", "d"]]) },
  );

  test("whatever is claimed, contested, given up or taken over", () => {
    fc.assert(
      fc.property(ownClaims, known, changes, (claims, first, steps) => {
        const kept = new Claims(claims, first);
        const nodes = new Map<string, NodeRecord>();
        let standing: Standing = first;
        let previous = outcome(kept, nodes);
        for (const step of steps) {
          for (const [name, record] of step) {
            nodes.delete(name);
            if (record) nodes.set(name, record);
          }
          const changed = kept.update(step);
          const expected = fromNothing(claims, nodes, standing);
          const found = outcome(kept, nodes);
          expect(found).toEqual(expected);
          // Nobody else's result is another one.
          for (const { record, ...rest } of previous.nodes)
            if (!changed.has(record.name))
              expect({ record, ...rest }).toEqual(
                kept.get(record.name) as typeof rest & { record: NodeRecord },
              );
          standing = expected.standing;
          previous = found;
        }
      }),
      { numRuns: 400 },
    );
  }, 60_000);
});

describe("what one change costs among 5,000 nodes, counted in comparisons and looks at a claim", () => {
  const crowd = Array.from({ length: 5_000 }, (_, index) => {
    const [high, low] = [index >> 8, index & 255];
    const claims = [`10.${high}.${low}.0/24`, `fd00:1:${high.toString(16)}:${low.toString(16)}::/64`];
    return node(`n${index}`, [...claims, `172.16.${high}.${low}`, `2001:db8::${index.toString(16)}`]);
  });
  /** Nodes with claims that do not hold, around and inside of those of others. */
  const hostile = Array.from({ length: 20 }, (_, index) =>
    node(
      `x${index}`,
      Array.from({ length: 16 }, (_, n) => `10.${16 * (index % 2)}.0.0/${24 - n}`),
    ),
  );

  const claims = new Claims(own(), stands());
  beforeAll(() => {
    claims.update(crowd.map((record) => [record.name, record]));
    claims.update([]);
    expect(claims.update([])).toEqual(new Set());
  }, 60_000);

  /** The cost of a change, which is taken back. */
  function costOf(name: string, record: NodeRecord | undefined): number {
    const known = claims.get(name)?.record;
    const before = claims.steps;
    claims.update([[name, record]]);
    claims.update([]);
    const cost = claims.steps - before;
    claims.update([[name, known]]);
    claims.update([]);
    return cost;
  }

  test.each<[title: string, name: string, record: NodeRecord | undefined, most: number]>([
    ["no change", "n7", crowd[7], 1_500],
    ["another pod CIDR", "n7", node("n7", ["10.99.0.0/24", "fd00:1:0:7::/64", "172.16.0.7"]), 1_500],
    ["a node leaves", "n7", undefined, 1_000],
    ["a node comes", "new", node("new", ["10.99.0.0/24", "fd00:99::/64", "172.16.99.0"]), 1_500],
    ["another key", "n7", { ...crowd[7]!, publicKey: "another key" }, 1_500],
    ["a copied key", "n7", { ...crowd[7]!, publicKey: "key of n8" }, 1_500],
    ["all of 10.0.0.0/8 claimed", "new", node("new", ["10.0.0.0/8"]), 500],
    ["16 prefixes of others claimed", "x1", hostile[1], 5_000],
  ])("%s", (_, name, record, most) => {
    expect(costOf(name, record)).toBeLessThan(most);
  });

  test.each<[title: string, name: string, record: NodeRecord | undefined]>([
    ["no change", "n7", crowd[7]],
    ["another pod CIDR", "n7", node("n7", ["10.99.0.0/24", "fd00:1:0:7::/64", "172.16.0.7"])],
    ["one of the 20 comes anew", "x1", hostile[1]],
  ])("%s, beside 20 nodes with 16 claims each that overlap others'", (_, name, record) => {
    claims.update(hostile.map((each) => [each.name, each]));
    claims.update([]);
    expect(costOf(name, record)).toBeLessThan(40_000);
    claims.update(hostile.map((each) => [each.name, undefined]));
    claims.update([]);
  });
});
