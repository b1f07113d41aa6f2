/** Ten thousand annotations that somebody could write, against agents that run. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import fc from "fast-check";
import { annotation } from "../src/plan/node.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";
import { type NodeState, stateOf } from "./lab/state.ts";

const fakes = Array.from({ length: 20 }, (_, index) => `fake-${index}`);
/** Of three annotations each. */
const patches = 3_334;

/** Of the lab's own nodes and pods, their neighbourhood, and what nobody can have. */
const octet = fc.nat(255);
const address = fc.oneof(
  fc.constantFrom(
    "172.30.0.11",
    "172.30.0.12",
    "172.30.0.1",
    "fd30::11",
    "fd30::12",
    "fd30::1",
    "10.244.0.2",
  ),
  octet.map((n) => `172.30.0.${n}`),
  octet.map((n) => `fd30::${n.toString(16)}`),
  fc.ipV4(),
  fc.ipV6(),
  fc.constantFrom(
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "255.255.255.255",
    "ff02::1",
  ),
  fc.constantFrom("::ffff:172.30.0.11", "010.0.0.1", "10.1", "0x0a000001", "172.30.0.11 ", "1.2.3.4.5", ""),
);
const prefix = fc.oneof(
  fc.constantFrom("10.244.0.0/24", "10.244.1.0/24", "fd00:10:244::/64", "fd00:10:244:1::/64"),
  fc.constantFrom(
    "10.244.0.0/16",
    "10.0.0.0/8",
    "fd00::/8",
    "172.30.0.0/24",
    "fd30::/64",
    "0.0.0.0/0",
    "::/0",
  ),
  fc.tuple(address, fc.integer({ min: -1, max: 130 })).map(([value, bits]) => `${value}/${bits}`),
  fc.tuple(fc.nat(3), fc.integer({ min: 8, max: 32 })).map(([n, bits]) => `10.244.${n}.0/${bits}`),
  address,
);
const junk = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.json(),
  fc.constantFrom("", "null", "[null]", "[]", "{}", "[[]]", "[1]", '"x"', "[", "\u0000", "['10.1.0.0/24']"),
  // Long ones: all annotations of an object together may have 256 KiB.
  fc.integer({ min: 1, max: 3_000 }).map((n) => JSON.stringify(Array(n).fill("10.99.0.0/24"))),
  fc.integer({ min: 1, max: 10_000 }).map((n) => "[".repeat(n)),
);
const listOf = (entry: fc.Arbitrary<string>) =>
  fc.oneof(
    { weight: 3, arbitrary: fc.array(entry, { maxLength: 5 }).map((list) => JSON.stringify(list)) },
    { weight: 1, arbitrary: junk },
  );

/** One of each key, each bad in its way; a node-ips with or without an agent that vouches for it. */
function annotations(realKeys: readonly string[]): fc.Arbitrary<Record<string, string | null>> {
  const key = fc.oneof(
    fc.constantFrom(...realKeys),
    fc.nat(30).map((n) => Buffer.alloc(32, n).toString("base64")),
    fc.uint8Array({ minLength: 30, maxLength: 34 }).map((bytes) => Buffer.from(bytes).toString("base64")),
    fc.constantFrom(
      ...realKeys.map((key) => `${key.slice(0, -2)}B=`),
      "A".repeat(44),
      ...realKeys.map((key) => ` ${key}\n`),
    ),
    junk,
  );
  const nodeIps = fc.tuple(listOf(address), fc.boolean(), fc.nat(6)).map(([value, vouched, tunnelled]) => ({
    [annotation.nodeIps]: value,
    [annotation.agent]: vouched
      ? JSON.stringify({
          version: "1.0.0",
          nodeIps: createHash("sha256").update(value).digest("hex").slice(0, 16),
          tunnelled,
        })
      : null,
  }));
  return fc.tuple(key, listOf(prefix), nodeIps).map(([publicKey, podCidrs, rest]) => ({
    [annotation.publicKey]: publicKey,
    [annotation.podCidrs]: podCidrs,
    ...rest,
  }));
}

test("10,000 bad annotations: nothing lost between the real pods, no agent ends, all as it was when they are gone", async () => {
  await using lab = await Lab.start({ nodes: 2 });
  const { api } = lab.controlPlane;
  const pods = await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
  const states = () => Promise.all(lab.nodes.map(stateOf));
  const before = await states();
  const pids = await Promise.all(lab.nodes.map((node) => node.agentPid()));
  const [a, b] = pods as [(typeof pods)[0], (typeof pods)[0]];
  const streams = await Promise.all(
    (["ipv4", "ipv6"] as const).flatMap((family) => [
      lab.probe(a, b, { family }),
      lab.probe(b, a, { family }),
      lab.probe(a, b, { family, protocol: "tcp" }),
    ]),
  );

  const realKeys = before.flatMap(({ annotations }) => annotations[annotation.publicKey] ?? []);
  const seed = Date.now() % 2 ** 31;
  const values = fc.sample(annotations(realKeys), { numRuns: patches, seed });
  await Promise.all(fakes.map((name) => api.create({ apiVersion: "v1", kind: "Node", metadata: { name } })));
  const begin = performance.now();
  await Promise.all(
    fakes.map(async (name, index) => {
      for (let at = index; at < values.length; at += fakes.length)
        await api.patch(`/api/v1/nodes/${name}`, { metadata: { annotations: values[at] } });
    }),
  );
  const seconds = (performance.now() - begin) / 1000;

  await Promise.all(fakes.map((name) => api.remove(`/api/v1/nodes/${name}`)));
  let after: NodeState[] = [];
  await until(
    "all to be as before",
    async () => {
      after = (await states()).map(unguarded);
      return Bun.deepEquals(after, before.map(unguarded));
    },
    { timeout: 30_000 },
  ).catch(() => expect(after).toEqual(before.map(unguarded)));
  const counts = await Promise.all(streams.map((stream) => stream.stop()));
  expect({ seed, lost: counts.map(({ lost }) => lost) }).toEqual({ seed, lost: counts.map(() => 0) });
  expect(counts.every(({ received }) => received > 100)).toBe(true);
  expect(await Promise.all(lab.nodes.map((node) => node.agentPid()))).toEqual(pids);
  for (const node of lab.nodes) {
    expect(node.agentRuns).toBe(true);
    const log = node.agentLog();
    const told = log.filter((line) => fakes.includes(String(line.node)));
    console.log(
      `${node.name}: ${3 * patches} annotations in ${seconds.toFixed(0)} s, ${told.length} lines about them, ${log.filter(({ commands }) => commands).length} changes`,
    );
    // Each line is one change of what is wrong with one node.
    expect(told.length).toBeGreaterThan(fakes.length);
    for (const name of fakes) {
      const texts = told
        .filter((line) => line.node === name)
        .map(({ msg, problems }) => `${msg} ${problems}`);
      expect({ seed, repeated: texts.filter((text, at) => text === texts[at - 1]) }).toEqual({
        seed,
        repeated: [],
      });
    }
    expect({ seed, failed: log.filter(({ level }) => Number(level) >= 50) }).toEqual({ seed, failed: [] });
  }
}, 180_000);

/** Without what stays for ten minutes of a node that left: guards, and the ways to addresses inside of them. */
function unguarded(state: NodeState): NodeState {
  return { ...state, routes: state.routes.filter((line) => !/unreachable|dev eth0/.test(line)) };
}
