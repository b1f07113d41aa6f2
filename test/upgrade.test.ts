/** One agent takes a node over from another: of the next version, of the other implementation, of an earlier life. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { version } from "../package.json";
import { GoAgent } from "./lab/cluster/goagent.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { nextBuild, nextVersion } from "./lab/cluster/nextbuild.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { commandBlocks } from "./lab/documents.ts";
import { fileIdentity, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { probes } from "./lab/probe/probes.ts";
import { patience, until } from "./lab/process.ts";

const privateKey = "/etc/wigglenet/private.key";
const migration = commandBlocks("docs/migration.md");
const back = migration.find(({ text }) => text.includes("nft delete table"))!;

/** A pod on each node; from here on agents have nothing to do. */
async function podPerNode(lab: Lab): Promise<Pod[]> {
  const pods = await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
  return pods;
}

/** What an agent changed since its start, or the line of its log with this number, each kind once. */
function changes(node: LightNode, from = 0): string[] {
  const lines = node
    .agentLog()
    .slice(from)
    .filter((line) => line.commands !== undefined || line.annotations !== undefined);
  return [...new Set(lines.map((line) => String(line.msg)))].sort();
}

const annotation = async (node: LightNode, name: string) =>
  (await node.object()).metadata.annotations?.[`wigglenet/${name}`];

/** The link's number, and of each peer the time of its handshake: what a link or a peer made anew has not. */
async function sessions(node: LightNode): Promise<string[]> {
  const handshakes = (await node.$`wg show wigglenet latest-handshakes`).stdout.trim().split("\n").sort();
  return [(await node.$`cat /sys/class/net/wigglenet/ifindex`).stdout.trim(), ...handshakes];
}

/** What of ours the other implementation would not keep up to date. */
async function traces(node: LightNode): Promise<string[]> {
  const { stdout } = await node.$`for family in -4 -6; do
    ip $family rule show | grep "proto 246"
    ip $family route show table all protocol 246
  done
  nft list table inet wigglenet | grep fully-random || true`.nothrow();
  return stdout.split("\n").filter(Boolean);
}

/** Routes and rules as version 1.0.0 had them: all but those of marked packets in the main table. */
const asVersion1 = `for family in -4 -6; do
  ip $family route show table 24600 dev wigglenet | while read -r prefix rest; do
    ip $family route replace unreachable $prefix metric 4096 proto 246
    ip $family route replace $prefix dev wigglenet proto 246
  done
  ip $family rule add fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246
  for priority in 2460 2461 2459; do ip $family rule delete priority $priority protocol 246; done
  ip $family route flush table 24600
done`;

test(
  "an upgrade of all agents to the next version and back: nothing lost, nothing written but the version",
  async () => {
    const binary = await nextBuild();
    await using lab = await Lab.start({ nodes: 2 });
    const running = await probes((await podPerNode(lab)) as [Pod, Pod]);
    for (const [to, executable] of [
      [nextVersion, binary],
      [version, undefined],
    ] as const)
      for (const node of lab.nodes) {
        const before = await stateOf(node);
        await node.stopAgent();
        node.startAgent({}, executable);
        await node.inSync(20_000);
        expect(JSON.parse((await annotation(node, "agent"))!)).toMatchObject({ version: to });
        expect(changes(node)).toEqual(["own Node annotated"]);
        const { annotations: _, ...after } = await stateOf(node);
        expect({ ...after, annotations: before.annotations }).toEqual(before);
      }
    expect(await running.lost()).toEqual([]);
  },
  120_000 * patience,
);

let lab: Lab;
let nodes: [LightNode, LightNode, LightNode];
let pods: [Pod, Pod, Pod];

describe("of three nodes", () => {
  beforeAll(async () => {
    lab = await Lab.start({ nodes: 3 });
    nodes = lab.nodes as typeof nodes;
    pods = (await podPerNode(lab)) as typeof pods;
  }, 60_000 * patience);
  afterAll(() => lab[Symbol.asyncDispose]());

  test(
    "a node of the Go implementation is taken over in place, and goes back: nothing lost, the same peer",
    async () => {
      const [, second, third] = nodes;
      const [a, b, c] = pods;
      const go = [second, third].map((node) => new GoAgent(node, () => lab.controlPlane.api.nodes()));
      const reached = () =>
        until("all pods to reach each other", async () => (await lab.unreached(pods)).length === 0, {
          timeout: 20_000,
        });
      // Two of three nodes go to the other implementation, by what the documents say, and one of them comes back.
      const running = await probes([a, b], [b, c]);
      const before = await sessions(second);
      for (const [index, node] of [second, third].entries()) {
        await node.stopAgent();
        await node.$`/bin/bash -c ${back.text}`;
        await go[index]!.sync();
      }
      expect(await traces(second)).toEqual([]);
      expect(await sessions(second)).toEqual(before);
      await reached();

      const key = [second.read(privateKey), await annotation(second, "public-key")];
      const keyFile = fileIdentity(second, privateKey);
      const cniBefore = second.read(cniFile);
      const from = nodes[0].agentLog().length;
      second.startAgent();
      await second.inSync(20_000);
      expect([second.read(privateKey), await annotation(second, "public-key")]).toEqual(key);
      expect(fileIdentity(second, privateKey)).toBe(keyFile);
      expect(await sessions(second)).toEqual(before);
      expect(changes(second)).toEqual([
        "CNI file",
        "firewall",
        "own Node annotated",
        "routes added",
        "routes removed",
      ]);
      expect(changes(nodes[0], from).filter((what) => /peers|link|key/.test(what))).toEqual([]);
      const { cni, nftables } = await stateOf(second);
      expect(cni.target).toBeUndefined();
      expect(cni.content).not.toBe(cniBefore);
      expect(nftables.join("\n")).not.toContain("chain masq");

      // What it had by iptables goes by hand, and nothing else with it.
      await second.$`iptables-nft -N FOREIGN`;
      expect((await second.$`iptables-nft-save`).stdout).toContain("WIGGLENET-MASQ");
      await second.$`/bin/bash -c ${migration.find(({ text }) => text.includes("-restore"))!.text}`;
      expect((await second.$`iptables-nft-save; ip6tables-nft-save`).stdout).not.toContain("WIGGLENET-");
      await second.$`iptables-nft -S FOREIGN`;
      await reached();

      expect(await running.lost()).toEqual([]);
      const { text = "" } = migration.find(({ text }) => text.includes("wigglenet/agent-")) ?? {};
      await lab.controlPlane.kubectl`${text.trim().split(" ").slice(1)}`;
      expect(await annotation(third, "agent")).toBeUndefined();
      third.startAgent();
      await third.inSync(20_000);
    },
    180_000 * patience,
  );

  test(
    "a node that version 1.0.0 set up is taken over: nothing lost, nothing stale",
    async () => {
      const [first] = nodes;
      const [a, b] = pods;
      const before = await stateOf(first);
      const running = await probes([a, b]);
      await first.stopAgent();
      await first.$`/bin/bash -ec ${asVersion1}`;
      expect((await stateOf(first)).rules).not.toEqual(before.rules);
      first.startAgent();
      await first.inSync(20_000);
      expect(changes(first)).toEqual(["routes added", "routes removed"]);
      expect(await stateOf(first)).toEqual(before);
      expect(await running.lost()).toEqual([]);
    },
    60_000 * patience,
  );

  test(
    "a node that comes back without its key is reached within a second of its new annotation",
    async () => {
      const [first, , third] = nodes;
      const [a, b] = pods;
      const old = await annotation(third, "public-key");
      const running = await probes([a, b]);
      await third.powerCut();
      rmSync(`${lab.underlay.dir}/nodes/${third.name}${privateKey}`);
      await third.boot();
      third.startAgent();
      const key = await until(
        "the new annotation",
        async () => {
          const key = await annotation(third, "public-key");
          return key !== old && key;
        },
        { every: 5 },
      );
      const published = performance.now();
      const peers = async () => (await first.$`wg show wigglenet peers`).stdout;
      await until("its peers to follow", async () => (await peers()).includes(key), { every: 10 });
      const followed = performance.now() - published;
      await until(
        "the node to be reached",
        async () => (await lab.reach(a, third, { family: "ipv6", timeout: 200 * patience })).ok,
        { every: 10 },
      );
      console.log(
        `a new key: in the peers after ${followed.toFixed(0)} ms, the node reached after ${(performance.now() - published).toFixed(0)} ms`,
      );
      expect(followed).toBeLessThan(1000 * patience);
      await until("the old key to go", async () => !(await peers()).includes(old!), { timeout: 1000 });
      expect(await running.lost()).toEqual([]);
    },
    60_000 * patience,
  );
});
