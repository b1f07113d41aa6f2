/** Flows with Services and hostPorts from pods of a node's second pod CIDR, with masquerade off, as with public addresses. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { contains } from "../src/net/address.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { clearTraffic } from "./lab/probe/clear.ts";
import { broken, type Flow, ServiceFlows } from "./lab/probe/serviceflows.ts";

const file = "/etc/wigglenet/pod-cidrs";
/** Of each node: the first of a family has room for one pod by IPv4, for two by IPv6. */
const prefixes = [1, 2, 3].map((n) => [
  `10.244.${n}.0/30`,
  `10.244.${n}0.0/24`,
  `fd00:10:244:${n}::/126`,
  `fd00:10:244:${n}0::/64`,
]);
const firewalls = ["nftables", "iptables", "legacy"];
const hostPort = 8080;

let lab: Lab;
let nodes: LightNode[];
let clients: Pod[];
let flows: ServiceFlows;

beforeAll(async () => {
  lab = await Lab.start({
    nodes: firewalls.map((backend) => ({
      env: { FIREWALL_BACKEND: backend === "nftables" ? backend : "iptables" },
    })),
    allowed: { podCidrs: prefixes.flat() },
    env: {
      POD_CIDR_SOURCE_IPV4: "file",
      POD_CIDR_SOURCE_IPV6: "file",
      POD_CIDR_SOURCE_PATH: file,
      MASQUERADE_IPV4: "0",
      MASQUERADE_IPV6: "0",
      FILTER_IPV6: "1",
    },
    agents: false,
  });
  nodes = lab.nodes;
  await nodes[2]!.namespace.run(["iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
  await Promise.all(nodes.map((node, index) => node.write(file, prefixes[index]!.join("\n"))));
  await lab.startAgents();
  const backends = await Promise.all(nodes.map((node) => node.pod("b")));
  await Promise.all(nodes.map((node) => node.pod("filler")));
  const ports = (["tcp", "udp"] as const).map((protocol) => ({ hostPort, containerPort: 7, protocol }));
  clients = await Promise.all(nodes.map((node) => node.pod("c", { ports })));
  // Outside knows the way to the pods, as to public addresses.
  for (const [index, node] of nodes.entries())
    await lab.underlay.router.ip(
      ...prefixes[index]!.map(
        (prefix) =>
          `route add ${prefix} via ${prefix.includes(":") ? node.addresses.ipv6 : node.addresses.ipv4}`,
      ),
    );
  await lab.greeted();
  await lab.shakeHands();
  flows = await ServiceFlows.start(
    lab,
    backends,
    firewalls.map((_, index) => ({
      mode: index === 1 ? "iptables" : "nftables",
      podLinks: "veth",
      masqueradeAll: index === 2,
    })),
  );
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

test("pods of the second pod CIDR", () => {
  for (const [index, { addresses }] of clients.entries()) {
    expect(contains(prefixes[index]![1]!, addresses.ipv4!)).toBe(true);
    expect(contains(prefixes[index]![3]!, addresses.ipv6!)).toBe(true);
  }
});

test("Services, from pods, nodes and outside", async () => {
  const within = [clients, nodes].flatMap((hosts) => flows.within(hosts));
  expect(await broken([...within, ...flows.fromOutside()])).toEqual([]);
});

test("hostPorts, pods, nodes and what is outside", async () => {
  const flow = (client: Host, host: Host, port: number): Flow => ({
    client,
    target: `port ${port} of ${host.name}`,
    addresses: host.addresses,
    port,
  });
  const from = [...clients, ...nodes, lab.outside];
  const all = from.flatMap((client) => nodes.map((node) => flow(client, node, hostPort)));
  for (const client of clients)
    for (const host of [...clients, ...nodes, lab.outside])
      if (host !== client) all.push(flow(client, host, 7));
  expect(await broken(all)).toEqual([]);
});

test("nothing of all that was in the clear", async () => {
  expect(await clearTraffic(lab.underlay.router)).toEqual([]);
});
