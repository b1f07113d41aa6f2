/** A flow with a Service keeps its way: of every sort, by every kube-proxy, from everywhere, and none in the clear. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { families } from "../src/net/address.ts";
import { podRanges } from "./lab/cluster/controlplane.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { KubeProxyOptions } from "./lab/cluster/wholenodeconfig.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { clearTraffic } from "./lab/probe/clear.ts";
import { broken, policies, ServiceFlows } from "./lab/probe/serviceflows.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let nodes: LightNode[];
let flows: ServiceFlows;
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
    env: { FILTER_IPV4: "1", FILTER_IPV6: "1", RESYNC_PERIOD: "5" },
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
  await lab.greeted();
  await lab.shakeHands();
  flows = await ServiceFlows.start(
    lab,
    backends,
    kinds.map(([, options]) => options),
  );
}, 90_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** The Services of a policy whose backends are pods, or nodes. */
const of = (policy: string, backend: string) =>
  flows.services.filter(
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
    expect(await broken(flows.within(from, of(policy, backend)))).toEqual([]);
  });

  test.each(["pod", "node"])("from outside to a %s", async (backend) => {
    expect(await broken(flows.fromOutside(of(policy, backend)))).toEqual([]);
  });

  test("from a pod to itself", async () => {
    expect(await broken(flows.hairpins(of(policy, "pod")))).toEqual([]);
  });
});

test("two flows that would be one, of whose second the kernel changes the port alone, go by the tunnel", async () => {
  const [first] = clients;
  const ofNode = flows.services.filter((service) => service.backend === nodes[1]);
  await using capture = await lab.capture();
  const talks = families.flatMap((family) =>
    ofNode.map(({ clusterIp }) =>
      first!.place.talk({
        protocol: "udp",
        address: clusterIp[family]!,
        messages: 5,
        interval: 20,
        sourcePort: family === "ipv4" ? 4004 : 4006,
      }),
    ),
  );
  const answered = { ok: true, seen: expect.any(String) };
  expect(await Promise.all(talks)).toEqual(talks.map(() => expect.objectContaining(answered)));
  expect(await capture.stop()).toEqual([]);
});

test("another node's pod, by a NodePort of policy Local whose backend is on a third node", async () => {
  // kube-proxy tells pods by the prefix of all: for those it leads to any backend, and does not translate the source.
  const [, byIptables, byNftables] = nodes;
  const asked = [byIptables!, byNftables!].flatMap((node) =>
    flows.services
      .filter((service) => service.policy === "Local" && service.node === nodes[3])
      .map(({ backend, nodePort }) => ({
        client: clients[0]!,
        target: `NodePort of ${node.name}, backend ${backend.name}`,
        addresses: node.addresses,
        port: nodePort,
      })),
  );
  await using capture = await lab.capture();
  expect(await broken(asked)).toEqual([]);
  expect(await capture.stop()).toEqual([]);
});

/** Pods' packets, translated by another program before our own rule for them is asked. */
const translations: [what: string, rules: (node: LightNode) => [add: string, remove: string]][] = [
  [
    "MASQUERADE of iptables",
    () => {
      const rule = "-t nat %s POSTROUTING -s %p -j MASQUERADE";
      const lines = (verb: string) =>
        [`iptables ${rule.replace("%p", podRanges.ipv4)}`, `ip6tables ${rule.replace("%p", podRanges.ipv6)}`]
          .map((line) => line.replace("%s", verb))
          .join("; ");
      return [lines("-I"), lines("-D")];
    },
  ],
  [
    "masquerade of nftables",
    () => [
      `nft -f - <<'END'
        table inet foreign {
          chain postrouting {
            type nat hook postrouting priority 50;
            ip saddr ${podRanges.ipv4} masquerade
            ip6 saddr ${podRanges.ipv6} masquerade
          }
        }
END`,
      "nft delete table inet foreign",
    ],
  ],
  [
    "SNAT to the node's own address",
    ({ addresses: { ipv4, ipv6 } }) => [
      `nft -f - <<'END'
        table inet foreign {
          chain postrouting {
            type nat hook postrouting priority 50;
            ip saddr ${podRanges.ipv4} snat ip to ${ipv4}
            ip6 saddr ${podRanges.ipv6} snat ip6 to ${ipv6}
          }
        }
END`,
      "nft delete table inet foreign",
    ],
  ],
];

describe.each(translations)("%s for pods' packets, by another program", (what, rules) => {
  const run = (which: 0 | 1) => () =>
    Promise.all(nodes.map((node) => node.namespace.run(["/bin/sh", "-ec", rules(node)[which]])));
  beforeAll(run(0));
  afterAll(run(1));

  test("pods reach pods, nodes and what is outside, and every Service", async () => {
    const direct = clients.flatMap((client) =>
      [...backends, ...nodes, lab.outside].map((host) => ({
        client,
        target: host.name,
        addresses: host.addresses,
        port: 7,
      })),
    );
    const byServices = flows.within(clients, [...of("Cluster", "pod"), ...of("Cluster", "node")]);
    expect(await broken([...direct, ...byServices])).toEqual([]);
  });

  test(`is ${what.startsWith("SNAT") ? "" : "not "}named, as what takes packets out of the tunnel`, async () => {
    const named = (node: LightNode) =>
      node.agentLog().filter((line) => line.topic === "pods' packets outside of the tunnel").length;
    if (!what.startsWith("SNAT")) return expect(nodes.map(named)).toEqual(nodes.map(() => 0));
    await using _ = await lab.probe(clients[0]!, nodes[1]!);
    await until("the agent of n1 to name it", () => named(nodes[0]!) > 0, { timeout: 15_000 });
  });
});

test("nothing of all that was in the clear", async () => {
  expect(await clearTraffic(lab.underlay.router)).toEqual([]);
});
