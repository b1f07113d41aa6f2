/** Where pod CIDRs may come from, and pod CIDRs that lie around the node's own address. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { contains } from "../src/net/address.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const file = "/etc/wigglenet/pod-cidrs";
const gateway = "2001:db8:2::3";
const byExpression = (expression: string, env: Record<string, string> = {}) => ({
  POD_CIDR_SOURCE_IPV6: "expression",
  POD_CIDR_EXPRESSION: expression,
  ...env,
});
const routed = `interfaces["eth0"].filter(p, p.ip().family() == 6 && p.ip().isGlobalUnicast())[0]`;

let lab: Lab;
type Six = [LightNode, LightNode, LightNode, LightNode, LightNode, LightNode];
let whole: LightNode,
  small: LightNode,
  first: LightNode,
  second: LightNode,
  zone: LightNode,
  byFile: LightNode;
let pods: Pod[];

/**
 * What hosting providers do: a /64 routed to the node's link-local address, of which the node has one address on
 * its link with the whole /64 as prefix, and fe80::1 as its router.
 */
async function routePrefix(node: LightNode, index: number, host: string): Promise<void> {
  await node.readdress({ ipv4: `172.30.0.${100 + index}`, ipv6: `2001:db8:${index}::${host}` });
  const local = await until(
    "a link-local address",
    async () => /inet6 (fe80:\S+)\//.exec((await node.$`ip address show dev eth0`).stdout)?.[1],
  );
  await node.namespace.ip("route replace default via fe80::1 dev eth0");
  await lab.underlay.router.ip(`route add 2001:db8:${index}::/64 via ${local} dev br0`);
}

beforeAll(async () => {
  lab = await Lab.start({
    agents: false,
    allowed: { podCidrs: ["10.60.0.0/16", "10.61.0.0/16", "10.62.0.0/24", "10.64.0.0/10", "2001:db8::/32"] },
    // The tunnel's own packets go to addresses inside the pod CIDRs; pods have public addresses.
    env: { WG_IP_FAMILY: "ipv6", MASQUERADE_IPV6: "0" },
    nodes: [
      { name: "whole", env: byExpression(routed) },
      { name: "small", env: byExpression(`${routed}.subnet(125, 0)`) },
      { name: "first", env: byExpression(`${routed}.subnet(80, 0)`) },
      {
        name: "second",
        labels: { index: "7" },
        env: byExpression(
          `[cidr("10.60.0.0/16").subnet(24, int(node.labels["index"])), ${routed}.subnet(80, 1)]`,
          {
            POD_CIDR_SOURCE_IPV4: "expression",
          },
        ),
      },
      {
        name: "zone",
        labels: { index: "3", "topology.kubernetes.io/zone": "b" },
        env: {
          POD_CIDR_SOURCE_IPV6: "none",
          POD_CIDR_SOURCE_IPV4: "expression",
          POD_CIDR_EXPRESSION: `cidr("10.64.0.0/10").subnet(16, {"a": 0, "b": 1}[node.labels["topology.kubernetes.io/zone"]])
            .subnet(24, int(node.labels["index"]))`,
        },
      },
      {
        name: "file",
        env: {
          POD_CIDR_SOURCE_IPV4: "file",
          POD_CIDR_SOURCE_IPV6: "file",
          POD_CIDR_SOURCE_PATH: file,
          RESYNC_PERIOD: "1",
        },
      },
    ],
  });
  [whole, small, first, second, zone, byFile] = lab.nodes as Six;
  await lab.underlay.router.ip("addr add fe80::1/64 dev br0 nodad", `addr add ${gateway}/128 dev br0 nodad`);
  await Promise.all([
    routePrefix(whole, 1, "1"),
    routePrefix(small, 2, "5"),
    routePrefix(first, 3, "1"),
    routePrefix(second, 4, "1"),
  ]);
  // Others have their router inside the prefix.
  await small.namespace.ip(`route replace default via ${gateway} dev eth0`);
  // No newline at the end.
  await byFile.write(
    file,
    "# pods\n10.61.0.0/29 # the first\n\n10.61.0.8/29\n2001:db8:61::/126\n  2001:db8:61::8/125",
  );
  await lab.startAgents();
  pods = await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const annotated = async (node: LightNode) =>
  JSON.parse((await node.object()).metadata.annotations?.["wigglenet/pod-cidrs"] ?? "[]") as string[];

test("each node has the pod CIDRs of its source", async () => {
  const specOf = async (node: LightNode) => (await node.podCIDRs()).find((cidr) => !cidr.includes(":"))!;
  expect(await Promise.all(lab.nodes.map(annotated))).toEqual([
    [await specOf(whole), "2001:db8:1::/64"],
    [await specOf(small), "2001:db8:2::/125"],
    [await specOf(first), "2001:db8:3::/80"],
    ["10.60.7.0/24", "2001:db8:4:0:1::/80"],
    ["10.65.3.0/24"],
    ["10.61.0.0/29", "10.61.0.8/29", "2001:db8:61::/126", "2001:db8:61::8/125"],
  ]);
  expect(pods.map((pod) => Object.keys(pod.addresses).join())).toEqual([
    ...Array(4).fill("ipv4,ipv6"),
    "ipv4",
    "ipv4,ipv6",
  ]);
});

test("all reach all, pods in the tunnel, nodes outside of it", async () => {
  const addresses = pods.flatMap((pod) => Object.values(pod.addresses));
  await using clear = await lab.capture(`host ${addresses.join(" or ")}`);
  const all: Host[] = [...lab.nodes, ...pods];
  const pairs = all.flatMap((from) => all.filter((to) => to !== from).map((to): [Host, Host] => [from, to]));
  expect(await lab.unreached(pairs)).toEqual([]);
  expect(await lab.unreached(pairs, { size: 1400, protocols: ["icmp"] })).toEqual([]);
  expect(await clear.stop()).toEqual([]);

  await using direct = await lab.capture(`tcp port 7 and host ${whole.addresses.ipv6}`);
  expect(
    await lab.unreached([whole, small, first, second], { families: ["ipv6"], protocols: ["tcp"] }),
  ).toEqual([]);
  expect((await direct.stop()).length).toBeGreaterThan(0);
});

test("public addresses: outside reaches pods, and sees them as who they are", async () => {
  const open = pods.slice(0, 4);
  expect(
    await lab.unreached(
      open.map((pod): [Host, Host] => [lab.outside, pod]),
      { families: ["ipv6"] },
    ),
  ).toEqual([]);
  for (const pod of open)
    expect(await lab.reach(pod, lab.outside, { family: "ipv6" })).toMatchObject({
      seen: pod.addresses.ipv6!,
    });
});

test("a dead address of an on-link pod CIDR: nobody is sent the packet", async () => {
  const nobody: Host = { name: "nobody", addresses: { ipv6: "2001:db8:1::dead" }, place: whole.place };
  await using capture = await lab.capture(`host ${nobody.addresses.ipv6} and not icmp6`);
  for (const from of [pods[0]!, pods[1]!, small])
    expect(await lab.reach(from, nobody, { timeout: 500 })).toMatchObject({ ok: false });
  expect(await capture.stop()).toEqual([]);
});

test("a node that was deleted from the cluster, but runs, is still reached at its address in its pod CIDR", async () => {
  const { stdout } = await whole.$`ip -6 route show table 24600 dev wigglenet`;
  expect(stdout).toContain("2001:db8:3::/80 ");
  await lab.controlPlane.api.remove(`/api/v1/nodes/${first.name}`);
  await until(
    "whole to have no route to first's pods",
    async () =>
      !(await whole.$`ip -6 route show table 24600 dev wigglenet`).stdout.includes("2001:db8:3::/80 "),
  );
  // How else would its kubelet register it again, with an API server on one of these nodes?
  expect(await lab.unreached([whole, first], { families: ["ipv6"], protocols: ["tcp"] })).toEqual([]);
  // Also once all is looked at again.
  await whole.stopAgent();
  whole.startAgent();
  await whole.inSync();
  expect(await lab.unreached([whole, first], { families: ["ipv6"], protocols: ["tcp"] })).toEqual([]);
  expect(await lab.reach(whole, pods[2]!, { family: "ipv6", protocol: "tcp" })).toMatchObject({
    ok: false,
    reason: "No route to host",
  });
});

test("no pod ever gets the address of the node or of its router", async () => {
  const more: Pod[] = [];
  for (let index = 0; index < 3; index++) more.push(await small.pod(`more${index}`));
  const given = [pods[1]!, ...more].map((pod) => pod.addresses.ipv6!).sort();
  expect(given).toEqual(["2", "4", "6", "7"].map((host) => `2001:db8:2::${host}`));
  await expect(small.pod("none")).rejects.toThrow(/no IP addresses available in range set/);
  expect(await lab.unreached([...more, whole, pods[0]!], { protocols: ["icmp"] })).toEqual([]);
  expect((await small.$`ip -j address show dev wigglenet`).stdout).toContain('"2001:db8:2::1"');
});

describe("by file", () => {
  const failure = (resource: string) =>
    byFile.agentLog().findLast((line) => line.resource === resource && line.error !== undefined)?.error;

  test("pods get addresses from every pod CIDR once the one before is full", async () => {
    const more = [pods[5]!];
    for (let index = 0; index < 6; index++) more.push(await byFile.pod(`more${index}`));
    const inside = (prefix: string) =>
      more.filter((pod) => Object.values(pod.addresses).some((address) => contains(prefix, address))).length;
    expect(["10.61.0.0/29", "10.61.0.8/29", "2001:db8:61::/126", "2001:db8:61::8/125"].map(inside)).toEqual([
      5, 2, 2, 5,
    ]);
    await using clear = await lab.capture("net 10.61.0.0/28 or net 2001:db8:61::/124");
    expect(await lab.unreached([...more, whole, zone, pods[0]!, pods[4]!])).toEqual([]);
    expect(await clear.stop()).toEqual([]);
  });

  test("a change is followed at the resync; a mistake leaves what was there, and says where it is", async () => {
    const right = byFile.read(file)!;
    const cidrs = await annotated(byFile);
    await byFile.write(file, `${right}\n10.62.0.0/24\n`);
    await until("the third pod CIDR to be announced", async () =>
      (await annotated(byFile)).includes("10.62.0.0/24"),
    );
    await until("the CNI file to have it", () => byFile.read(cniFile)!.includes("10.62.0.0/24"));
    await until("whole to have a route", async () =>
      (await whole.$`ip route show table 24600`).stdout.includes("10.62.0.0/24 dev wigglenet"),
    );

    await byFile.write(file, `${right}\n10.62.0.0/24\n10.62.7.0/24\n`);
    await until("what the cluster does not allow to be told", () =>
      String(failure("annotations")).includes("10.62.7.0/24 is neither within the Node's spec.podCIDRs"),
    );
    await byFile.write(file, `${right}\n10.62.0.0\n`);
    await until("the bad line to be told", () =>
      String(failure("pod CIDRs")).includes(`${file}, line 7: "10.62.0.0" is not a prefix`),
    );
    await byFile.$`rm ${file}`;
    await until("the missing file to be told", () =>
      String(failure("pod CIDRs")).includes(`${file} is not there`),
    );
    await byFile.$`mkdir ${file}`;
    await until("the folder in its place to be told", () =>
      String(failure("pod CIDRs")).includes(`${file} cannot be read: EISDIR`),
    );
    expect(await annotated(byFile)).toContain("10.62.0.0/24");
    expect(await lab.unreached([pods[0]!, pods[5]!])).toEqual([]);

    await byFile.$`rmdir ${file}`;
    await byFile.write(file, right);
    await until(
      "the third pod CIDR to be given up",
      async () => !(await annotated(byFile)).includes("10.62.0.0/24"),
    );
    expect(await annotated(byFile)).toEqual(cidrs);
    expect(
      byFile
        .agentLog()
        .filter((line) => line.resource === "pod CIDRs")
        .map((line) => line.msg),
    ).toEqual([...Array(3).fill("failed; it is tried again"), "works again"]);
    expect(await lab.unreached([pods[0]!, pods[5]!])).toEqual([]);
  });
});

test.each([
  [
    "a file that is not there",
    { POD_CIDR_SOURCE_PATH: "/etc/nothing" },
    /pod CIDR file \/etc\/nothing is not there/,
  ],
  [
    "an interface that is not there",
    byExpression(`interfaces["eth9"][0]`),
    /interfaces has no key "eth9"; the interfaces were eth0/,
  ],
  [
    "a pod CIDR without room",
    byExpression(`cidr("fd30::16/127")`),
    /pod CIDR fd30::16\/127 has no room for a gateway and a pod/,
  ],
])("the start stops with a message: %s", async (_, env, message) => {
  await byFile.stopAgent();
  byFile.startAgent(env);
  expect(await byFile.agentExit()).toBe(1);
  expect(byFile.agentLog().at(-1)?.text).toMatch(message);
  // What an earlier start set up stands.
  expect(await lab.unreached([pods[0]!, pods[5]!])).toEqual([]);
});
