/** Ten thousand annotations that somebody could write, against agents that run. */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { annotations } from "../src/plan/fixtures/annotations.ts";
import { annotation } from "../src/plan/overlay/node.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const fakes = Array.from({ length: 20 }, (_, index) => `fake-${index}`);
/** Of three annotations each. */
const patches = 3_334;

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
  // A peer that is written anew has no prefixes for a moment: the real ones are not to be touched at all.
  const touched = lab.nodes.flatMap((node) => {
    const real = lab.nodes.map(({ name }) => name);
    return node
      .agentLog()
      .filter(
        ({ msg, nodes }) =>
          msg === "peers added or changed" && real.some((one) => (nodes as string[]).includes(one)),
      )
      .slice(1);
  });
  expect({ seed, touched, lost: counts.map(({ lost }) => lost) }).toEqual({
    seed,
    touched: [],
    lost: counts.map(() => 0),
  });
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
    expect({ seed, failed: atLeast("error", log) }).toEqual({ seed, failed: [] });
  }
}, 180_000);

/** Without what stays for ten minutes of a node that left: guards, and the ways to addresses inside of them. */
function unguarded(state: NodeState): NodeState {
  return { ...state, routes: state.routes.filter((line) => !/unreachable|throw/.test(line)) };
}
