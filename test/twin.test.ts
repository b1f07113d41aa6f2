/** Two machines that call themselves by one name, as a cloned one does: each has its agent, which writes to the same Node. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { annotation } from "../src/plan/overlay/node.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { Lab } from "./lab/lab.ts";
import { sleep, until } from "./lab/process.ts";

let lab: Lab;
let n1: LightNode, n2: LightNode, twin: LightNode;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2 });
  [n1, n2] = lab.nodes as [LightNode, LightNode];
  twin = await lab.addNode({}, { agent: false });
  const token = "/etc/kubernetes/wigglenet/token";
  await twin.write(token, n1.read(token)!);
});
afterAll(() => lab?.[Symbol.asyncDispose]());

test("they do not answer each other without end, and both say what is wrong", async () => {
  const written = (node: LightNode) =>
    node.agentLog().filter(({ msg }) => msg === "own Node annotated").length;
  const named = (node: LightNode) => node.agentLog().filter(({ topic }) => topic === "own Node");
  const key = async () => (await n1.object()).metadata.annotations?.[annotation.publicKey];
  const before = await key();
  twin.startAgent({ NODE_NAME: n1.name });
  await until("both to name it", () => [n1, twin].every((node) => named(node).length > 0));
  // Long enough for some hundred writes, if each were answered at once.
  await sleep(10_000);
  const changes = n2.agentLog().filter(({ msg }) => msg === "peers added or changed").length;
  expect({ n1: written(n1) < 20, twin: written(twin) < 20, n2: changes < 40 }).toEqual({
    n1: true,
    twin: true,
    n2: true,
  });
  for (const node of [n1, twin]) {
    expect(named(node)).toHaveLength(1);
    expect(named(node)[0]).toMatchObject({
      level: "error",
      msg: expect.stringContaining("another machine has its name"),
    });
  }
  // Once it is alone again, it goes on.
  await twin.stopAgent();
  await until("the own key to be back", async () => (await key()) === before, { timeout: 30_000 });
}, 60_000);
