/**
 * IPv6 that is switched off by sysctl, or that the kernel does not have (cri-o#3555, cilium#542): IPv4 goes on as if
 * nothing were, the agent says so once, and takes IPv6 back when it is there again.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { routerAddresses } from "./lab/kernel/underlay.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let n1: LightNode, n2: LightNode;
let pods: [Pod, Pod];
let healthy: NodeState;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2, env: { RESYNC_PERIOD: "3600", HEALTH_BIND_ADDR: "127.0.0.1:24602" } });
  [n1, n2] = lab.nodes as [LightNode, LightNode];
  pods = [await n1.pod("p"), await n2.pod("p")];
  await lab.shakeHands();
  healthy = await state();
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** Of n1. Chains that were gone are the last in the kernel's list when they are back. */
async function state(): Promise<NodeState> {
  const found = await stateOf(n1);
  return { ...found, nftables: found.nftables.toSorted() };
}

/** Of these places in net.ipv6.conf: `all`, `default`, or a link. */
const disable = (value: 0 | 1, ...places: string[]) =>
  n1.namespace.sysctl(
    Object.fromEntries(places.map((place) => [`net.ipv6.conf.${place}.disable_ipv6`, value])),
  );
/** Who gave the node its addresses gives them again; nobody does that for pods. */
const readdress = () =>
  n1.namespace.ip(
    `address replace ${n1.addresses.ipv6}/64 dev eth0 nodad`,
    `route replace default via ${routerAddresses.ipv6}`,
  );
const readyz = async (node = n1) =>
  (await node.$`curl -s -w ' %{http_code}' http://127.0.0.1:24602/readyz`).stdout.trim();
/** What the agent has said of IPv6. */
const said = (node = n1) => node.agentLog().filter((line) => line.topic === "IPv6");
const reachedBy = (...families: ("ipv4" | "ipv6")[]) =>
  lab.unreached([...pods, n2], { families, protocols: ["udp"] });

/** IPv4 loses no packet meanwhile, and nothing goes in the clear. */
async function undisturbed(body: () => Promise<unknown>): Promise<void> {
  await using capture = await lab.capture();
  await using flows = new AsyncDisposableStack();
  const streams = await Promise.all([
    lab.probe(pods[0], pods[1], { family: "ipv4" }),
    lab.probe(pods[0], pods[1], { family: "ipv4", protocol: "tcp" }),
    lab.probe(pods[1], n1, { family: "ipv4" }),
    lab.probe(pods[0], n2, { family: "ipv4" }),
    lab.probe(pods[0], lab.outside, { family: "ipv4" }),
  ]);
  for (const stream of streams) flows.use(stream);
  await body();
  const lost = await Promise.all(streams.map(async (stream) => (await stream.stop()).lost));
  expect(lost).toEqual(streams.map(() => 0));
  expect(await capture.stop()).toEqual([]);
}

/** Where a node's only peer is. */
const endpoint = async (node: LightNode) =>
  (await node.namespace.run(["wg", "show", "wigglenet", "endpoints"])).split("\t")[1]?.trim();

/** Ends what is left of a tunnel by IPv6: what was under way by it moves the other end back to it. */
async function bothSendByIpv4(): Promise<void> {
  const ends = [n1, n2] as const;
  await until("both nodes to send by IPv4", async () => {
    for (const [index, node] of ends.entries()) {
      const { ipv4 } = ends[1 - index]!.addresses;
      const peer = (await node.namespace.run(["wg", "show", "wigglenet", "peers"])).trim();
      await node.namespace.run(["wg", "set", "wigglenet", "peer", peer, "endpoint", `${ipv4}:24601`]);
    }
    if ((await reachedBy("ipv4")).length > 0) return false;
    return (await Promise.all(ends.map(endpoint))).every((each) => each?.startsWith("172."));
  });
}

/** The next agent looks at everything, as the resync does. */
async function restart(env: Record<string, string> = {}): Promise<void> {
  await n1.stopAgent();
  n1.startAgent(env);
  await n1.inSync();
}

async function reachedAgain(node = n1): Promise<void> {
  await until(
    "pods to be reached by both families",
    async () => (await reachedBy("ipv4", "ipv6")).length === 0,
    {
      why: async () => JSON.stringify([await reachedBy("ipv4", "ipv6"), node.agentLog().slice(-5)]),
    },
  );
}

async function asBefore(): Promise<void> {
  await reachedAgain();
  await until("the node to be as before", async () => Bun.deepEquals(await state(), healthy)).catch(
    async (error) => {
      expect(await state()).toEqual(healthy);
      throw error;
    },
  );
  expect(await lab.unreached(pods)).toEqual([]);
  expect(await readyz()).toBe("ok\n 200");
}

/** New pods get addresses of these families. */
async function newPods(node: LightNode, ...families: ("ipv4" | "ipv6")[]): Promise<Pod> {
  const has = families.includes("ipv6");
  await until("the CNI file to say so", () => node.read(cniFile)?.includes("fd00:") === has);
  const pod = await node.pod(has ? "both" : "late");
  expect(Object.keys(pod.addresses).sort()).toEqual(families);
  return pod;
}

const all = {
  level: "warn",
  off: ["net.ipv6.conf.default.disable_ipv6", "net.ipv6.conf.wigglenet.disable_ipv6"],
  msg: expect.stringMatching(/net\.ipv6\.conf\.all\.disable_ipv6=0.*POD_CIDR_SOURCE_IPV6=none/),
};

describe("switched off on a node, and on again", () => {
  test(
    "IPv4 loses no packet, new pods have it, and pods have their IPv6 back",
    () =>
      undisturbed(async () => {
        await disable(1, "all");
        expect(await until("n1 to name it", () => said()[0])).toMatchObject(all);
        const late = await newPods(n1, "ipv4");
        expect(await lab.unreached([late, pods[1], n2], { families: ["ipv4"] })).toEqual([]);
        expect(await readyz()).toMatch(/^ok\n.*IPv6.* 200$/s);
        expect(said()).toHaveLength(1);
        expect(atLeast("error", n1.agentLog())).toEqual([]);
        await disable(0, "all");
        // lo has its address again; the node's own may come later, and to it there is no other way for pods.
        await until("pods to be reached", async () => (await lab.unreached(pods)).length === 0);
        expect(said()).toHaveLength(2);
        await readdress();
        await asBefore();
        const both = await newPods(n1, "ipv4", "ipv6");
        expect(await lab.unreached([both, pods[0], pods[1]], { protocols: ["udp"] })).toEqual([]);
        await Promise.all([late.remove(), both.remove()]);
      }),
    60_000,
  );

  test(
    "while no agent runs: the next one finds it off, and the one after that finds it on",
    () =>
      undisturbed(async () => {
        await n1.stopAgent();
        await disable(1, "all");
        n1.startAgent();
        await n1.inSync();
        expect(said()).toEqual([expect.objectContaining(all)]);
        expect(await reachedBy("ipv4")).toEqual([]);
        await n1.stopAgent();
        await disable(0, "all");
        await readdress();
        n1.startAgent();
        await asBefore();
        expect(said()).toEqual([]);
      }),
    60_000,
  );
});

describe("switched off on single links", () => {
  test("the tunnel's: put right at once", () =>
    undisturbed(async () => {
      await disable(1, "wigglenet");
      await asBefore();
      expect(atLeast("warn", n1.agentLog())).toEqual([]);
    }));

  test("a pod's: put right at the next look at everything", () =>
    undisturbed(async () => {
      await disable(1, (await n1.$`ls /sys/class/net | grep ^veth | head -1`).stdout.trim());
      await restart();
      await asBefore();
    }));

  test("a pod's link was down", () =>
    undisturbed(async () => {
      const pod = await newPods(n1, "ipv4", "ipv6");
      const links = (await n1.$`ls -t /sys/class/net | grep ^veth`).stdout.trim().split("\n");
      const routes = (await n1.$`ip route show`).stdout;
      const link = links.find((name) => routes.includes(`${pod.addresses.ipv4} dev ${name} `)) ?? "";
      await n1.namespace.ip(`link set ${link} down`);
      await restart();
      expect(atLeast("warn", n1.agentLog())).toEqual([]);
      await n1.namespace.ip(`link set ${link} up`);
      await restart();
      await until("it to be reached", async () => (await lab.unreached([pod, pods[1]])).length === 0);
      await pod.remove();
    }));

  test("lo: what is unreachable stays so", () =>
    undisturbed(async () => {
      await disable(1, "lo");
      await asBefore();
      await disable(0, "lo");
      await asBefore();
      expect(atLeast("warn", n1.agentLog())).toEqual([]);
    }));

  test("new ones: new pods have IPv4, those that run keep both", () =>
    undisturbed(async () => {
      await disable(1, "default");
      await restart();
      const late = await newPods(n1, "ipv4");
      expect(await lab.unreached([...pods, late].slice(0, 2))).toEqual([]);
      expect(await lab.unreached([late, pods[1]], { families: ["ipv4"] })).toEqual([]);
      expect(said()).toHaveLength(1);
      await late.remove();
      await disable(0, "default");
      await restart();
      await asBefore();
    }));

  test("the node's uplink: pods go on by both, in the tunnel's IPv4, whichever the other Node lists first", async () => {
    const listed = (...addresses: (string | undefined)[]) =>
      lab.controlPlane.api.patch(`/api/v1/nodes/${n2.name}/status`, {
        status: { addresses: addresses.map((address) => ({ type: "InternalIP", address })) },
      });
    await listed(n2.addresses.ipv6, n2.addresses.ipv4);
    await until("n1 to send to it by IPv6", async () => (await endpoint(n1))?.startsWith("["));
    await using capture = await lab.capture();
    await disable(1, "eth0");
    await until("n1 to send to it by IPv4", async () => (await endpoint(n1))?.startsWith("172."));
    await until("pods to be reached", async () => (await lab.unreached(pods)).length === 0, {
      why: async () => (await lab.unreached(pods)).join("\n"),
    });
    expect(said()).toEqual([]);
    expect(atLeast("error", n1.agentLog())).toEqual([]);
    await disable(0, "eth0");
    await readdress();
    await until("n1 to send to it by IPv6 again", async () => (await endpoint(n1))?.startsWith("["));
    await n2.publishAddresses();
    await bothSendByIpv4();
    await asBefore();
    expect(await capture.stop()).toEqual([]);
  });
});

test("a tunnel that had moved to IPv6 goes on by IPv4 when that is switched off, whoever has something to send", async () => {
  await using flow = await lab.probe(pods[1], pods[0], { family: "ipv4" });
  const peer = (await n2.namespace.run(["wg", "show", "wigglenet", "peers"])).trim();
  // What it sends has n1 answer there.
  await n2.namespace.run([
    "wg",
    "set",
    "wigglenet",
    "peer",
    peer,
    "endpoint",
    `[${n1.addresses.ipv6}]:24601`,
  ]);
  await until("n1 to send by IPv6", async () => (await endpoint(n1))?.startsWith("["));
  await using capture = await lab.capture();
  await disable(1, "all");
  await until("n1 to send by IPv4", async () => (await endpoint(n1))?.startsWith("172."));
  await flow.flowing(20);
  expect((await flow.stop()).longestGap).toBeLessThan(2_000);
  await disable(0, "all");
  await readdress();
  await asBefore();
  expect(await capture.stop()).toEqual([]);
});

test("the agent may not switch it on for the tunnel's link: pods' IPv6 is dropped, never in the clear", () =>
  undisturbed(async () => {
    const readOnly = "/run/proc-sys-net";
    await n1.$`mkdir ${readOnly} && mount --bind /proc/sys/net ${readOnly} && mount -o remount,ro,bind ${readOnly}`;
    await restart({ PROC_SYS_NET_PATH: readOnly });
    await using sixth = await lab.probe(pods[0], pods[1], { family: "ipv6" });
    await disable(1, "wigglenet");
    expect(await until("n1 to name it", () => said()[0])).toMatchObject({
      off: ["net.ipv6.conf.wigglenet.disable_ipv6"],
      msg: expect.stringContaining("PROC_SYS_NET_PATH"),
    });
    const { sent } = await sixth.count();
    await until("more to be sent", async () => (await sixth.count()).sent > sent + 20);
    await restart();
    await sixth.flowing();
    await asBefore();
  }));

test("a kernel without IPv6, as far as /proc/sys/net shows it: IPv4 alone, said once", async () => {
  const without = "/run/no-ipv6";
  await n1.$`mkdir ${without} && ln -s /proc/sys/net/* ${without} && rm ${without}/ipv6`;
  await restart({ PROC_SYS_NET_PATH: without });
  expect(said()).toEqual([
    expect.objectContaining({ level: "warn", msg: expect.stringContaining("ipv6.disable=1") }),
  ]);
  const late = await newPods(n1, "ipv4");
  expect(await lab.unreached([late, pods[1], n2], { families: ["ipv4"] })).toEqual([]);
  expect(await readyz()).toMatch(/ 200$/);
  expect(atLeast("error", n1.agentLog())).toEqual([]);
  await late.remove();
  await restart();
  await asBefore();
});

// These leave behind what becomes of a node that left.
test(
  "a node that joins while it is off: reached by IPv4",
  () =>
    undisturbed(async () => {
      await disable(1, "all");
      await until("n1 to name it", () => said()[0]);
      const n3 = await lab.addNode();
      await n3.ready();
      const newcomer = await n3.pod("p");
      await lab.shakeHands([newcomer, pods[0], pods[1]]);
      expect(await lab.unreached([newcomer, pods[0], n2], { families: ["ipv4"] })).toEqual([]);
      expect(atLeast("error", n1.agentLog())).toEqual([]);
      await disable(0, "all");
      await readdress();
      await reachedAgain();
      expect(await lab.unreached([pods[0], newcomer], { families: ["ipv6"] })).toEqual([]);
      await lab.removeNode(n3);
    }),
  60_000,
);

test("off before a node's first agent starts", async () => {
  const n4 = await lab.addNode({}, { agent: false });
  await n4.namespace.sysctl({ "net.ipv6.conf.all.disable_ipv6": 1 });
  n4.startAgent();
  await n4.inSync();
  const late = await newPods(n4, "ipv4");
  await lab.shakeHands([late, pods[0], pods[1]]);
  expect(await lab.unreached([late, pods[1], n2], { families: ["ipv4"] })).toEqual([]);
  expect(said(n4)).toEqual([expect.objectContaining(all)]);
  expect(atLeast("error", n4.agentLog())).toEqual([]);
  await n4.namespace.sysctl({ "net.ipv6.conf.all.disable_ipv6": 0 });
  const both = await newPods(n4, "ipv4", "ipv6");
  await until("it to be reached", async () => (await lab.unreached([both, pods[1]])).length === 0);
  expect(said(n4)).toHaveLength(2);
  await lab.removeNode(n4);
}, 60_000);
