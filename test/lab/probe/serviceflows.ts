/** Services of every sort on light nodes, and the flows that clients of every sort have with them. */
import { families } from "../../../src/net/address.ts";
import type { LightNode } from "../cluster/lightnode.ts";
import type { Pod } from "../cluster/pod.ts";
import { createService, startKubeProxy } from "../cluster/service.ts";
import type { KubeProxyOptions } from "../cluster/wholenodeconfig.ts";
import type { Addresses, Host } from "../kernel/namespace.ts";
import type { Lab } from "../lab.ts";
import { until } from "../process.ts";

export const policies = ["Cluster", "Local"] as const;
export type Policy = (typeof policies)[number];

/** A Service with one backend, by all of its addresses. */
export interface FlowService {
  name: string;
  policy: Policy;
  backend: Pod | LightNode;
  /** Where the backend is. */
  node: LightNode;
  nodePort: number;
  clusterIp: Addresses;
  /** One for each node, to which the router sends what comes for it. */
  balancers: Addresses[];
  externalIps: Addresses[];
}

/** Services of a lab whose backends are a pod of each node and each node itself, and kube-proxies that serve them. */
export class ServiceFlows {
  readonly #lab: Lab;
  readonly services: FlowService[];

  private constructor(lab: Lab, services: FlowService[]) {
    this.#lab = lab;
    this.services = services;
  }

  /**
   * Returns once every node's kube-proxy knows every Service.
   * @param pods of each node one
   * @param proxies what each node's kube-proxy is told
   */
  static async start(lab: Lab, pods: Pod[], proxies: KubeProxyOptions[]): Promise<ServiceFlows> {
    const { controlPlane, nodes } = lab;
    const services = await createServices(lab, [
      ...nodes.map((node, index) => ({ backend: pods[index]!, node })),
      ...nodes.map((node) => ({ backend: node, node })),
    ]);
    for (const [index, node] of nodes.entries()) await startKubeProxy(controlPlane, node, proxies[index]);
    for (const node of nodes) await served(node, services);
    return new ServiceFlows(lab, services);
  }

  /**
   * What clients within the cluster can have with Services.
   * @param clients of each node one, a pod or the node itself
   */
  within(clients: Host[], services = this.services): Flow[] {
    const { nodes } = this.#lab;
    return clients.flatMap((client, index) =>
      services.flatMap((service) => flowsWithin(nodes, nodes[index]!, client, service)),
    );
  }

  /** What pods that are the backends of Services can have with those: the Service leads them to themselves. */
  hairpins(services = this.services): Flow[] {
    return services.flatMap((service) =>
      flowsWithin(this.#lab.nodes, service.node, service.backend, service),
    );
  }

  /** What `outside` can have with Services: by each node, or with policy Local by the one with the backend. */
  fromOutside(services = this.services): Flow[] {
    return services.flatMap((service) => flowsFromOutside(this.#lab.nodes, this.#lab.outside, service));
  }
}

/** Two Services for each backend, one of each policy, and the router's ways to them. */
async function createServices(
  { controlPlane, underlay, nodes }: Lab,
  backends: readonly { backend: Pod | LightNode; node: LightNode }[],
): Promise<FlowService[]> {
  const addresses = (kind: number, service: number): Addresses[] =>
    nodes.map((_, entry) => ({
      ipv4: `203.${kind}.${entry}.${service + 1}`,
      ipv6: `2001:db8:${kind}:${entry}::${(service + 1).toString(16)}`,
    }));
  await underlay.router.ip(
    ...[0, 1].flatMap((kind) =>
      nodes.flatMap((node, entry) => [
        `route add 203.${kind}.${entry}.0/24 via ${node.addresses.ipv4}`,
        `route add 2001:db8:${kind}:${entry}::/64 via ${node.addresses.ipv6}`,
      ]),
    ),
  );
  return await Promise.all(
    backends
      .flatMap((each) => policies.map((policy) => ({ ...each, policy })))
      .map(async ({ backend, node, policy }, index) => {
        const options = {
          // Of the band from which none is given to who asks for no certain one.
          nodePort: 30010 + index,
          balancers: addresses(0, index),
          externalIps: addresses(1, index),
        };
        const name = `${backend.name.replace("/", "-")}-${policy.toLowerCase()}`;
        const clusterIp = await createService(controlPlane, name, {
          ...options,
          backends: [backend],
          policy,
        });
        return { name, policy, backend, node, clusterIp, ...options };
      }),
  );
}

/** Waits until a node's kube-proxy knows every Service. */
async function served(node: LightNode, services: readonly FlowService[]): Promise<void> {
  await until(
    `kube-proxy of ${node.name} to know all Services`,
    async () => {
      const asked = services.flatMap(({ clusterIp }) =>
        families.map((family) =>
          node.place.reach({ protocol: "udp", address: clusterIp[family]!, timeout: 500 }),
        ),
      );
      return (await Promise.all(asked)).every(({ ok }) => ok);
    },
    { timeout: 30_000, every: 500 },
  );
}

export interface Flow {
  client: Host;
  /** Such as "NodePort of n2, of n1-b-cluster". */
  target: string;
  addresses: Addresses;
  port: number;
}

/** What a client on a node can have with a Service. */
function flowsWithin(
  nodes: readonly LightNode[],
  node: LightNode,
  client: Host,
  service: FlowService,
): Flow[] {
  const at = nodes.indexOf(node);
  const { backend, clusterIp, balancers, externalIps, nodePort: port, policy, node: home } = service;
  // Policy Local: of another node's port those alone that have the backend.
  const other = policy === "Local" ? home : nodes[(at + 1) % nodes.length]!;
  // The Service leads by way of the other node back to its own.
  const further = policy === "Local" ? home : nodes.at(at - 1)!;
  const ports = [...new Set([node, other, further])].map((each): [string, Addresses, number] => [
    `NodePort of ${each.name}`,
    each.addresses,
    port,
  ]);
  const targets: [string, Addresses, number][] = [
    ["ClusterIP", clusterIp, 7],
    ["LoadBalancer address", balancers[at]!, 7],
    ["external IP", externalIps[at]!, 7],
    ...ports,
  ];
  return targets.map(([sort, addresses, port]) => ({
    client,
    target: `${sort}, policy ${policy}, backend ${backend.name}`,
    addresses,
    port,
  }));
}

function flowsFromOutside(nodes: readonly LightNode[], client: Host, service: FlowService): Flow[] {
  const { backend, balancers, externalIps, nodePort, policy } = service;
  return nodes.flatMap((node, entry) => {
    if (policy === "Local" && node !== service.node) return [];
    const targets: [string, Addresses, number][] = [
      ["NodePort", node.addresses, nodePort],
      ["LoadBalancer address", balancers[entry]!, 7],
      ["external IP", externalIps[entry]!, 7],
    ];
    return targets.map(([sort, addresses, port]) => ({
      client,
      target: `${sort} by ${node.name}, policy ${policy}, backend ${backend.name}`,
      addresses,
      port,
    }));
  });
}

/** Of each protocol, messages with pauses between them: a flow that changes its way breaks at the second. */
const talks = [
  { protocol: "tcp", messages: 3, interval: 300 },
  { protocol: "udp", messages: 20, interval: 50 },
] as const;

/** Has all flows at once, by both families. What was not answered in full, one line each. */
export async function broken(flows: readonly Flow[]): Promise<string[]> {
  const talking = flows.flatMap((flow) =>
    families.flatMap((family) => talks.map((talk) => ({ ...flow, family, talk }))),
  );
  const lines = talking.map(async ({ client, target, addresses, port, family, talk }) => {
    const reached = await client.place.talk({ ...talk, address: addresses[family]!, port });
    return reached.ok
      ? undefined
      : [`${client.name} -> ${target}`, talk.protocol, family, reached.reason].join(", ");
  });
  return (await Promise.all(lines)).filter((line) => line !== undefined);
}
