/** Flows with Services by kube-proxy in IPVS mode, which not every kernel has: in a virtual machine. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { Lab } from "./lab/lab.ts";
import { clearTraffic } from "./lab/probe/clear.ts";
import { broken, type Flow, ServiceFlows } from "./lab/probe/serviceflows.ts";

let lab: Lab;
let nodes: LightNode[];
let pods: Pod[];
let flows: ServiceFlows;

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{}, { env: { FIREWALL_BACKEND: "iptables" } }] });
  nodes = lab.nodes;
  pods = await Promise.all(nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
  const proxies = nodes.map((_, index) => ({ mode: "ipvs" as const, masqueradeAll: index === 1 }));
  flows = await ServiceFlows.start(lab, pods, proxies);
}, 300_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** A few at a time, as many as an emulated processor can serve. */
async function brokenOf(all: Flow[]): Promise<string[]> {
  const lines: string[] = [];
  for (let from = 0; from < all.length; from += 8) lines.push(...(await broken(all.slice(from, from + 8))));
  return lines;
}

test("IPVS: from pods", async () => {
  expect(await brokenOf(flows.within(pods))).toEqual([]);
});

test("IPVS: from nodes", async () => {
  // Of a node's own packets it leads those to a load balancer's or external address with policy Local only to backends
  // of that node.
  const led = flows
    .within(nodes)
    .filter(
      ({ client, target }) =>
        !/^(LoadBalancer|external).* policy Local/.test(target) || target.includes(`backend ${client.name}`),
    );
  expect(await brokenOf(led)).toEqual([]);
});

test("IPVS: from outside", async () => {
  expect(await brokenOf(flows.fromOutside())).toEqual([]);
});

test("IPVS: nothing of all that was in the clear", async () => {
  expect(await clearTraffic(lab.underlay.router)).toEqual([]);
});
