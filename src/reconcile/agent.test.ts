import { describe, expect, test } from "bun:test";
import pino from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import { readConfig } from "../config/config.ts";
import { Agent } from "./agent.ts";

/** An agent that may look, but change nothing. */
function agentOf(
  nodes: { complete: boolean },
  createLink: () => Promise<void>,
  { podCIDRs = ["10.244.1.0/24"], lines = [] as string[] } = {},
): Agent {
  const never = () => Promise.reject(new Error("nothing is to be changed"));
  const own = { metadata: { name: "n1" }, spec: { podCIDRs }, status: {} };
  return new Agent({
    config: readConfig({ NODE_NAME: "n1", WIGGLENET_IFACE_NAME: "no-such-link" }),
    nodes: { ...nodes, own, ownIsThere: true, others: new Map() } as unknown as ClusterNodes,
    hands: { paper: false, perform: never, createLink, annotate: never },
    publicKey: null,
    version: "1.0.0",
    reserved: [],
    log: pino({ base: null }, { write: (line) => lines.push(line) }),
  });
}

test("a pass that hangs is told of after three minutes, what fails at once", async () => {
  const asked = Promise.withResolvers<void>();
  const creating = Promise.withResolvers<void>();
  const stop = new AbortController();
  const agent = agentOf({ complete: true }, () => {
    asked.resolve();
    return creating.promise;
  });
  const begin = performance.now();
  const running = agent.run(stop.signal);
  await asked.promise;
  expect(agent.stuck()).toBeUndefined();
  expect(agent.stuck(begin + 170_000)).toBeUndefined();
  expect(agent.stuck(performance.now() + 181_000)).toBe("the loop has hung for 3 minutes in a pass (start)");
  expect(agent.unready()).toBe("not in sync yet");
  creating.reject(new Error("no link today"));
  while (agent.unready() === "not in sync yet") await Bun.sleep(5);
  expect(agent.unready()).toStartWith("tunnel: no link today");
  stop.abort();
  await running;
}, 20_000);

test("while the API server is not there an agent waits, which is no hanging", async () => {
  const stop = new AbortController();
  const agent = agentOf({ complete: false }, () => Promise.resolve());
  const running = agent.run(stop.signal);
  await Bun.sleep(50);
  expect(agent.stuck(performance.now() + 86_400_000)).toBeUndefined();
  expect(agent.unready()).toBe("the Nodes of the cluster have not been read yet");
  stop.abort();
  await running;
});

test("what is waited for is said once, not at each pass", async () => {
  const lines: string[] = [];
  const agent = agentOf({ complete: true }, () => Promise.resolve(), { podCIDRs: [], lines });
  for (let pass = 0; pass < 3; pass += 1) await agent.pass();
  expect(lines).toEqual([expect.stringContaining("the Node has no spec.podCIDRs yet")]);
});

describe("what fails", () => {
  /** Three passes of an agent whose link cannot be created, for these reasons. */
  async function failing(...reasons: string[]) {
    const lines: string[] = [];
    const left = [...reasons];
    const agent = agentOf({ complete: true }, () => Promise.reject(new Error(left.shift())), { lines });
    for (const _ of reasons) await agent.pass();
    const said = lines.map((line) => JSON.parse(line) as { msg: string; resource?: string; error?: string });
    return { agent, said: said.filter(({ resource }) => resource === "tunnel").map(({ error }) => error) };
  }

  test.each<[title: string, reasons: string[], said: number[]]>([
    ["the same", ["no link", "no link", "no link"], [0]],
    ["a number differs", ["took 12 ms", "took 1200 ms", "took 7 ms"], [0]],
    ["a line of a batch", ["Command failed -:1", "Command failed -:300", "Command failed -:2"], [0]],
    ["another reason", ["no link", "no memory", "no memory"], [0, 1]],
    ["two in turn", ["no link", "no memory", "no link", "no memory"], [0, 1]],
  ])("is told once: %s", async (_, reasons, expected) => {
    const { agent, said } = await failing(...reasons);
    expect(said).toEqual(expected.map((index) => reasons[index]));
    // Where it is asked for, it is the latest.
    expect(agent.unready()).toContain(`tunnel: ${reasons.at(-1)}`);
  });
});
