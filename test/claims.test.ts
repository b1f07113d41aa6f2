/**
 * What a node writes into its annotations costs itself at most: Nodes that no machine stands behind claim what other
 * nodes have, while packets flow between the pods of those.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { version } from "../package.json";
import { annotation, annotationsOf } from "../src/plan/overlay/node.ts";
import { repository } from "./lab/cache.ts";
import type { ApiObject } from "./lab/cluster/api.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Stream } from "./lab/cluster/place.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

/** What a fake Node says; by default nothing that anybody else has. */
interface Claims {
  publicKey?: string;
  podCidrs?: string[];
  addresses?: string[];
}

/** What there is to be claimed. */
interface Victim {
  node: LightNode;
  publicKey: string;
  v4: { pods: string; address: string; pod: string };
  v6: { pods: string; address: string; pod: string };
}

let lab: Lab;
let victim: Victim;
let healthy: NodeState[];
let streams: Stream[];

/** Fake Nodes, one older and one younger than the node whose things they claim. Age decides only where nothing stands. */
const fakes = ["elder", "junior"];
const keyOf = (name: string) => Buffer.from(name.padEnd(32, "-")).toString("base64");

function claim(name: string, { publicKey = keyOf(name), podCidrs = [], addresses = [] }: Claims = {}) {
  const endpoints = [name === "elder" ? "172.30.0.201" : "172.30.0.202"];
  const annotations = annotationsOf({ version, publicKey, podCidrs, addresses, endpoints });
  return lab.controlPlane.api.patch(`/api/v1/nodes/${name}`, { metadata: { annotations } });
}

async function makeFake(name: string): Promise<void> {
  await lab.controlPlane.api.create({ apiVersion: "v1", kind: "Node", metadata: { name } });
  await claim(name);
}

/** Times of creation are whole seconds. */
async function anotherSecond(): Promise<void> {
  const now = Math.floor(Date.now() / 1000);
  await until("another second to begin", () => Math.floor(Date.now() / 1000) > now);
}

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2 });
  await makeFake("elder");
  await anotherSecond();
  const node = await lab.addNode();
  await node.ready();
  await anotherSecond();
  await makeFake("junior");
  await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.shakeHands();
  const cidrs = await node.podCIDRs();
  const pod = node.pods.get("p")!;
  const v = (family: "ipv4" | "ipv6") => ({
    pods: cidrs.find((cidr) => cidr.includes(":") === (family === "ipv6"))!,
    address: node.addresses[family]!,
    pod: pod.addresses[family]!,
  });
  const publicKey = (await node.object()).metadata.annotations?.[annotation.publicKey] as string;
  victim = { node, publicKey, v4: v("ipv4"), v6: v("ipv6") };
  healthy = await until("all to know each other and the fake ones", async () => {
    const all = await states();
    return all.every(({ wireguard }) => wireguard.length === 5) && all;
  });
  streams = await Promise.all(
    lab.nodes.flatMap((from) =>
      lab.nodes
        .filter((to) => to !== from)
        .flatMap((to) =>
          (["ipv4", "ipv6"] as const).map((family) =>
            lab.probe(from.pods.get("p")!, to.pods.get("p")!, { family, rate: 20 }),
          ),
        ),
    ),
  );
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

const states = () => Promise.all(lab.nodes.map(stateOf));

/** A state without the peers that the fake Nodes are: those may come and go. */
function real(state: NodeState): NodeState {
  const keys = fakes.map(keyOf);
  return {
    ...state,
    wireguard: state.wireguard.filter((line) => !keys.some((key) => line.startsWith(key))),
  };
}
const realStates = async () => (await states()).map(real);

/** Lines about the claims of a fake Node in the logs of each node's agent, since its last start. */
function told(node: LightNode, fake: string): { level?: unknown; problems?: unknown }[] {
  return node.agentLog().filter((line) => line.node === fake);
}

async function restart(nodes: LightNode[]): Promise<void> {
  await Promise.all(nodes.map((node) => node.stopAgent()));
  for (const node of nodes) node.startAgent();
  await Promise.all(nodes.map((node) => node.inSync()));
}

/** Both fake Nodes claim the same; what each agent logs of it, once it has. */
async function claimed(claims: Claims): Promise<string[]> {
  const before = lab.nodes.map((node) => fakes.map((fake) => told(node, fake).length));
  await Promise.all(fakes.map((fake) => claim(fake, claims)));
  const lines = () =>
    lab.nodes.flatMap((node, index) =>
      fakes.flatMap((fake, which) => told(node, fake).slice(before[index]?.[which])),
    );
  await until("all agents to log both", () => lines().length >= lab.nodes.length * fakes.length);
  expect(lines().filter(({ level }) => level !== "warn")).toEqual([]);
  return lines().map(({ problems }) => String(problems));
}

async function disclaimed(): Promise<void> {
  await Promise.all(fakes.map((fake) => claim(fake)));
  await until("all agents to log that both are well again", () =>
    lab.nodes.every((node) => fakes.every((fake) => (told(node, fake).at(-1)?.level ?? "info") === "info")),
  );
  await until("all to be as before", async () => Bun.deepEquals(await states(), healthy)).catch(
    async (error) => {
      expect(await states()).toEqual(healthy);
      throw error;
    },
  );
}

const within = (prefix: string, bits: number) => `${prefix.split("/")[0]}/${bits}`;

describe("what another node has stays with it", () => {
  test.each<[name: string, restarts: boolean, claims: (victim: Victim) => Claims]>([
    ["its pod CIDRs", true, ({ v4, v6 }) => ({ podCidrs: [v4.pods, v6.pods] })],
    ["half of one", false, ({ v4, v6 }) => ({ podCidrs: [within(v4.pods, 25), within(v6.pods, 65)] })],
    ["one address of one", false, ({ v4, v6 }) => ({ podCidrs: [`${v4.pod}/32`, `${v6.pod}/128`] })],
    ["all nodes' pod CIDRs", true, () => ({ podCidrs: ["10.244.0.0/16", "fd00:10:244::/56"] })],
    ["half of the Internet", false, () => ({ podCidrs: ["8.0.0.0/5", "fc00::/7"] })],
    ["its addresses, as a node's", true, ({ v4, v6 }) => ({ addresses: [v4.address, v6.address] })],
    [
      "its addresses and its pod CIDRs",
      true,
      ({ v4, v6 }) => ({ addresses: [v4.address, v6.address], podCidrs: [v4.pods, v6.pods] }),
    ],
    ["a pod's address, as a node's", false, ({ v4, v6 }) => ({ addresses: [v4.pod, v6.pod] })],
    [
      "its address, as a pod CIDR",
      false,
      ({ v4, v6 }) => ({ podCidrs: [`${v4.address}/32`, `${v6.address}/128`] }),
    ],
    ["the underlay", false, () => ({ podCidrs: ["172.30.0.0/24", "fd30::/64"] })],
    ["more than the underlay", false, () => ({ podCidrs: ["172.16.0.0/12", "fd00::/8"] })],
    ["the API server's address, as a pod CIDR", false, () => ({ podCidrs: ["172.30.0.1/32"] })],
    ["the API server's address, as a node's", false, () => ({ addresses: ["172.30.0.1"] })],
    ["everything, IPv4", false, () => ({ podCidrs: ["0.0.0.0/0"] })],
    ["everything, IPv6", false, () => ({ podCidrs: ["::/0"] })],
    ["an eighth of everything", false, () => ({ podCidrs: ["128.0.0.0/3", "2000::/3"] })],
    ["the default gateway", false, () => ({ podCidrs: ["172.30.0.1/32", "fd30::1/128"] })],
    ["the default gateway, as a node's", false, () => ({ addresses: ["172.30.0.1", "fd30::1"] })],
    ["half of everything", false, () => ({ podCidrs: ["0.0.0.0/1", "128.0.0.0/1"] })],
    ["loopback", false, () => ({ podCidrs: ["127.0.0.0/8"], addresses: ["::1"] })],
    ["link-local", false, () => ({ podCidrs: ["169.254.0.0/16", "fe80::/64"] })],
    ["multicast", false, () => ({ podCidrs: ["224.0.0.0/4", "ff02::/16"] })],
    ["IPv4-mapped", false, ({ v4 }) => ({ addresses: [`::ffff:${v4.address}`] })],
    ["its key", true, ({ publicKey }) => ({ publicKey })],
    [
      "its key and its pod CIDRs",
      true,
      ({ publicKey, v4, v6 }) => ({ publicKey, podCidrs: [v4.pods, v6.pods] }),
    ],
    ["a key that is none", false, () => ({ publicKey: "AAAA" })],
    ["a key of zeros", false, () => ({ publicKey: `${"A".repeat(43)}=` })],
  ])("%s", async (_, restarts, claims) => {
    const lines = await claimed(claims(victim));
    expect(lines.filter((line) => line.length < 20)).toEqual([]);
    expect(await realStates()).toEqual(healthy.map(real));
    if (restarts) {
      await restart(lab.nodes);
      expect(await realStates()).toEqual(healthy.map(real));
    }
    await disclaimed();
  });
});

test("nothing was lost between the pods meanwhile", async () => {
  const counts = await Promise.all(streams.map((stream) => stream.stop()));
  expect(Math.min(...counts.map(({ received }) => received))).toBeGreaterThan(100);
  expect(counts.map(({ lost }) => lost)).toEqual(counts.map(() => 0));
});

test("an address that no packet can leave for, on a node with links of several MTUs", async () => {
  const { node, v4, v6 } = victim;
  const one = (prefix: string) => prefix.replace(/[^.:]*\/.*/, "99");
  // As routers have them for private prefixes, and DHCPv6 clients for what was delegated to them.
  const [blackhole, prohibited] = ["198.51.100.0/24", "2001:db8:7::/48"];
  await node.namespace.ip(
    "link add br-odd mtu 1400 type bridge",
    "link set br-odd up",
    `route add blackhole ${blackhole}`,
    `route add prohibit ${prohibited}`,
  );
  const others = [one(blackhole), one(prohibited), one(v4.pods), one(v6.pods)];
  for (const address of others) {
    await claim("junior", { addresses: [address] });
    const endpoint = address.includes(":") ? `[${address}]:` : `${address}:`;
    await until(`a peer to have the endpoint ${address}`, async () =>
      (await stateOf(node)).wireguard.some((line) => line.includes(endpoint)),
    );
  }
  const failed = node.agentLog().filter(({ msg }) => msg === "failed; it is tried again");
  expect(failed).toEqual([]);
  await node.namespace.ip(
    "link del br-odd",
    `route del blackhole ${blackhole}`,
    `route del prohibit ${prohibited}`,
  );
  await disclaimed();
});

test("an API server that no agent talks to: no pod CIDR takes it either", async () => {
  const slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
  const { endpoints } = await lab.controlPlane.api.get<ApiObject & { endpoints: object[] }>(slice);
  // The API server puts its own list back within some seconds.
  const more = { ...endpoints[0], addresses: ["198.51.100.77"] };
  await lab.controlPlane.api.patch(slice, { endpoints: [...endpoints, more] });
  const lines = await claimed({ podCidrs: ["198.51.100.77/32"] });
  expect(lines).toEqual(lines.map(() => "pod CIDR 198.51.100.77/32: it is an address of the API server"));
  // Of one that only looks, too: what it would do first must not wait for what it would learn next.
  const [node] = lab.nodes as [LightNode];
  const argv = [`${repository}/dist/wigglenet`, "agent", "--dry-run"];
  expect(await node.namespace.run(argv, { env: node.agentEnv() })).not.toContain("198.51.100.77");
  await disclaimed();
});

describe("the same pod CIDRs of two nodes", () => {
  /** Whose peer has the victim's pod CIDRs on a node: the fake's key or the victim's. */
  async function owner(node: LightNode): Promise<string | undefined> {
    const { wireguard } = await stateOf(node);
    return wireguard.find((line) => line.includes(victim.v4.pods))?.split(" ")[0];
  }

  test("a link that is deleted: who had them before has them again", async () => {
    const [node] = lab.nodes as [LightNode];
    const { v4, v6, publicKey } = victim;
    await claimed({ podCidrs: [v4.pods, v6.pods] });
    await node.$`ip link delete wigglenet`;
    await until(
      "the link and its peers to be back",
      async () => (await stateOf(node)).wireguard.length === 5,
    );
    expect(await owner(node)).toBe(publicKey);
  });

  test("a node that has just booted knows not whose they are: they are nobody's there, and not in the clear", async () => {
    const [node, other] = lab.nodes as [LightNode, LightNode];
    const { v4, v6 } = victim;
    await claimed({ podCidrs: [v4.pods, v6.pods], addresses: [v4.address, v6.address] });
    await node.powerCut();
    await node.boot();
    node.startAgent();
    await node.ready();
    const pod = await node.pod("p");
    expect(await owner(node)).toBeUndefined();
    expect(await owner(other)).toBe(victim.publicKey);
    const state = await stateOf(node);
    const clear = [...state.routes, ...state.wireguard].filter((line) =>
      [v4.pods, v6.pods, `${v4.address}/32`, `${v6.address}/128`].some(
        (prefix) => line.includes(prefix) && !line.includes("unreachable"),
      ),
    );
    expect(clear).toEqual([]);
    // The lab's own capture says at the end whether anything left in the clear.
    const pairs = [victim.node.pods.get("p")!, victim.node].map((host): [Host, Host] => [pod, host]);
    expect(await lab.unreached(pairs, { timeout: 300 })).toHaveLength(pairs.length * 6);
    // Nodes talk to each other as ever: the API server may be there.
    expect(await lab.unreached([[node, victim.node]])).toEqual([]);
    await Promise.all(fakes.map((fake) => lab.controlPlane.api.remove(`/api/v1/nodes/${fake}`)));
    await until("the fake Nodes' peers to go", async () =>
      (await Promise.all(lab.nodes.map(stateOf))).every(({ wireguard }) => wireguard.length === 3),
    );
    expect(await owner(node)).toBe(victim.publicKey);
    await until("the pod to reach them", async () => (await lab.unreached(pairs)).length === 0, {
      timeout: 20_000,
    });
  });
});
