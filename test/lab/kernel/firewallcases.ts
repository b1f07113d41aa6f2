/**
 * The cases of every backend, one after the other, in the network namespace that this runs in. Prints what
 * test/firewallcases.test.ts reads: an `Outcome` of each case as JSON.
 */
import { $, execute, perform } from "../../../src/host/command.ts";
import { nodeReader } from "../../../src/host/executor.ts";
import {
  type Backend,
  diffFirewall,
  observeFirewall,
  removeFirewall,
} from "../../../src/host/firewall/firewall.ts";
import { type Case, cases } from "../../../src/host/firewall/fixtures/cases.ts";
import type { Firewall } from "../../../src/plan/firewall/model.ts";

export interface Outcome {
  title: string;
  /** What the programs read for the change, line by line. */
  written: string[];
  /** Rules that were there before and after, and are not the same ones, with their counters, any more. */
  lost: string[];
  /** What would be written once it is done. */
  left: string[];
}

const backend = Bun.argv[2] as Backend;

async function become(firewall: Firewall): Promise<string[]> {
  const commands = diffFirewall(backend, firewall, await observeFirewall(nodeReader, backend));
  await perform(commands);
  return commands.flatMap(({ stdin }) => stdin?.trim().split("\n") ?? []);
}

const tables = ["mangle", "filter", "nat"];
const programs = ["iptables", "ip6tables"].map((tool) => `${tool}-${backend.replace("iptables-", "")}`);

/** Of each rule what identifies it, and where it is and what it says. */
async function rules(): Promise<Map<string, string>> {
  const texts = new Map<string, string>();
  if (backend === "nftables") {
    let chain = "";
    for (const line of (await $`nft -a list table inet wigglenet`).split("\n")) {
      chain = /chain (\S+)/.exec(line)?.[1] ?? chain;
      const [, rule = "", handle] = /^\s*(.*[^{]) # handle (\d+)$/.exec(line) ?? [];
      if (handle !== undefined) texts.set(handle, `${chain}: ${rule.replace(/packets \d+ bytes \d+/, "")}`);
    }
    return texts;
  }
  // Without handles: by what each has counted, which is another number for each.
  for (const program of programs)
    for (const table of tables)
      for (const line of (await $`${program} -t ${table} -v -S`).split("\n")) {
        const [, before, packets, after] = /^(-A WIGGLENET\S+.*) -c (\d+) \d+ (.*)$/.exec(line) ?? [];
        if (packets !== undefined) texts.set(`${program} ${table} ${packets}`, `${before} ${after}`);
      }
  return texts;
}

/** Gives each rule of ours in iptables another number of packets that it has counted. */
async function numberRules(): Promise<void> {
  let number = 0;
  for (const program of programs)
    for (const table of tables) {
      const saved = await execute({ kind: "run", argv: [`${program}-save`, "-c", "-t", table] });
      const stdin = saved.replaceAll(/^\[0:0\] -A WIGGLENET/gm, () => `[${++number}:${number}] -A WIGGLENET`);
      await execute({ kind: "run", argv: [`${program}-restore`, "-c"], stdin });
    }
}

async function run({ title, from, to }: Case): Promise<Outcome> {
  await become(from);
  if (backend !== "nftables") await numberRules();
  const before = await rules();
  const written = await become(to);
  const after = await rules();
  const left = diffFirewall(backend, to, await observeFirewall(nodeReader, backend)).map(
    (step) => step.stdin ?? step.argv.join(" "),
  );
  const texts = new Set(after.values());
  const lost = [...before]
    .filter(([rule, text]) => texts.has(text) && !after.has(rule))
    .map(([, text]) => text);
  await perform(removeFirewall(await observeFirewall(nodeReader, backend)));
  return { title, written, lost, left };
}

const outcomes: Outcome[] = [];
for (const each of cases) outcomes.push(await run(each));
console.log(JSON.stringify(outcomes));
