/**
 * The host as others use it: changes by the thousand wake the agent for nothing, and what is changed of ours in the middle of
 * them is repaired all the same.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { repository, tool } from "./lab/cache.ts";
import { announce } from "./lab/cluster/announced.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { kubeProxyRuleset, kubeProxyService } from "./lab/kernel/foreignrules.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { passes, quiet, withMetrics } from "./lab/probe/passes.ts";
import { cpuOf, treeOf } from "./lab/probe/usage.ts";
import { sleep, until } from "./lab/process.ts";

const binary = `${repository}/dist/wigglenet`;
let lab: Lab;
/** Its resync is an hour away. */
let told: LightNode;

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{ env: { RESYNC_PERIOD: "3600", ...withMetrics } }] });
  [told] = lab.nodes as [LightNode];
  await told.pod("p");
  for (let n = 0; n < 99; n += 1) await announce(lab.controlPlane.api, n);
  await until("all of them to be peers", async () => (await peers(told)) === 99);
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

async function peers(node: LightNode): Promise<number> {
  return (await stateOf(node)).wireguard.length - 1;
}

/** Has a program of the node write rules. */
async function write(node: LightNode, rules: string): Promise<void> {
  await node.namespace.run(["nft", "-f", "-"], { stdin: rules });
}

test("thousands of rules that others change make no pass, and cost nothing", async () => {
  await write(told, kubeProxyRuleset(500));
  await quiet(told);
  const agent = await told.agentPid();
  const [cpu, before] = [cpuOf(agent), await passes(told)];
  const begin = performance.now();
  let n = 500;
  for (; performance.now() - begin < 5_000; await sleep(50))
    await write(told, `${Array.from({ length: 50 }, () => kubeProxyService(n++)).join("\n")}\n`);
  expect({ passes: (await passes(told)) - before }).toEqual({ passes: 0 });
  const share = (100 * (cpuOf(agent) - cpu)) / (performance.now() - begin);
  console.log(`${n - 500} Services came in 5 s: ${share.toFixed(1)} % CPU`);
  expect(share).toBeLessThan(5);
  await write(told, "delete table ip kube-proxy\n");
}, 30_000);

/** Waits until all is as it was, and shows what is not. */
async function repaired(healthy: NodeState, timeout = 6_000): Promise<void> {
  let now: NodeState | undefined;
  const same = async () => {
    now = await stateOf(told);
    return Bun.deepEquals(now, healthy);
  };
  await until("the repair", same, { timeout }).catch(() => expect(now).toEqual(healthy));
}

/** Protocols of netlink. */
const [route, netfilter] = [0, 12];

/** How many messages of a protocol of netlink the kernel had to drop for a process; undefined if it does not listen. */
function dropped(pid: number, protocol = route): number | undefined {
  const read = (file: string) => readFileSync(`/proc/${pid}/${file}`, "utf8");
  // The port of a process's first socket is its ID in its own namespace.
  const port = /^NSpid:.*\s(\d+)$/m.exec(read("status"))?.[1];
  const sockets = read("net/netlink").split("\n");
  const own = sockets
    .map((line) => line.trim().split(/\s+/))
    .filter(([, kind, of]) => kind === String(protocol) && of === port);
  return own.length > 0 ? Math.max(...own.map((fields) => Number(fields[8]))) : undefined;
}

const storm = (rules: number) =>
  `add chain inet storm c\n${Array.from({ length: rules }, (_, n) => `add rule inet storm c ip saddr 10.1.${(n >> 8) & 255}.${n & 255} counter accept comment "${"x".repeat(120)}"`).join("\n")}\n`;

test("drift while others write more than the kernel keeps for a reader is repaired", async () => {
  const healthy = await stateOf(told);
  await write(told, "add table inet storm\n");
  const agent = await told.agentPid();
  const all = treeOf(agent);
  for (const pid of all) process.kill(pid, "SIGSTOP");
  await write(told, storm(40_000));
  const before = dropped(agent, netfilter);
  await told.$`nft flush set inet wigglenet remote-ipv4`;
  expect(dropped(agent, netfilter)).toBeGreaterThan(before ?? Number.NaN);
  await told.$`nft delete table inet storm`;
  expect(await stateOf(told)).not.toEqual(healthy);
  const begin = performance.now();
  for (const pid of all) process.kill(pid, "SIGCONT");
  await repaired(healthy);
  expect(performance.now() - begin).toBeLessThan(2_000);
}, 30_000);

/** The agent, which has a socket of its own, and its `ip monitor`. */
async function listeners(): Promise<{ agent: number; monitor: number }> {
  const agent = await told.agentPid();
  const monitor = await until("ip monitor to listen", () =>
    treeOf(agent).find((pid) => {
      const isMonitor = readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("\0monitor\0");
      return isMonitor && dropped(pid) !== undefined;
    }),
  );
  return { agent, monitor };
}

/** Drift of which nothing but rtnetlink tells. */
const flushRoutes = async () =>
  void (await told.$`ip -4 route flush table 24601; ip -6 route flush table 24601`);

/**
 * Makes drift while neither the agent nor `ip monitor` reads, behind so many routes of others that the kernel has to drop
 * what it says of it.
 * @returns for whom it dropped it
 */
async function flushUnheard(routes: number): Promise<string[]> {
  const found = Object.entries(await listeners());
  for (const [, pid] of found) process.kill(pid, "SIGSTOP");
  const lines = Array.from(
    { length: routes },
    (_, n) => `route add 10.${n >> 8}.${n & 255}.0/24 dev lo table 77`,
  );
  await told.namespace.ip(...lines);
  const before = found.map(([, pid]) => dropped(pid) ?? 0);
  await flushRoutes();
  const lost = found.filter(([, pid], index) => (dropped(pid) ?? 0) > before[index]!).map(([name]) => name);
  for (const [, pid] of found) process.kill(pid, "SIGCONT");
  return lost;
}

describe("drift of routes alone is repaired when it is made as ip monitor", () => {
  let healthy: NodeState;
  let before: { agent: number; monitor: number };
  beforeEach(async () => {
    await quiet(told);
    healthy = await stateOf(told);
    before = await listeners();
  });
  afterEach(async () => {
    await told.namespace.ip("route flush table 77");
    // What its end has observed anew is not to repair the next test's drift.
    await until("another ip monitor", async () => (await listeners()).monitor !== before.monitor);
  });

  test.each([
    ["overflows", 4_000, ["monitor"]],
    ["and the agent's own socket overflow", 40_000, ["agent", "monitor"]],
  ])(
    "%s",
    async (_, routes, overflowing) => {
      expect(await flushUnheard(routes)).toEqual(overflowing);
      await repaired(healthy);
    },
    30_000,
  );

  test("hangs", async () => {
    process.kill(before.monitor, "SIGSTOP");
    await flushRoutes();
    await repaired(healthy);
  }, 30_000);

  test("dies", async () => {
    // It cannot start another before the drift is made.
    process.kill(before.agent, "SIGSTOP");
    process.kill(before.monitor, "SIGKILL");
    await flushRoutes();
    process.kill(before.agent, "SIGCONT");
    await repaired(healthy);
  }, 30_000);

  test("starts late, at the agent's start and after it died", async () => {
    const late = '#!/bin/sh\ncase "$*" in *monitor*) sleep 1;; esac\nexec /sbin/ip "$@"\n';
    await told.$`/bin/sh -ec ${`mkdir -p /run/late; printf %s '${late}' > /run/late/ip; chmod +x /run/late/ip`}`;
    await told.stopAgent();
    told.startAgent({ PATH: "/run/late:/usr/sbin:/usr/bin:/sbin:/bin" });
    await told.inSync();
    await flushRoutes();
    await repaired(healthy);
    const { monitor } = await listeners();
    await quiet(told);
    process.kill(monitor, "SIGKILL");
    // All that is made anew at its death is done, and the next one sleeps.
    await sleep(1_000);
    await flushRoutes();
    await repaired(healthy);
    await told.stopAgent();
    told.startAgent();
    await told.inSync();
  }, 60_000);
});

const [EPERM, EPROTONOSUPPORT, ENOBUFS] = [1, 93, 105];

describe("where the agent can open no netlink socket", () => {
  const unheard = () => told.agentLog().filter(({ topic }) => topic === "netlink");

  /** Starts the agent so. */
  async function restart({ forbid = [], env = {} }: Blindness): Promise<void> {
    const wrapped = ["#!/bin/sh", `exec ${[tool("forbid"), ...forbid].join(" ")} ${binary} "$@"`].join("\n");
    await told.write("/run/forbidding", wrapped);
    await told.$`chmod +x /run/forbidding`;
    await told.stopAgent();
    told.startAgent(env, forbid.length > 0 ? "/run/forbidding" : binary);
    await told.inSync();
  }

  interface Blindness {
    env?: Record<string, string>;
    /** Arguments of test/lab/tools/forbid.c. */
    forbid?: (string | number)[];
  }

  test.each<[title: string, how: Blindness, remedy: string]>([
    ["as it runs without a JIT", { env: { BUN_JSC_useJIT: "0" } }, "BUN_JSC_useJIT"],
    ["as the kernel forbids executable memory", { forbid: ["memory"] }, "execmem"],
    ["of netfilter: EPERM", { forbid: ["netlink", netfilter, EPERM] }, "EPERM"],
    ["of netfilter: EPROTONOSUPPORT", { forbid: ["netlink", netfilter, EPROTONOSUPPORT] }, "EPROTONOSUPPORT"],
  ])(
    "%s: it says so once, and looks for changes of chains",
    async (_, how, remedy) => {
      const healthy = await stateOf(told);
      await restart(how);
      // It has looked once.
      await quiet(told);
      await told.$`nft flush ruleset`;
      await repaired(healthy, 30_000);
      await flushRoutes();
      await repaired(healthy);
      expect(unheard()).toEqual([expect.objectContaining({ level: "warn" })]);
      expect(unheard()[0]?.msg).toContain(remedy);
      await restart({});
      expect(unheard()).toEqual([]);
    },
    60_000,
  );

  test("of routes: it says so once, and an ip monitor that overflows is noticed by what it says itself", async () => {
    const healthy = await stateOf(told);
    await restart({ forbid: ["netlink", route, ENOBUFS] });
    expect(await flushUnheard(4_000)).toEqual(["monitor"]);
    await repaired(healthy);
    expect(unheard()).toEqual([expect.objectContaining({ level: "warn" })]);
    expect(unheard()[0]?.msg).toContain("ENOBUFS");
    await restart({});
  }, 60_000);
});
