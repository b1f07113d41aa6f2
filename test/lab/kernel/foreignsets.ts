/**
 * What one node more, and one less, costs in the network namespace that this runs in, without and with huge interval
 * sets of others. Prints what test/scale.test.ts reads: `ForeignSets` as JSON.
 */
import { readFileSync } from "node:fs";
import { perform } from "../../../src/host/command.ts";
import { nodeReader } from "../../../src/host/executor.ts";
import { type Backend, diffFirewall, observeFirewall } from "../../../src/host/firewall/firewall.ts";
import { crowd, input, plan } from "../../../src/plan/fixtures/input.ts";
import { foreignSets } from "./foreignrules.ts";

export interface ForeignSets {
  /** Milliseconds of processor time that the programs took for the look at what is there, and for the change. */
  without: Cost;
  with: Cost;
  /** What was read for it, line by line. */
  lines: { joins: string[]; leaves: string[] };
}

interface Cost {
  joins: number;
  leaves: number;
}

const [, , backend = "nftables", elements = "200000"] = Bun.argv;

/** Processor time of the children that have ended: in ticks of 10 ms. */
function childrenTime(): number {
  const fields = readFileSync("/proc/self/stat", "utf8").split(") ")[1]!.split(" ");
  return (Number(fields[13]) + Number(fields[14])) * 10;
}

async function sync(nodes: number): Promise<{ cost: number; lines: string[] }> {
  const before = childrenTime();
  const { firewall } = plan(input({ nodes: crowd(nodes) }));
  const commands = diffFirewall(
    backend as Backend,
    firewall,
    await observeFirewall(nodeReader, backend as Backend),
  );
  await perform(commands);
  const lines = commands.flatMap(({ stdin }) => stdin?.trim().split("\n") ?? []);
  return { cost: childrenTime() - before, lines };
}

async function measure() {
  const joins = await sync(101);
  const leaves = await sync(100);
  return {
    cost: { joins: joins.cost, leaves: leaves.cost },
    lines: { joins: joins.lines, leaves: leaves.lines },
  };
}

await sync(100);
const without = await measure();
await perform([{ kind: "run", argv: ["nft", "-f", "-"], stdin: foreignSets(Number(elements)) }]);
const beside = await measure();
const result: ForeignSets = { without: without.cost, with: beside.cost, lines: beside.lines };
console.log(JSON.stringify(result));
