/**
 * A node's addresses may vanish from its Node, flap, be odd, or be claimed by somebody else. What flows to them goes on
 * as long as the node has them, and never in the clear.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { annotation } from "../src/plan/overlay/node.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Stream } from "./lab/cluster/place.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const families = ["ipv4", "ipv6"] as const;

let lab: Lab;
let n2: LightNode, n3: LightNode;
let pod: Pod;
let healthy: NodeState[];

beforeAll(async () => {
  const allowed = { nodeIps: ["172.30.0.200/32", "fd30::200/128"] };
  lab = await Lab.start({ nodes: 3, env: { RESYNC_PERIOD: "3600" }, allowed });
  [, n2, n3] = lab.nodes as [LightNode, LightNode, LightNode];
  [pod] = (await Promise.all(lab.nodes.map((node) => node.pod("p")))) as [Pod, Pod, Pod];
  // Who has an address on lo alone does not answer for it on the underlay.
  await n3.namespace.sysctl({ "net.ipv4.conf.all.arp_ignore": 1 });
  await lab.shakeHands();
  healthy = await until("all to know each other", async () => {
    const all = await states();
    return all.every(({ wireguard }) => wireguard.length === 3) && all;
  });
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const states = () => Promise.all(lab.nodes.map(stateOf));
const published = async (node: LightNode) =>
  JSON.parse((await node.object()).metadata.annotations?.[annotation.nodeIps] ?? "[]") as string[];

/** A pod of n1 talks to n2, and n2 to it. */
function flows(): Promise<Stream[]> {
  return Promise.all(
    families.flatMap((family) => [
      lab.probe(pod, n2, { family }),
      lab.probe(pod, n2, { family, protocol: "tcp" }),
      lab.probe(n2, pod, { family }),
    ]),
  );
}

/** What was lost of each, at the end. */
async function lost(streams: Stream[]): Promise<number[]> {
  return (await Promise.all(streams.map((stream) => stream.stop()))).map((count) => count.lost);
}

const reached = () => lab.unreached([pod, n2]);
const own = () => n2.addresses as { ipv4: string; ipv6: string };
/** Has the Node list these InternalIPs. */
const listed = (node: LightNode, addresses: string[]) =>
  lab.controlPlane.api.patch(`/api/v1/nodes/${node.name}/status`, {
    status: { addresses: addresses.map((address) => ({ type: "InternalIP", address })) },
  });
/** n2's addresses on n3. */
const onLo = (verb: "add" | "del") =>
  n3.namespace.ip(`addr ${verb} ${own().ipv4}/32 dev lo`, `addr ${verb} ${own().ipv6}/128 dev lo`);
/** For how long n2's link prefers its addresses to others. */
const preferred = (time: "0" | "forever") =>
  n2.namespace.ip(
    `addr change ${own().ipv4}/24 dev eth0 valid_lft forever preferred_lft ${time}`,
    `addr change ${own().ipv6}/64 dev eth0 valid_lft forever preferred_lft ${time}`,
  );

describe("an address that is on the node's link stays in the tunnel", () => {
  test.each<[way: string, harm: () => Promise<unknown>, heal: () => Promise<unknown>]>([
    [
      "its Node's status.addresses are empty (cloud-provider-openstack#280)",
      () => n2.publishAddresses({}, {}),
      () => n2.publishAddresses(),
    ],
    [
      "the InternalIP of one family is gone (kubernetes#109793)",
      () => n2.publishAddresses({ ipv6: own().ipv6 }),
      () => n2.publishAddresses(),
    ],
    ["that of the other", () => n2.publishAddresses({ ipv4: own().ipv4 }), () => n2.publishAddresses()],
    [
      "they are link-local (kubernetes#44075, #83584)",
      () => n2.publishAddresses({ ipv4: "169.254.20.10", ipv6: "fe80::9" }),
      () => n2.publishAddresses(),
    ],
    [
      "they flap",
      async () => {
        for (let round = 0; round < 10; round += 1) {
          await n2.publishAddresses({}, {});
          await n2.publishAddresses();
        }
      },
      () => Promise.resolve(),
    ],
    [
      "they are empty, and the agent is restarted",
      async () => {
        await n2.publishAddresses({}, {});
        await n2.stopAgent();
        n2.startAgent();
        await n2.inSync();
      },
      () => n2.publishAddresses(),
    ],
    [
      "they are deprecated on the link, as in a network that is renumbered",
      () => preferred("0"),
      () => preferred("forever"),
    ],
    [
      "they are deprecated, not listed for a while, and the agent is restarted",
      async () => {
        await preferred("0");
        await n2.publishAddresses({}, {});
        await n2.stopAgent();
        n2.startAgent();
        await n2.inSync();
      },
      async () => {
        await n2.publishAddresses();
        await preferred("forever");
      },
    ],
    [
      "another Node lists them in its status (a VIP that fails over)",
      () => n3.publishAddresses(own()),
      () => n3.publishAddresses(),
    ],
    [
      "another node has them too, and its agent publishes them (a cloned VM)",
      async () => {
        await onLo("add");
        await listed(n3, [...Object.values(n3.addresses), ...Object.values(own())]);
        await until(
          "n3 to publish them",
          async () => {
            const all = await published(n3);
            return Object.values(own()).every((address) => all.includes(address));
          },
          { why: () => JSON.stringify(n3.agentLog().slice(-5)) },
        );
      },
      async () => {
        await onLo("del");
        await n3.publishAddresses();
      },
    ],
  ])("%s", async (_, harm, heal) => {
    await using capture = await lab.capture();
    const streams = await flows();
    await harm();
    await Promise.all(streams.map((stream) => stream.flowing(50)));
    expect(await reached()).toEqual([]);
    const [first, second] = await states();
    expect([first, second]).toEqual(healthy.slice(0, 2));
    await heal();
    await Promise.all(streams.map((stream) => stream.flowing(50)));
    expect(await lost(streams)).toEqual(streams.map(() => 0));
    expect(await capture.stop()).toEqual([]);
    await until("all to be as before", async () => Bun.deepEquals(await states(), healthy)).catch(
      async (error) => {
        expect(await states()).toEqual(healthy);
        throw error;
      },
    );
  });
});

test("odd addresses are left out by the node itself, each with its reason in the log, and cost it nothing", async () => {
  const odd = {
    "169.254.20.10": expect.stringContaining("link-local"),
    "fe80::1%eth0": expect.stringContaining("zone"),
    "::ffff:172.30.0.12": expect.stringContaining("IPv4-mapped"),
    "172.30.0.12/24": expect.stringContaining("not an address"),
    pending: expect.stringContaining("not an address"),
  };
  await listed(n2, [...Object.keys(odd), own().ipv6]);
  const finding = await until("n2 to name it", () =>
    n2.agentLog().find((line) => line.topic === "addresses"),
  );
  expect(finding).toMatchObject({ level: "warn", leftOut: odd });
  expect(Object.keys((finding.leftOut as object) ?? {}).sort()).toEqual(Object.keys(odd).sort());
  expect(await published(n2)).toEqual(JSON.parse(healthy[1]?.annotations[annotation.nodeIps] ?? ""));
  await n2.publishAddresses();
  await until("n2 to say that it is over", () =>
    n2.agentLog().some((line) => line.topic === "addresses" && line.level === "info"),
  );
});

/** Addresses of both families that come and go. */
interface Pair {
  ipv4: string;
  ipv6: string;
}

const put = (node: LightNode, { ipv4, ipv6 }: Pair, link: string) =>
  node.namespace.ip(`addr add ${ipv4}/32 dev ${link}`, `addr add ${ipv6}/128 dev ${link} nodad`);
const take = (node: LightNode, { ipv4, ipv6 }: Pair, link: string) =>
  node.namespace.ip(`addr del ${ipv4}/32 dev ${link}`, `addr del ${ipv6}/128 dev ${link}`);

/** The node to which n1's tunnel leads for both, if there is one. */
async function holderOf({ ipv4, ipv6 }: Pair): Promise<string | undefined> {
  const [n1] = lab.nodes as [LightNode];
  const routes = (await n1.$`ip route show table 24601; ip -6 route show table 24601`).stdout;
  if (![ipv4, ipv6].every((address) => routes.includes(`${address} dev wigglenet`))) return undefined;
  const peers = (await n1.namespace.run(["wg", "show", "wigglenet", "allowed-ips"])).split("\n");
  const line = peers.find((each) => each.includes(`${ipv4}/32`) && each.includes(`${ipv6}/128`));
  for (const node of [n2, n3]) {
    const key = (await node.object()).metadata.annotations?.[annotation.publicKey] ?? "none";
    if (line?.startsWith(key)) return node.name;
  }
  return undefined;
}

const heldBy = (node: LightNode | undefined, pair: Pair) =>
  until(
    `the tunnel to lead to ${node?.name ?? "nobody"}`,
    async () => (await holderOf(pair)) === node?.name,
    { why: async () => JSON.stringify([await holderOf(pair), lab.nodes[0]?.agentLog().slice(-3)]) },
  );

const counts = (streams: Stream[]) => Promise.all(streams.map((stream) => stream.count()));
const receiving = (streams: Stream[]) => Promise.all(streams.map((stream) => stream.flowing(5, 20_000)));

describe("an address that leaves its link", () => {
  const second: Pair = { ipv4: "172.30.0.77", ipv6: "fd30::77" };
  test.each<[title: string, lists: boolean]>([
    ["which its Node lists all the same", true],
    ["which its Node does not list any more", false],
  ])(
    "%s: its flows are dropped, never in the clear, and go on when it is back",
    async (_, lists) => {
      await put(n2, second, "eth0");
      await listed(n2, [...Object.values(own()), ...Object.values(second)]);
      await heldBy(n2, second);
      const to = { name: "n2's second", addresses: second, place: n2.place };
      const streams = await Promise.all(
        families.flatMap((family) =>
          (["udp", "tcp", "icmp"] as const).map((protocol) => lab.probe(pod, to, { family, protocol })),
        ),
      );
      await using capture = await lab.capture();
      await take(n2, second, "eth0");
      // Now another host on the link has it, and would take what comes for it.
      await put(n3, second, "eth0");
      if (!lists) await n2.publishAddresses();
      await heldBy(undefined, second);
      const before = await counts(streams);
      await until("more to be sent", async () =>
        (await counts(streams)).every(({ sent }, index) => sent > before[index]!.sent + 20),
      );
      // What was under way when they were counted.
      const after = await counts(streams);
      expect(after.filter(({ received }, index) => received > before[index]!.received + 2)).toEqual([]);
      for (const family of families)
        expect(await lab.reach(pod, { ...to, place: n3.place }, { family })).toMatchObject({
          ok: true,
          seen: lab.nodes[0]?.addresses[family],
        });
      await take(n3, second, "eth0");
      await put(n2, second, "eth0");
      await listed(n2, [...Object.values(own()), ...Object.values(second)]);
      await heldBy(n2, second);
      await receiving(streams);
      expect(await capture.stop()).toEqual([]);
      await Promise.all(streams.map((stream) => stream.stop(0)));
      await n2.publishAddresses();
      await take(n2, second, "eth0");
      await heldBy(undefined, second);
    },
    60_000,
  );
});

describe.each(["eth0", "lo"])("a VIP on %s, by NODE_IP_INTERFACES", (link) => {
  const vip: Pair = { ipv4: "172.30.0.200", ipv6: "fd30::200" };
  const to = { name: "VIP", addresses: vip, place: undefined as never };
  const restart = async (env: Record<string, string>) => {
    for (const node of [n2, n3]) {
      await node.stopAgent();
      node.startAgent(env);
      await node.inSync();
    }
  };
  /** Both families reach it through the tunnel. */
  const reachedInTunnel = () =>
    until("pods to reach it in the tunnel", async () => {
      const answers = await Promise.all(
        families.map((family) => lab.reach(pod, to, { family, timeout: 500 })),
      );
      return answers.every((each, index) => each.ok && each.seen === pod.addresses[families[index]!]);
    });

  test("moves from node to node: to the next one as soon as the first gives it up", async () => {
    await restart({ NODE_IP_INTERFACES: link });
    await using capture = await lab.capture();
    await put(n2, vip, link);
    await heldBy(n2, vip);
    await reachedInTunnel();
    const streams = await Promise.all(families.map((family) => lab.probe(pod, to, { family })));
    await take(n2, vip, link);
    await put(n3, vip, link);
    await heldBy(n3, vip);
    await receiving(streams);
    await reachedInTunnel();

    // It fails over while the node that has it cannot say so: that one keeps the claim, and the conflict is named.
    await n3.killAgent();
    await take(n3, vip, link);
    await put(n2, vip, link);
    await until("n2 to publish it", async () => (await published(n2)).includes(vip.ipv6));
    await until("n1 to name the conflict", () =>
      lab.nodes[0]?.agentLog().some((line) => String(line.problems).includes(vip.ipv4)),
    );
    expect(await holderOf(vip)).toBe(n3.name);
    const before = await counts(streams);
    await until("more to be sent", async () =>
      (await counts(streams)).every(({ sent }, index) => sent > before[index]!.sent + 20),
    );
    n3.startAgent({ NODE_IP_INTERFACES: link });
    await heldBy(n2, vip);
    await receiving(streams);
    expect(await capture.stop()).toEqual([]);
    await Promise.all(streams.map((stream) => stream.stop(0)));
    await take(n2, vip, link);
    await restart({});
    await heldBy(undefined, vip);
  }, 60_000);
});
