/** The plan that is kept from change to change, beside the same plan made from nothing. */
import { beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Mark, type ReadonlyTable, Table } from "../net/table.ts";
import { type Desired, Plan } from "./desired.ts";
import {
  crowd,
  type Input,
  input,
  lists,
  node,
  plan,
  type Tweak,
  tableOf,
  underlay,
} from "./fixtures/input.ts";
import type { NodeRecord } from "./overlay/node.ts";
import { podRange } from "./podcidr/ranges.ts";

describe("after any changes it is as if it were made from nothing", () => {
  // So few values that collisions are the rule.
  const cidr = fc.constantFrom(
    ...["10.1.1.0/24", "10.1.1.0/25", "10.1.2.0/24", "10.1.0.0/16", "192.0.2.0/24", "192.0.2.1/32"],
    ...["fd00:1:0:1::/64", "fd00:1::/60", "fd00:1:0:2::/64", "10.1.0.128/25"],
  );
  const address = fc.constantFrom(
    ...["192.0.2.1", "192.0.2.2", "10.1.1.9", "10.1.2.9", "2001:db8::1", "fd00:1:0:1::9", "192.0.2.254"],
  );
  const name = fc.constantFrom(..."abcde");
  const record = fc
    .record({
      name,
      created: fc.constantFrom("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
      key: fc.constantFrom("key-0", "key-a", "key-b", "key-c", undefined),
      podCidrs: fc.uniqueArray(cidr, { maxLength: 3 }),
      addresses: fc.uniqueArray(address, { maxLength: 2 }),
      endpoints: fc.uniqueArray(address, { maxLength: 3 }),
      clearToNodes: fc.boolean(),
      problems: fc.constantFrom<string[]>([], ["a problem"]),
    })
    .map(({ key, ...rest }): NodeRecord => ({ ...rest, ...(key === undefined ? {} : { publicKey: key }) }));
  /** What this node is, and what surrounds it. */
  const tweak: fc.Arbitrary<Tweak & { whole?: boolean }> = fc.constantFrom<Tweak & { whole?: boolean }>(
    {},
    {},
    { whole: false },
    { own: { podRanges: [podRange("10.1.2.0/24", [])] } },
    { own: { endpoints: ["2001:db8::200"], onLinks: ["192.0.2.1", "10.1.0.9", "2001:db8::200"] } },
    { settings: { nativeRouting: { ipv4: true, ipv6: false } } },
    { settings: { nativeRouting: { ipv4: true, ipv6: true } }, own: { publicKey: null } },
    { settings: { masquerade: { ipv4: false, ipv6: true }, nonMasqueradeCidrs: ["10.9.0.0/16"] } },
    { underlay: underlay({ gateways: ["10.1.1.9", "192.0.2.254"], onLink: ["192.0.2.0/24"] }) },
    { reserved: ["192.0.2.1", "10.1.2.9"] },
    { departed: ["10.1.2.0/24", "10.7.0.0/24", "10.7.0.9", "192.0.2.2"] },
    { underlayMtu: 9000 },
  );
  const change = fc.oneof(
    { weight: 5, arbitrary: record.map((each) => ({ name: each.name, record: each })) },
    { weight: 1, arbitrary: name.map((each) => ({ name: each, record: undefined })) },
  );
  const steps = fc.array(
    fc.record({ changes: fc.array(change, { maxLength: 3 }), tweak: fc.option(tweak, { nil: undefined }) }),
    { minLength: 1, maxLength: 10 },
  );

  /** Follows a table by what it says changed, as a resource does. */
  class Follower<V> {
    readonly #seen = new Map<string, V>();
    #mark: Mark | undefined;

    follow(table: ReadonlyTable<V>): void {
      const changed = table.changedSince(this.#mark);
      for (const key of changed === "all" ? new Set([...this.#seen.keys(), ...table.keys()]) : changed) {
        if (table.has(key)) this.#seen.set(key, table.get(key) as V);
        else this.#seen.delete(key);
      }
      this.#mark = table.mark();
      expect(new Map([...this.#seen].sort())).toEqual(new Map([...table.entries()].sort()));
    }
  }

  test("nodes that come, go and change, contested claims, keys, and this node itself", () => {
    fc.assert(
      fc.property(steps, (all) => {
        const { standing: first } = input({ standing: { "10.1.1.0/24": "key-a", "192.0.2.1/32": "key-b" } });
        const kept = new Plan(first);
        const nodes = new Table<NodeRecord>();
        const followers = { peers: new Follower(), routes: new Follower(), remote: new Follower() };
        let standing = first;
        let now: Tweak & { whole?: boolean } = {};
        for (const { changes, tweak = now } of all) {
          now = tweak;
          for (const { name, record } of changes)
            if (record) nodes.set(name, record);
            else nodes.delete(name);
          const given: Input = { ...input({ ...now, nodes: [...nodes.values()] }), standing };
          const found = kept.update({ ...given, nodes });
          const expected = plan(given);
          expect({ ...lists(found), standing: kept.standing }).toEqual(expected);
          standing = expected.standing;
          followers.peers.follow(found.peers);
          followers.routes.follow(found.routes);
          followers.remote.follow(found.firewall.sets.remote);
        }
      }),
      { numRuns: 400 },
    );
  }, 60_000);
});

describe("one change among 5,000 nodes touches what is its own", () => {
  const nodes = tableOf(crowd(5_000));
  const { standing, ...rest } = input({ nodes: [] });
  const kept = new Plan(standing);
  const update = () => kept.update({ ...rest, nodes });
  let desired: Desired;
  beforeAll(() => {
    desired = update();
    update();
  }, 60_000);

  /** How many keys changed in all tables. */
  function changesOf(act: () => void): number {
    const { peers, routes, problems, firewall } = desired;
    const tables = [peers, routes, problems, ...Object.values(firewall.sets)];
    const marks = tables.map((table) => table.mark());
    act();
    update();
    return tables
      .map((table, index) => table.changedSince(marks[index]))
      .reduce((sum, changed) => sum + (changed === "all" ? Number.POSITIVE_INFINITY : changed.size), 0);
  }

  const one = nodes.get("n2000")!;
  const podCidrs = ["10.200.0.0/24", "fd00:3::/64"];
  const addresses = ["172.17.0.1", "2001:db8:2::1"];
  // A peer, 2 routes to and 2 under its pod CIDRs, 2 to its addresses, and as many elements as it has of both.
  test.each<[title: string, act: () => unknown, changes: number]>([
    ["nothing", () => undefined, 0],
    ["the same record again", () => nodes.set(one.name, { ...one }), 0],
    ["other pod CIDRs", () => nodes.set(one.name, { ...one, podCidrs }), 1 + 8 + 4],
    [
      "other addresses",
      () => nodes.set(one.name, { ...one, addresses, endpoints: addresses }),
      1 + 8 + 4 + 4 + 4,
    ],
    ["another key", () => nodes.set(one.name, { ...one, publicKey: "another" }), 2 + 4 + 4],
    ["it leaves", () => nodes.delete(one.name), 1 + 6 + 4],
    ["it joins", () => nodes.set(one.name, one), 1 + 6 + 4],
    [
      "a copy of its key",
      () => nodes.set("copy", { ...node(9), ...{ name: "copy", publicKey: one.publicKey! } }),
      // No peer: guards of its pod CIDRs, and why.
      2 + 2 + 1,
    ],
  ])("%s", (_, act, changes) => {
    expect(changesOf(act)).toBe(changes);
  });

  test("what a plan builds does not grow with the cluster", () => {
    // Claims have a test of their own; these are calls that make something of one node.
    expect(desired.peers.size).toBe(5_000);
    const { peers } = desired;
    const before = new Map(peers.entries());
    nodes.set(one.name, { ...one, podCidrs });
    update();
    const made = [...peers.entries()].filter(([key, peer]) => before.get(key) !== peer);
    expect(made.map(([key]) => key)).toEqual([one.publicKey!]);
  });
});
