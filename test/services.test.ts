/** A flow with a Service keeps its way: of every sort, by every kube-proxy, from everywhere, and none in the clear. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { clearTraffic } from "./lab/clear.ts";
import { Lab } from "./lab/lab.ts";
import type { LightNode } from "./lab/lightnode.ts";
import type { Host } from "./lab/namespace.ts";
import type { Pod } from "./lab/pod.ts";
import { until } from "./lab/process.ts";
import { startKubeProxy } from "./lab/service.ts";
import {
  broken,
  createServices,
  type FlowService,
  flowsFromOutside,
  flowsWithin,
  policies,
} from "./lab/serviceflows.ts";
import type { KubeProxyOptions } from "./lab/wholenodeconfig.ts";

let lab: Lab;
let nodes: LightNode[];
let services: FlowService[];
/** Of each node the backend of its Services, and a pod beside it. */
let backends: Pod[], clients: Pod[];

/** By node, the agent's backend and what kube-proxy is told. */
const kinds: [firewall: string, proxy: KubeProxyOptions][] = [
  ["nftables", { mode: "nftables", podLinks: "veth" }],
  ["iptables", { mode: "iptables", masqueradeAll: true }],
  ["legacy", { mode: "nftables", masqueradeAll: true }],
  ["nftables", { mode: "iptables", podLinks: "veth" }],
];

beforeAll(async () => {
  lab = await Lab.start({
    nodes: kinds.map(([firewall]) => ({
      env: { FIREWALL_BACKEND: firewall === "nftables" ? firewall : "iptables" },
    })),
    env: { FILTER_IPV4: "1", FILTER_IPV6: "1" },
    agents: false,
  });
  nodes = lab.nodes;
  // How the agent tells which iptables a node uses.
  for (const [index, [firewall]] of kinds.entries())
    if (firewall === "legacy")
      await nodes[index]!.namespace.run(["iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
  await lab.startAgents();
  backends = await Promise.all(nodes.map((node) => node.pod("b")));
  clients = await Promise.all(nodes.map((node) => node.pod("c")));
  services = await createServices(lab.controlPlane, lab.underlay, nodes, [
    ...nodes.map((node, index) => ({ backend: backends[index]!, node })),
    ...nodes.map((node) => ({ backend: node, node })),
  ]);
  await lab.greeted();
  await lab.shakeHands();
  for (const [index, [, options]] of kinds.entries())
    await startKubeProxy(lab.controlPlane, nodes[index]!, options);
  for (const node of nodes)
    await until(
      `kube-proxy of ${node.name} to know all Services`,
      async () => {
        const asked = services.map(({ clusterIp }) =>
          node.place.reach({ protocol: "udp", address: clusterIp.ipv6!, timeout: 500 }),
        );
        return (await Promise.all(asked)).every(({ ok }) => ok);
      },
      { timeout: 30_000, every: 500 },
    );
}, 90_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** The Services of a policy whose backends are pods, or nodes. */
const of = (policy: string, backend: string) =>
  services.filter(
    (service) =>
      service.policy === policy && nodes.includes(service.backend as LightNode) === (backend === "node"),
  );

describe.each([...policies])("policy %s", (policy) => {
  test.each([
    ["pod", "pod"],
    ["pod", "node"],
    ["node", "pod"],
    ["node", "node"],
  ])("from each %s to a %s", async (client, backend) => {
    const from: Host[] = client === "pod" ? clients : nodes;
    const flows = from.flatMap((host, index) =>
      of(policy, backend).flatMap((service) => flowsWithin(nodes, nodes[index]!, host, service)),
    );
    expect(await broken(nodes, flows)).toEqual([]);
  });

  test.each(["pod", "node"])("from outside to a %s", async (backend) => {
    const flows = of(policy, backend).flatMap((service) => flowsFromOutside(nodes, lab.outside, service));
    expect(await broken(nodes, flows)).toEqual([]);
  });

  test("from a pod to itself", async () => {
    const flows = of(policy, "pod").flatMap((service) =>
      flowsWithin(nodes, service.node, service.backend, service),
    );
    expect(await broken(nodes, flows)).toEqual([]);
  });
});

test("nothing of all that was in the clear", async () => {
  expect(await clearTraffic(lab.underlay.router)).toEqual([]);
});
