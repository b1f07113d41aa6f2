import { describe, expect, test } from "bun:test";
import pino from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import { readConfig } from "../config/config.ts";
import { nodeReader } from "../host/executor.ts";
import { Table } from "../net/table.ts";
import { noObserver } from "./observer.ts";
import { Reconciler } from "./reconciler.ts";

/** A reconciler that may look, but change nothing. */
function reconcilerOf(
  createLink: () => Promise<void>,
  { complete = true, podCIDRs = ["10.244.1.0/24"], lines = [] as string[] } = {},
): Reconciler {
  const never = () => Promise.reject(new Error("nothing is to be changed"));
  const own = { metadata: { name: "n1" }, spec: { podCIDRs }, status: {} };
  return new Reconciler({
    config: readConfig({ NODE_NAME: "n1", WIGGLENET_IFACE_NAME: "no-such-link" }),
    nodes: { complete, own, ownIsThere: true, others: new Table() } as unknown as ClusterNodes,
    executor: { ...nodeReader, dry: false, perform: never, createLink, annotate: never },
    publicKey: null,
    version: "1.0.0",
    reserved: [],
    observer: noObserver,
    wake: () => undefined,
    log: pino({ base: null }, { write: (line) => lines.push(line) }),
  });
}

test("what is not known yet, and what fails", async () => {
  const never = () => Promise.reject(new Error("no link today"));
  expect(reconcilerOf(never, { complete: false }).unready()).toBe(
    "the Nodes of the cluster have not been read yet",
  );
  const reconciler = reconcilerOf(never);
  expect(reconciler.unready()).toBe("not in sync yet");
  await reconciler.pass("start");
  expect(reconciler.unready()).toStartWith("tunnel: no link today");
});

test("what is waited for is said once, not at each pass", async () => {
  const lines: string[] = [];
  const reconciler = reconcilerOf(() => Promise.resolve(), { podCIDRs: [], lines });
  for (let pass = 0; pass < 3; pass += 1) await reconciler.pass("cluster");
  expect(lines).toEqual([expect.stringContaining("the Node has no spec.podCIDRs yet")]);
});

describe("what fails", () => {
  /** As many passes as reasons for which the link cannot be created. */
  async function failing(...reasons: string[]) {
    const lines: string[] = [];
    const left = [...reasons];
    const reconciler = reconcilerOf(() => Promise.reject(new Error(left.shift())), { lines });
    for (const _ of reasons) await reconciler.pass("cluster");
    const said = lines.map((line) => JSON.parse(line) as { msg: string; resource?: string; error?: string });
    return {
      reconciler,
      said: said.filter(({ resource }) => resource === "tunnel").map(({ error }) => error),
    };
  }

  test.each<[title: string, reasons: string[], said: number[]]>([
    ["the same", ["no link", "no link", "no link"], [0]],
    ["a number differs", ["took 12 ms", "took 1200 ms", "took 7 ms"], [0]],
    ["a line of a batch", ["Command failed -:1", "Command failed -:300", "Command failed -:2"], [0]],
    ["another reason", ["no link", "no memory", "no memory"], [0, 1]],
    ["two in turn", ["no link", "no memory", "no link", "no memory"], [0, 1]],
  ])("is told once: %s", async (_, reasons, expected) => {
    const { reconciler, said } = await failing(...reasons);
    expect(said).toEqual(expected.map((index) => reasons[index]));
    // Where it is asked for, it is the latest.
    expect(reconciler.unready()).toContain(`tunnel: ${reasons.at(-1)}`);
  });
});
