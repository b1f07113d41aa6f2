/**
 * `npm run bench`: what the agent costs in large clusters, on real parts: a real API server with Nodes of 15 kB, one light
 * node with the compiled agent, real kernel objects. Needs root and `npm run build`. Prints a table; with `--json FILE`
 * it writes the figures too, each beside its bound and beside the limit that was measured in the same run. `--sizes
 * 1000,5000` chooses the numbers of nodes, `--pairs 0` leaves the data path out.
 */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { measureBare } from "./bench/bare.ts";
import { changePodCidrs, createNodes, heartbeat, inParallel } from "./bench/bigcluster.ts";
import { measureDataPath } from "./bench/datapath.ts";
import { costOf, costSince, memoryOf, percentile } from "./bench/process.ts";
import { tool } from "./lab/cache.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { foreignSets } from "./lab/kernel/foreignrules.ts";
import { Lab } from "./lab/lab.ts";
import { sleep, until } from "./lab/process.ts";

interface Figure {
  name: string;
  nodes: number;
  value: number;
  unit: string;
  /** The most, or of a ratio the least, that it should be; undefined: reported only. */
  bound: number | undefined;
  /** What the same takes without the agent, on this machine and in this run. */
  limit?: number;
}

const { values: options } = parseArgs({
  options: {
    json: { type: "string" },
    sizes: { type: "string", default: "0,1000,5000,15000" },
    pairs: { type: "string", default: "20" },
  },
});
const figures: Figure[] = [];
for (const size of options.sizes.split(",").filter(Boolean)) await measureCluster(Number(size));
for (const backend of ["nftables", "iptables-nft"] as const)
  await measureFirewall(backend, Number(options.pairs));
if (options.json) await Bun.write(options.json, `${JSON.stringify(figures, null, 2)}\n`);

/** @param bound the most (or, of a ratio, the least) that it should be; undefined: reported only */
function noteFigure(
  nodes: number,
  name: string,
  value: number,
  unit: string,
  bound?: number,
  limit?: number,
): void {
  figures.push({ name, nodes, value, unit, bound, ...(limit !== undefined && { limit }) });
  const missed = bound !== undefined && (unit === "ratio" ? value < bound : value > bound);
  const digits = unit === "ratio" ? 3 : 1;
  const beside = [
    ...(bound === undefined ? [] : [`bound ${Number(bound.toFixed(digits))}`]),
    ...(limit === undefined ? [] : [`limit ${limit.toFixed(digits)}`]),
  ];
  const line = `${String(nodes).padStart(6)}  ${name.padEnd(66)} ${value.toFixed(digits).padStart(9)} ${unit}`;
  console.log(`${line}${beside.length > 0 ? `  (${beside.join(", ")})` : ""}${missed ? "  MISSED" : ""}`);
}

async function measureFirewall(backend: "nftables" | "iptables-nft", pairs: number): Promise<void> {
  if (pairs === 0) return;
  const { tcp, udp } = await measureDataPath(backend, pairs);
  noteFigure(5_000, `${backend}: TCP throughput beside tracking alone`, percentile(tcp, 0.5), "ratio", 0.95);
  noteFigure(
    5_000,
    `${backend}: small UDP packets beside tracking alone`,
    percentile(udp, 0.5),
    "ratio",
    0.95,
  );
}

async function measureCluster(nodes: number): Promise<void> {
  const note = (name: string, value: number, unit: string, bound?: number, limit?: number) =>
    noteFigure(nodes, name, value, unit, bound, limit);
  await using lab = await Lab.start({ nodes: 0, agents: false });
  const { api } = lab.controlPlane;
  await createNodes(api, 0, nodes);
  const node = await lab.addNode({ podCIDRs: ["10.99.0.0/24", "fd00:99::/64"] }, { agent: false });

  const started = await start(node);
  note("start to first log line", started.firstLine, "ms", 80);
  const agent = await node.agentPid();
  await node.inSync(60_000);
  await quiet(agent);
  const memory = memoryOf(agent);
  note("resident, steady", memory.resident, "MB", { 0: 62, 1000: 68, 5000: 100 }[nodes]);
  note("peak while it starts", memory.peak, "MB", nodes === 5_000 ? 150 : undefined);

  if (nodes > 0) {
    const events = 200;
    const changes = await change(node, api, nodes, events);
    const bounds = { 1000: [4, 15], 5000: [6, 20], 15000: [12, 35] }[nodes] ?? [];
    note("one node changes: CPU of the agent", changes.own, "ms", bounds[0]);
    note("one node changes: CPU with its children", changes.all, "ms", bounds[1]);
    note("one node changes: API server to kernel, p50", percentile(changes.latencies, 0.5), "ms", 60);
    note("one node changes: API server to kernel, p99", percentile(changes.latencies, 0.99), "ms", 120);

    await node.namespace.run(["nft", "-f", "-"], { stdin: foreignSets(200_000) });
    await quiet(agent);
    const crowded = await change(node, api, nodes, 50, 4);
    note("the same beside 200,000 elements of others: CPU with its children", crowded.all, "ms", bounds[1]);
    await node.namespace.run(["nft", "delete", "table", "inet", "others"]);
    await quiet(agent);

    const before = costOf(agent);
    await inParallel(0, 500, (index) => heartbeat(api, index % nodes));
    await quiet(agent);
    note("500 heartbeats of other nodes: CPU", costSince(agent, before).own, "ms", 150);

    const joining = costOf(agent);
    for (let second = 0; second < 10; second += 1) {
      const next = performance.now() + 1_000;
      await createNodes(api, nodes + second * 20, nodes + (second + 1) * 20);
      await sleep(next - performance.now());
    }
    await quiet(agent);
    note("200 nodes join within 10 s: CPU of the agent", costSince(agent, joining).own, "ms", 2_000);
  }

  await sameAgain(node, note);
  await node.stopAgent();
  const bare = await measureBare(node);
  for (const [what, took] of Object.entries(bare)) note(`the same content by itself: ${what}`, took, "ms");
  const limit = Object.values(bare).reduce((sum, took) => sum + took, 0);
  const bound = nodes === 5_000 ? Math.min(1.3 * limit, 2_500) : undefined;
  note("start to CNI file, overlay", started.cniFile, "ms", bound, limit);
  const from = performance.now();
  node.startAgent();
  await node.inSync(60_000);
  note(
    "restart with nothing changed to in sync",
    performance.now() - from,
    "ms",
    nodes === 5_000 ? 1_200 : undefined,
  );
}

type Note = (name: string, value: number, unit: string, bound?: number) => void;

/** Passes in which nothing has changed: of each change of the own Node that says nothing new. */
async function sameAgain(node: LightNode, note: Note): Promise<void> {
  const agent = await node.agentPid();
  const passes = 50;
  const before = costOf(agent);
  for (let pass = 0; pass < passes; pass += 1) {
    await node.patch({ metadata: { labels: { "example.com/bench": String(pass) } } });
    await sleep(100);
  }
  await quiet(agent);
  const { own, children } = costSince(agent, before);
  note("a pass with nothing changed: CPU with its children", (own + children) / passes, "ms", 2);
}

/** Starts the agent; milliseconds until its log has a line and the CNI file is there. */
async function start(node: LightNode): Promise<{ firstLine: number; cniFile: number }> {
  const from = performance.now();
  node.startAgent();
  await until("the first line of the log", () => node.agentLog().length > 0, { every: 2 });
  const firstLine = performance.now() - from;
  await node.ready(120_000);
  return { firstLine, cniFile: performance.now() - from };
}

/** Waits until a process has not run for half a second. */
async function quiet(pid: number): Promise<void> {
  let before = costOf(pid);
  await until(
    "the agent to be idle",
    async () => {
      await sleep(500);
      const { own, children } = costSince(pid, before);
      before = costOf(pid);
      return own + children === 0;
    },
    { timeout: 60_000 },
  );
}

/**
 * One node after the other gets other pod CIDRs: CPU of each change, and how long until its route is in the kernel.
 * @param block of which these are; each run has one of its own
 */
async function change(
  node: LightNode,
  api: Lab["controlPlane"]["api"],
  nodes: number,
  events: number,
  block = 3,
) {
  const agent = await node.agentPid();
  const argv = ["run", String(node.namespace.pid), "ip", "-4", "monitor", "route"];
  const monitor = spawn(tool("enter"), argv, { stdio: ["ignore", "pipe", "inherit"] });
  const seen = new Map<string, () => void>();
  createInterface({ input: monitor.stdout }).on("line", (line) => {
    const [prefix = ""] = line.split(" ");
    if (line.includes(" dev wigglenet ")) seen.get(prefix)?.();
  });
  try {
    await sleep(200);
    const before = costOf(agent);
    const latencies: number[] = [];
    for (let event = 0; event < events; event += 1) {
      const prefix = `10.${101 - block}.${event}.0/24`;
      const there = new Promise<void>((resolve) => seen.set(prefix, resolve));
      const from = performance.now();
      await changePodCidrs(api, (event * 37) % nodes, [prefix, `fd00:${block}:${event.toString(16)}::/64`]);
      await there;
      latencies.push(performance.now() - from);
    }
    await quiet(agent);
    const { own, children } = costSince(agent, before);
    return { own: own / events, all: (own + children) / events, latencies };
  } finally {
    monitor.kill("SIGKILL");
  }
}
