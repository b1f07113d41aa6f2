/**
 * The firewall of a cluster of many nodes in the network namespace that this runs in: by the agent's own steps, and the
 * same content by the bare programs. Prints what test/scale.test.ts reads: `Scale` as JSON.
 */

import { perform } from "../../../src/host/command.ts";
import { nodeReader } from "../../../src/host/executor.ts";
import {
  type Backend,
  diffFirewall,
  observeFirewall,
  removeFirewall,
} from "../../../src/host/firewall/firewall.ts";
import { crowd, input, type Listed, plan } from "../../../src/plan/fixtures/input.ts";

export interface Scale {
  /** Milliseconds of each round: what is there, what is wanted, the difference, the programs that write it. */
  sync: number[];
  /** Of the programs alone. */
  bare: number[];
  /** What the programs read for one node more, line by line. */
  oneMore: string[];
}

const [, , backend = "nftables", count = "5000", rounds = "11"] = Bun.argv;

const desired = (count: number) => plan(input({ nodes: crowd(count) })).firewall;

async function sync(firewall: Listed["firewall"]) {
  const from = performance.now();
  const observed = await observeFirewall(nodeReader, backend as Backend);
  const commands = diffFirewall(backend as Backend, firewall, observed);
  await perform(commands);
  return { took: performance.now() - from, commands };
}

async function clear(): Promise<void> {
  await perform(removeFirewall(await observeFirewall(nodeReader, backend as Backend)));
}

const all = desired(Number(count));
const scale: Scale = { sync: [], bare: [], oneMore: [] };
await sync(all); // to have code, kernel modules and caches warm
for (let round = 0; round < Number(rounds); round += 1) {
  await clear();
  const { took, commands } = await sync(all);
  scale.sync.push(took);
  await clear();
  const from = performance.now();
  await perform(commands);
  scale.bare.push(performance.now() - from);
}
const more = await sync(desired(Number(count) + 1));
scale.oneMore = more.commands.flatMap(({ stdin }) => stdin?.trim().split("\n") ?? []);
console.log(JSON.stringify(scale));
