/**
 * A node that others have filled: 20,000 Services, 200,000 elements of interval sets and 400,000 routes, half of each IPv4
 * and half IPv6. What its agent needs among 100 nodes beside them, in memory, CPU and commands. IDLE_SECONDS=600 has the
 * idle node watched for ten minutes instead of half of one.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { basename } from "node:path";
import { repository } from "./lab/cache.ts";
import { announce } from "./lab/cluster/announced.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { foreignMain, foreignTables } from "./lab/kernel/foreignroutes.ts";
import { foreignSets, kubeProxyRuleset } from "./lab/kernel/foreignrules.ts";
import { MemoryLimit } from "./lab/kernel/memorylimit.ts";
import { stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { passes, quiet, withMetrics } from "./lab/probe/passes.ts";
import { cpuOf, watchMemory } from "./lab/probe/usage.ts";
import { sleep, until } from "./lab/process.ts";

const idleSeconds = Number(process.env.IDLE_SECONDS ?? 30);
const tenMinutes = 600;
/** Seconds between two looks at everything: the default over ten minutes, else so short that some come. */
const resync = idleSeconds < tenMinutes ? 5 : 60;

let lab: Lab;
let node: LightNode;
/** Of three digits each, so that what is said of them is equally long. */
const firstPeer = 100;
let nextPeer = firstPeer;

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{ env: { RESYNC_PERIOD: "3600", ...withMetrics } }] });
  [node] = lab.nodes as [LightNode];
  for (; nextPeer < firstPeer + 98; nextPeer += 1) await announce(lab.controlPlane.api, nextPeer);
  await until("all of them to be peers", async () => (await peers()) === 98);
  await quiet(node);
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

async function peers(): Promise<number> {
  return (await stateOf(node)).wireguard.length - 1;
}

/** What it takes the agent and its programs to take in a node that joins: milliseconds of CPU, and the commands in the log. */
async function join(): Promise<{ cpu: number; commands: string[] }> {
  const agent = await node.agentPid();
  const [before, lines] = [cpuOf(agent), node.agentLog().length];
  await announce(lab.controlPlane.api, nextPeer++);
  await until("the peer to be there", async () => (await peers()) === nextPeer - firstPeer);
  await quiet(node);
  const commands = node
    .agentLog()
    .slice(lines)
    .flatMap((line) => ((line.commands ?? []) as string[]).map((command) => `${line.msg}: ${command}`))
    // Nodes differ by their numbers and keys alone.
    .map((command) => command.replace(/\S{43}=/g, "KEY").replace(/\d+\b(?! characters)/g, "N"));
  return { cpu: cpuOf(agent) - before, commands };
}

/** Waits until the agent has used no CPU for 2 s: it deals with what others wrote for some time, and nothing of it is a pass. */
async function idle(): Promise<void> {
  const agent = await node.agentPid();
  let before = -1;
  await until(
    "the agent to be idle",
    () => {
      const now = cpuOf(agent);
      const same = now - before < 20;
      before = now;
      return same;
    },
    { timeout: 60_000, every: 2_000 },
  );
}

/** Five of them; of the CPU the least, as whatever else this machine does adds to it. */
async function joinOften() {
  const each: Awaited<ReturnType<typeof join>>[] = [];
  for (let n = 0; n < 5; n += 1) each.push(await join());
  return {
    cpu: Math.min(...each.map(({ cpu }) => cpu)),
    commands: each.map(({ commands }) => commands),
  };
}

async function fill(): Promise<void> {
  const nft = (rules: string) => node.namespace.run(["nft", "-f", "-"], { stdin: rules });
  await nft(kubeProxyRuleset(10_000));
  await nft(kubeProxyRuleset(10_000, "ip6"));
  await nft(foreignSets(200_000));
  await node.namespace.ip(...foreignTables(300_000));
  await node.namespace.ip(...foreignMain(100_000));
}

/** Starts the agent as a container of the manifest has it, as to memory. */
async function restartWithin(limit: MemoryLimit): Promise<void> {
  const waiting = `#!/bin/sh\nuntil [ -e /run/go ]; do sleep 0.01; done\nexec ${repository}/dist/wigglenet "$@"\n`;
  await node.write("/run/waiting", waiting);
  await node.$`chmod +x /run/waiting`;
  await node.stopAgent();
  node.startAgent({ RESYNC_PERIOD: String(resync) }, "/run/waiting");
  limit.add(await node.agentPid());
}

test(
  "beside others' rules, sets and routes the agent stays within its bounds",
  async () => {
    const without = await joinOften();
    await fill();
    await idle();
    const beside = await joinOften();
    console.log(`a node joins: ${without.cpu} ms CPU, beside others' ${beside.cpu} ms`);
    expect(beside.commands).toEqual(without.commands);
    expect(beside.commands.flat()).not.toBeEmpty();
    expect(beside.cpu).toBeLessThan(without.cpu + 50);

    // Where nothing happens, not even a resync.
    const still = cpuOf(await node.agentPid());
    await sleep(10_000);
    const eachSecond = (cpuOf(await node.agentPid()) - still) / 10;

    const manifest = await Bun.file(`${repository}/deploy/manifest.yaml`).text();
    const [, megabytes] = /limits:\s+memory: (\d+)Mi/.exec(manifest) ?? [];
    const cgroup = `${basename(lab.underlay.dir)}/agent`;
    await using limit = await MemoryLimit.create(cgroup, Number(megabytes) * 2 ** 20);
    await using stack = new AsyncDisposableStack();
    await restartWithin(limit);
    stack.defer(async () => void (await node.stopAgent()));
    const agent = await node.agentPid();
    const memory = watchMemory(agent);
    await node.write("/run/go", "");
    await node.inSync();
    await quiet(node);
    const [cpu, before] = [cpuOf(agent), await passes(node)];
    await sleep(idleSeconds * 1_000);
    const looks = (await passes(node)) - before;
    const spent = cpuOf(agent) - cpu;
    const { most, whose } = await memory.stop();
    console.log(
      `idle: ${eachSecond.toFixed(1)} ms CPU a second; ${looks} looks in ${idleSeconds} s took ${spent} ms CPU; ${most.toFixed(0)} MB (${whose}); its cgroup at most ${(limit.peak / 2 ** 20).toFixed(0)} MiB of ${megabytes}`,
    );
    expect(looks).toBeGreaterThanOrEqual(Math.floor((0.8 * idleSeconds) / resync));
    // In ten minutes there are ten looks.
    const eachLook = (spent - idleSeconds * eachSecond) / looks;
    const perTenMinutes = idleSeconds < tenMinutes ? 10 * eachLook + tenMinutes * eachSecond : spent;
    expect(perTenMinutes).toBeLessThan((tenMinutes * 1_000) / 100);
    expect(most).toBeLessThan(160);
    expect({ killed: limit.killed, runs: node.agentRuns }).toEqual({ killed: 0, runs: true });
  },
  (120 + idleSeconds) * 1_000,
);
