/** Beside a node of the Go implementation, on an underlay that drops whatever has a pod's address on it. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { podRanges } from "./lab/cluster/controlplane.ts";
import { GoAgent } from "./lab/cluster/goagent.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { broken, ServiceFlows } from "./lab/probe/serviceflows.ts";

let lab: Lab;
let nodes: LightNode[];
let pods: Pod[];
let flows: ServiceFlows;

beforeAll(async () => {
  lab = await Lab.start({
    nodes: [{}, { env: { FIREWALL_BACKEND: "iptables" } }, {}],
    env: { FILTER_IPV4: "1", FILTER_IPV6: "1" },
    agents: false,
  });
  nodes = lab.nodes;
  const drops = Object.values(podRanges).flatMap((range) => {
    const ip = range.includes(":") ? "ip6" : "ip";
    return ["saddr", "daddr"].map((side) => `add rule bridge nopods c ${ip} ${side} ${range} drop`);
  });
  await lab.underlay.router.run(["nft", "-f", "-"], {
    stdin: [
      "add table bridge nopods",
      // After the lab has counted them.
      "add chain bridge nopods c { type filter hook prerouting priority 10; }",
      ...drops,
      "",
    ].join("\n"),
  });
  const [first, second, third] = nodes as [LightNode, LightNode, LightNode];
  const go = new GoAgent(third, () => lab.controlPlane.api.nodes());
  await go.sync();
  for (const node of [first, second]) node.startAgent();
  await Promise.all([first.ready(), second.ready()]);
  await go.sync();
  pods = await Promise.all(nodes.map((node) => node.pod("p")));
  await lab.shakeHands();
  flows = await ServiceFlows.start(lab, pods, [{ masqueradeAll: true }, { mode: "iptables" }, {}]);
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

test("all pods, all nodes and what is outside reach each other, by every protocol", async () => {
  expect(await lab.unreached([...pods, ...nodes])).toEqual([]);
  expect(await lab.unreached(pods.map((pod): [Host, Host] => [pod, lab.outside]))).toEqual([]);
});

test("and every Service, whose backend is a pod or a node of either kind", async () => {
  const within = [pods, nodes].flatMap((clients) => flows.within(clients));
  expect(await broken([...within, ...flows.fromOutside()])).toEqual([]);
});
