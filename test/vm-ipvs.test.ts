/** Flows with Services by kube-proxy in IPVS mode, which not every kernel has: in a virtual machine. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { startKubeProxy } from "./lab/cluster/service.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { clearTraffic } from "./lab/probe/clear.ts";
import {
  broken,
  createServices,
  type Flow,
  type FlowService,
  flowsFromOutside,
  flowsWithin,
  served,
} from "./lab/probe/serviceflows.ts";

let lab: Lab;
let nodes: LightNode[];
let pods: Pod[];
let services: FlowService[];

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{}, { env: { FIREWALL_BACKEND: "iptables" } }] });
  nodes = lab.nodes;
  pods = await Promise.all(nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
  services = await createServices(lab.controlPlane, lab.underlay, nodes, [
    ...nodes.map((node, index) => ({ backend: pods[index]!, node })),
    ...nodes.map((node) => ({ backend: node, node })),
  ]);
  for (const [index, node] of nodes.entries())
    await startKubeProxy(lab.controlPlane, node, { mode: "ipvs", masqueradeAll: index === 1 });
  await served(nodes, services);
}, 300_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const within = (hosts: Host[]) =>
  hosts.flatMap((client, index) =>
    services.flatMap((service) => flowsWithin(nodes, nodes[index]!, client, service)),
  );

/** A few at a time, as many as an emulated processor can serve. */
async function brokenOf(flows: Flow[]): Promise<string[]> {
  const lines: string[] = [];
  for (let from = 0; from < flows.length; from += 8)
    lines.push(...(await broken(flows.slice(from, from + 8))));
  return lines;
}

test("IPVS: from pods", async () => {
  expect(await brokenOf(within(pods))).toEqual([]);
});

test("IPVS: from nodes", async () => {
  // Of a node's own packets it leads those to a load balancer's or external address with policy Local only to backends
  // of that node.
  const led = within(nodes).filter(
    ({ client, target }) =>
      !/^(LoadBalancer|external).* policy Local/.test(target) || target.includes(`backend ${client.name}`),
  );
  expect(await brokenOf(led)).toEqual([]);
});

test("IPVS: from outside", async () => {
  const flows = services.flatMap((service) => flowsFromOutside(nodes, lab.outside, service));
  expect(await brokenOf(flows)).toEqual([]);
});

test("IPVS: nothing of all that was in the clear", async () => {
  expect(await clearTraffic(lab.underlay.router)).toEqual([]);
});
