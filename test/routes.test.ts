/** Routes and rules that others put on a node of the overlay: pods' packets arrive, and what catches them is named. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let node: LightNode, other: LightNode;
let pod: Pod, neighbour: Pod, remote: Pod;
/** All ways that pass a table of `node`: between pods of it, to and from another node and its pods. */
let pairs: [Host, Host][];
/** Pod CIDRs of `other`, IPv4 first. */
let cidrs: string[];

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2, env: { RESYNC_PERIOD: "3600" } });
  [node, other] = lab.nodes as [LightNode, LightNode];
  [pod, neighbour, remote] = await Promise.all([node.pod("p"), node.pod("q"), other.pod("p")]);
  await lab.greeted();
  await lab.shakeHands([pod, remote]);
  cidrs = ipv4First(await other.podCIDRs());
  pairs = [
    [pod, remote],
    [remote, pod],
    [pod, neighbour],
    [node, remote],
    [node, pod],
    [remote, node],
    [pod, other],
  ];
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const ipv4First = (values: string[]) =>
  values.toSorted((a, b) => Number(a.includes(":")) - Number(b.includes(":")));
const gateway = { ipv4: "172.30.0.1", ipv6: "fd30::1" };

/** For both families: what stands in braces is replaced by that family's value. */
function inBoth(script: string): string {
  const [v4 = "", v6 = ""] = cidrs;
  const values = [
    { ip: "ip -4", remote: v4, pod: remote.addresses.ipv4!, node: node.addresses.ipv4!, via: gateway.ipv4 },
    { ip: "ip -6", remote: v6, pod: remote.addresses.ipv6!, node: node.addresses.ipv6!, via: gateway.ipv6 },
  ];
  return values
    .map((of) => script.replaceAll(/\{(\w+)\}/g, (_, name: keyof typeof of) => of[name]))
    .join("\n");
}

const rulesOf = async (of: LightNode) => (await stateOf(of)).rules;

test("the order of rules: marked packets, remote pods, own pods, then what others have", async () => {
  const [own4 = "", own6 = ""] = ipv4First(await node.podCIDRs());
  const of = (family: string, own: string) => [
    `${family} 0:\tfrom all lookup local`,
    `${family} 2459:\tfrom all fwmark 0x1000000/0x1000000 lookup 24601 proto 246`,
    `${family} 2460:\tfrom all lookup 24600 proto 246`,
    `${family} 2461:\tfrom all to ${own} lookup main proto 246`,
    `${family} 32766:\tfrom all lookup main`,
  ];
  expect(await rulesOf(node)).toEqual([
    ...of("-4", own4),
    "-4 32767:\tfrom all lookup default",
    ...of("-6", own6),
  ]);
});

describe("packets arrive in spite of", () => {
  test.each<[title: string, harm: string, undo: string]>([
    [
      "a route for one pod of another node",
      "{ip} route add {pod} via {via} dev eth0",
      "{ip} route delete {pod} via {via} dev eth0",
    ],
    [
      "a route of better metric for a remote pod CIDR (cilium#16539)",
      "{ip} route add {remote} via {via} dev eth0 metric 20",
      "{ip} route delete {remote} via {via} dev eth0 metric 20",
    ],
    ["a blackhole for it", "{ip} route add blackhole {pod}", "{ip} route delete blackhole {pod}"],
    [
      "nm-cloud-setup's rule and table (calico#4662, rke2#1053)",
      `{ip} route add default via {via} dev eth0 table 30400
       {ip} rule add from {node} lookup 30400 priority 30400
       {ip} rule add lookup 30400 priority 30401`,
      `{ip} rule delete priority 30400; {ip} rule delete priority 30401; {ip} route flush table 30400`,
    ],
    [
      "a rule for all that is right after ours",
      "{ip} route add default via {via} dev eth0 table 77; {ip} rule add lookup 77 priority 2462",
      "{ip} rule delete priority 2462; {ip} route flush table 77",
    ],
    [
      "a strict rp_filter everywhere",
      'for file in /proc/sys/net/ipv4/conf/*/rp_filter; do case $file in */wigglenet/*) ;; *) echo 1 > "$file";; esac; done',
      "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
    ],
  ])("%s", async (_, harm, undo) => {
    await node.$`/bin/sh -ec ${inBoth(harm)}`;
    expect(await lab.unreached(pairs)).toEqual([]);
    await node.$`/bin/sh -ec ${inBoth(undo)}`;
  });
});

/** Deletes one of our rules while others' are there, and waits until the rules are as they were. */
describe("the order holds", () => {
  test.each<[title: string, foreign: string]>([
    ["alone", ""],
    ["with a foreign rule at each of the priorities", "2459 2460 2461"],
    ["with foreign rules before and after", "2458 2462"],
  ])("after each rule is deleted: %s", async (_, priorities) => {
    const foreign = priorities.split(" ").filter(Boolean);
    for (const priority of foreign)
      await node.$`/bin/sh -ec ${inBoth(`{ip} rule add from {node} lookup 77 priority ${priority}`)}`;
    const ours = async () => (await rulesOf(node)).filter((line) => line.endsWith("proto 246"));
    const all = async () => (await rulesOf(node)).toSorted();
    const [before, everything] = [await ours(), await all()];
    for (const priority of [2459, 2460, 2461]) {
      await node.$`/bin/sh -ec ${inBoth(`{ip} rule delete priority ${priority} protocol 246`)}`;
      await until(`rule ${priority} to be back`, async () => (await ours()).length === before.length, {
        why: async () => (await rulesOf(node)).join("\n"),
      });
      expect(await ours()).toEqual(before);
      expect(await all()).toEqual(everything);
    }
    for (const priority of foreign)
      await node.$`/bin/sh -ec ${inBoth(`{ip} rule delete from {node} priority ${priority}`)}`;
    expect(await lab.unreached(pairs)).toEqual([]);
  });
});

test("routes of others in our tables are named, and when they are gone", async () => {
  const from = node.agentLog().length;
  const said = () =>
    node
      .agentLog()
      .slice(from)
      .filter((line) => line.topic === "foreign routes");
  await node.$`/bin/sh -ec ${inBoth(`{ip} route add unreachable {remote} metric 5000 table 24600
    {ip} route add unreachable {node} metric 5000 table 24601`)}`;
  await until("all four to be named", () => (said().at(-1)?.routes as string[] | undefined)?.length === 4, {
    why: () => JSON.stringify(said()),
  });
  expect(said().at(-1)?.level).toBe("warn");
  await node.$`/bin/sh -ec ${inBoth(`{ip} route delete {remote} metric 5000 table 24600
    {ip} route delete {node} metric 5000 table 24601`)}`;
  await until("that to be over", () => said().at(-1)?.msg === "a finding is over");
});

test("a rule ahead of ours that catches pods' packets is named, and when it is gone; others are not", async () => {
  const from = node.agentLog().length;
  const said = () =>
    node
      .agentLog()
      .slice(from)
      .filter((line) => line.topic === "foreign rules");
  // Of packets with a mark, of another's network, of this node's own programs.
  await node.$`/bin/sh -ec ${inBoth(`{ip} rule add fwmark 0x7/0xff lookup 77 priority 2000
    {ip} rule add uidrange 0-5 lookup 77 priority 2002`)}
    ip rule add from 198.51.100.0/24 lookup 77 priority 2001`;
  await node.$`/bin/sh -ec ${inBoth("{ip} rule add to {remote} lookup 77 priority 2100")}`;
  const rules = cidrs.map((cidr) => `2100: from all to ${cidr} lookup 77`);
  await until("both rules to be named", () => Bun.deepEquals(said().at(-1)?.rules, rules), {
    why: () => JSON.stringify(said()),
  });
  // First that of the one family, perhaps, and none but those.
  expect(
    said()
      .flatMap((line) => line.rules)
      .filter((rule) => !rules.includes(String(rule))),
  ).toEqual([]);
  expect(said().at(-1)?.level).toBe("warn");
  await node.$`/bin/sh -ec ${inBoth("for p in 2000 2002 2100; do {ip} rule delete priority $p; done")}
    ip rule delete priority 2001`;
  await until("that to be over", () => said().at(-1)?.msg === "a finding is over");
});

test("what another plugin left in the addresses of this node's pods is named, and when it is gone; its other links are not", async () => {
  const [own4 = "", own6 = ""] = ipv4First(await node.podCIDRs());
  const at = (prefix: string, host: string) =>
    prefix.replace(/(::|\.0)\/\d+$/, prefix.includes(":") ? `::${host}` : `.${host}`);
  const restarted = async () => {
    await node.stopAgent();
    node.startAgent();
    await node.inSync();
    return node.agentLog().filter((line) => line.topic === "foreign links");
  };
  // A bridge of Docker's, an address alone as flannel.1 has it, pods of another network.
  await node.namespace.ip(
    "link add docker0 type bridge",
    "link set docker0 up",
    "address add 172.17.0.1/16 dev docker0",
    "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
    `address add ${at(own4, "64")}/32 dev flannel.1`,
    "link set flannel.1 up",
    "route add 172.18.0.5/32 dev docker0",
  );
  expect(await restarted()).toEqual([]);
  await node.namespace.ip(
    "link add cni0 type bridge",
    `address add ${at(own4, "77")}/24 dev cni0`,
    `address add ${at(own6, "77")}/64 dev cni0 nodad`,
    "link set cni0 up",
    "link add cali123 type bridge",
    "link set cali123 up",
    `route add ${at(own4, "99")}/32 dev cali123`,
    `route add ${at(own6, "99")}/128 dev cali123`,
  );
  const found = [
    `cni0 has ${at(own4, "77")}/24`,
    `cni0 has ${at(own6, "77")}/64`,
    `${at(own4, "99")} is behind cali123`,
    `${at(own6, "99")} is behind cali123`,
  ];
  expect(await restarted()).toEqual([expect.objectContaining({ level: "warn", found })]);
  expect(await lab.unreached(pairs)).toEqual([]);
  await node.namespace.ip(
    ...["cni0", "cali123", "flannel.1", "docker0"].map((name) => `link delete ${name}`),
  );
  expect(await restarted()).toEqual([]);
});
