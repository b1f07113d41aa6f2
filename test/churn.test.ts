/** Nodes come, change and go, agents and the API server die: what does not concern a flow must not cost it a packet. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { version } from "../package.json";
import { annotationsOf } from "../src/plan/overlay/node.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { probes } from "./lab/probe/probes.ts";
import { patience, sleep, until } from "./lab/process.ts";

let lab: Lab;
let pods: Pod[];

beforeAll(async () => {
  lab = await Lab.start({ nodes: 3 });
  pods = await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
}, 60_000 * patience);
afterAll(() => lab[Symbol.asyncDispose]());

const changes = (node: LightNode) =>
  node.agentLog().filter((line) => line.commands !== undefined || line.annotations !== undefined);

/** Until then a node takes a prefix for one of outside, and what its pods send there goes in the clear. */
async function known(prefix: string): Promise<void> {
  await until(
    `every node to know ${prefix}`,
    async () => {
      const routes = await Promise.all(lab.nodes.map((node) => node.$`ip route show table all ${prefix}`));
      return routes.every(({ stdout }) => stdout.includes(prefix));
    },
    { timeout: 40_000 },
  );
}

test(
  "a fourth node joins and leaves: nothing lost between the others, nothing left of it",
  async () => {
    const [a, b] = pods as [Pod, Pod];
    const before = await Promise.all(lab.nodes.map(stateOf));
    const running = await probes([a, b]);
    const fourth = await lab.addNode();
    await fourth.ready();
    const pod = await fourth.pod("p");
    const all = [...lab.nodes.filter((node) => node !== fourth), ...pods];
    const both = all.flatMap((host): [Host, Host][] => [
      [host, pod],
      [pod, host],
    ]);
    await lab.shakeHands([a, b, pod]);
    await until(
      "all to reach the newcomer and be reached",
      async () => (await lab.unreached(both)).length === 0,
      { timeout: 15_000 },
    );
    const leaver = await fourth.podCIDRs();
    await lab.removeNode(fourth);
    // Its pod CIDRs stay unreachable for ten minutes.
    const unguarded = (states: NodeState[]) =>
      states.map((state) => ({
        ...state,
        routes: state.routes.filter((line) => !line.includes("unreachable")),
      }));
    await until("the leaver's peer and routes to go", async () =>
      Bun.deepEquals(unguarded(await Promise.all(lab.nodes.map(stateOf))), unguarded(before)),
    );
    // Whoever takes them away meanwhile.
    const [prefix = ""] = leaver;
    const guards = () =>
      lab.nodes[0]!.namespace.run(["ip", "route", "show", "table", "24600", "type", "unreachable"]);
    expect(await guards()).toContain(prefix);
    await lab.nodes[0]!.namespace.ip(`route delete unreachable ${prefix} metric 4096 table 24600`);
    await until("the leaver's guard to be back", async () => (await guards()).includes(prefix));
    expect(await running.lost()).toEqual([]);
  },
  60_000 * patience,
);

test(
  "an agent killed twenty times at random moments: nothing lost, nothing left over, the last start writes nothing",
  async () => {
    const [node] = lab.nodes as [LightNode];
    const [a, b] = pods as [Pod, Pod];
    const { api } = lab.controlPlane;
    await api.create({ apiVersion: "v1", kind: "Node", metadata: { name: "changing" } });
    const change = (publicKey: string | null) => {
      const [podCidrs, addresses] = [["10.98.0.0/24", "fd00:98::/64"], ["172.30.0.98"]];
      const annotations = annotationsOf({ version, publicKey, podCidrs, addresses, endpoints: addresses });
      return api.patch("/api/v1/nodes/changing", { metadata: { annotations } });
    };
    const key = randomBytes(32).toString("base64");
    await change(key);
    const stands = async () => (await node.$`wg show wigglenet peers`).stdout.includes(key);
    // The last that a pass writes of a node. A state is read piece by piece: only the next one is all from after it.
    await until("the changing Node's address in the firewall", async () =>
      (await stateOf(node)).nftables.some((line) => line.includes("172.30.0.98")),
    );
    const before = await stateOf(node);
    const running = await probes([a, b]);
    let changing = 0;
    for (let kill = 0; kill < 20; kill += 1) {
      await node.killAgent();
      // So that it has a peer and routes to add or to remove when it starts.
      await change((await stands()) ? null : key);
      node.startAgent();
      // Each second time not before it has begun with that.
      if (kill % 2 === 1) await until("its first change", () => changes(node).length > 0, { every: 1 });
      await sleep(Math.random() * (kill % 2 === 1 ? 10 : 700) * patience);
      const said = node.agentLog().some(({ msg }) => msg === "in sync");
      if (changes(node).length > 0 && !said) changing += 1;
    }
    // Of those that had begun, before they had ended.
    expect(changing).toBeGreaterThanOrEqual(5);
    await node.killAgent();
    await change(key);
    node.startAgent();
    await node.inSync();
    await until("the state to be what it was", async () => Bun.deepEquals(await stateOf(node), before)).catch(
      async (error) => {
        expect(await stateOf(node)).toEqual(before);
        throw error;
      },
    );
    await node.killAgent();
    node.startAgent();
    await node.inSync();
    expect(changes(node)).toEqual([]);
    expect(await stateOf(node)).toEqual(before);
    expect(await running.lost()).toEqual([]);
    await api.remove("/api/v1/nodes/changing");
    // After the grace of a Node that may be made anew: the next test begins with what is there.
    await until("the changing Node's peer to go", async () => !(await stands()));
  },
  120_000 * patience,
);

test(
  "a node gives up prefixes, some of them to another node: nothing is lost to its pods",
  async () => {
    const [a, b, c] = pods as [Pod, Pod, Pod];
    const [first, giver, taker] = lab.nodes as [LightNode, LightNode, LightNode];
    const before = await stateOf(first);
    // The test says in their stead what they have.
    await Promise.all([giver, taker].map((node) => node.killAgent()));
    const say = async (node: LightNode, more: string[]) => {
      const prefixes = JSON.stringify([...(await node.podCIDRs()), ...more]);
      await node.patch({ metadata: { annotations: { "wigglenet/pod-cidrs": prefixes } } });
    };
    const key = async (node: LightNode) =>
      (await node.object()).metadata.annotations!["wigglenet/public-key"]!;
    const owned = async (node: LightNode, prefix: string) => {
      const [{ wireguard }, publicKey] = await Promise.all([stateOf(first), key(node)]);
      return wireguard.find((line) => line.startsWith(publicKey))!.includes(prefix);
    };
    const peersNow = async () => (await stateOf(first)).wireguard.join("\n");
    const at = async (node: LightNode, ipv4: string): Promise<Host> => {
      await node.namespace.ip(`address add ${ipv4}/32 dev lo`);
      return { name: `${node.name} at ${ipv4}`, addresses: { ipv4 }, place: node.place };
    };
    const moving = [1, 2, 3, 4].map((index) => `10.99.${index}.0/24`);
    const going = ["10.99.5.0/24", "fd00:99::/64"];
    await say(giver, [...moving, ...going]);
    await until("the routes", async () => {
      const { routes } = await stateOf(first);
      return [...moving, ...going].every((prefix) => routes.some((line) => line.includes(`${prefix} dev`)));
    });
    expect(await lab.unreached([[a, await at(giver, "10.99.1.2")]])).toEqual([]);

    const running = await probes([a, b]);
    const from = first.agentLog().length;
    await using towards = await lab.probe(a, c, { family: "ipv6", rate: 200 });
    for (const [index, prefix] of moving.entries()) {
      // For a moment both have it.
      await say(taker, moving.slice(0, index + 1));
      await say(giver, [...moving.slice(index + 1), ...going]);
      await until(`${prefix} to have moved`, () => owned(taker, prefix), { why: peersNow });
      expect(await lab.unreached([[a, await at(taker, `10.99.${index + 1}.3`)]])).toEqual([]);
    }
    for (const [index, prefix] of going.entries()) {
      await say(giver, going.slice(index + 1));
      await until(`${prefix} to be gone`, async () => !(await owned(giver, prefix)), { why: peersNow });
    }
    expect(await running.lost()).toEqual([]);
    // A peer that gets a prefix is written anew, and has none for some microseconds: a packet each time at the most, and
    // too few for probes to be sure of.
    const commands = JSON.stringify(first.agentLog().slice(from));
    expect(commands).not.toContain(`peer ${await key(giver)} allowed-ips`);
    expect(commands).toContain(`peer ${await key(taker)} allowed-ips`);
    expect((await towards.stop()).lost).toBeLessThanOrEqual(moving.length);

    for (const node of [giver, taker]) {
      await node.$`ip address flush dev lo scope global`;
      node.startAgent();
    }
    let after = before.wireguard;
    await until("the peers to be what they were", async () => {
      after = (await stateOf(first)).wireguard;
      return Bun.deepEquals(after, before.wireguard);
    }).catch(() => expect(after).toEqual(before.wireguard));
  },
  60_000 * patience,
);

test(
  "a node's address changes while others talk",
  async () => {
    const [a, b, c] = pods as [Pod, Pod, Pod];
    const node = lab.nodes[2]!;
    const running = await probes([a, b]);
    await node.readdress({ ipv4: "172.30.0.113", ipv6: "fd30::113" });
    await until(
      "all to reach the node again",
      async () =>
        (
          await lab.unreached([
            [a, c],
            [c, a],
            [b, node],
            [node, b],
          ])
        ).length === 0,
      { timeout: 15_000 },
    );
    // Pods are reached as soon as WireGuard sees the new endpoint, which may be before the Node tells of it.
    const peers = async () => (await stateOf(lab.nodes[0]!)).wireguard.join("\n");
    await until(
      "the new address to be in the tunnel",
      async () => (await peers()).includes("172.30.0.113/32"),
      {
        why: peers,
      },
    );
    expect(await peers()).not.toContain("172.30.0.13/32");
    expect(await running.lost()).toEqual([]);
  },
  60_000 * patience,
);

test(
  "a node's pod CIDRs change while others talk",
  async () => {
    const [a, b] = pods as [Pod, Pod];
    const node = lab.nodes[2]!;
    const running = await probes([a, b]);
    // Kubernetes never changes a Node's pod CIDRs: the Node is made anew.
    const { metadata, status } = await node.object();
    const old = await node.podCIDRs();
    await lab.controlPlane.api.remove(`/api/v1/nodes/${node.name}`);
    const podCIDRs = ["10.244.200.0/24", "fd00:10:244:c8::/64"];
    await lab.controlPlane.api.create({
      apiVersion: "v1",
      kind: "Node",
      metadata: { name: node.name, labels: metadata.labels },
      spec: { podCIDR: podCIDRs[0], podCIDRs },
    });
    await lab.controlPlane.api.patch(`/api/v1/nodes/${node.name}/status`, {
      status: { addresses: status.addresses },
    });
    await node.renewToken();
    await until(
      "the node's CNI file to have the new prefixes",
      () => node.read("/etc/cni/net.d/10-wigglenet.conflist")?.includes("10.244.200.0/24"),
      { timeout: 15_000, why: () => JSON.stringify(node.agentLog().slice(-3)) },
    );
    const pod = await node.pod("new");
    expect(pod.addresses.ipv4).toStartWith("10.244.200.");
    await known(podCIDRs[0]!);
    await lab.shakeHands([a, b, pod]);
    await until(
      "all to reach the new pod",
      async () =>
        (
          await lab.unreached([
            [a, pod],
            [pod, b],
            [lab.nodes[0]!, pod],
          ])
        ).length === 0,
      { timeout: 15_000 },
    );
    await until("the old prefixes to leave the tunnel", async () => {
      const others = await Promise.all(lab.nodes.slice(0, 2).map(stateOf));
      return others.every(({ wireguard }) => old.every((prefix) => !wireguard.join("\n").includes(prefix)));
    });
    expect(await running.lost()).toEqual([]);
  },
  60_000 * patience,
);

test(
  "a node that was rebooted is reached at once, though it sends nothing by itself",
  async () => {
    const [a] = pods as [Pod];
    const node = lab.nodes[2]!;
    // The others hold a session with its earlier life, and would send into that for 15 s.
    await until("a session", async () => (await lab.reach(a, node, { family: "ipv6" })).ok);
    await node.powerCut();
    await node.boot();
    node.startAgent();
    await node.ready();
    await until(
      "the node to be reached",
      async () => (await lab.reach(a, node, { family: "ipv6", timeout: 200 })).ok,
      {
        timeout: 3_000,
        every: 100,
      },
    );
    const greeted = () => node.agentLog().filter(({ msg }) => msg === "peers greeted");
    await until("all to be greeted", () => greeted().length > 0);
    expect(greeted()).toMatchObject([{ peers: 2 }]);
    // With a new key, of which nobody holds a session, there was no need to.
    for (const other of lab.nodes.slice(0, 2))
      expect(other.agentLog().filter(({ msg }) => msg === "peers greeted")).toEqual([]);
  },
  60_000 * patience,
);

test(
  "the API server is away for a minute and the agent restarts meanwhile: nothing lost; later changes arrive",
  async () => {
    const [a, b] = pods as [Pod, Pod];
    const [first, second] = lab.nodes as [LightNode, LightNode];
    const onNodes = async () =>
      (await Promise.all([first, second].map(stateOf))).map(({ annotations: _, ...rest }) => rest);
    const before = await onNodes();
    const running = await probes([a, b]);
    await lab.controlPlane.stopServer();
    await first.stopAgent();
    first.startAgent();
    await sleep(60_000);
    expect(await onNodes()).toEqual(before);
    await lab.controlPlane.startServer();
    // The controller manager may take its time to come back: what is asked here is whether the agents do.
    const podCIDRs = ["10.244.201.0/24", "fd00:10:244:c9::/64"];
    const newcomer = await lab.addNode({ podCIDRs });
    await newcomer.ready(40_000);
    const pod = await newcomer.pod("p");
    await known(podCIDRs[0]!);
    await lab.shakeHands([a, b, pod]);
    await until(
      "the change to arrive",
      async () =>
        (
          await lab.unreached([
            [a, pod],
            [b, pod],
            [pod, a],
            [pod, b],
          ])
        ).length === 0,
      { timeout: 40_000 },
    );
    expect(await running.lost()).toEqual([]);
  },
  180_000 * patience,
);
