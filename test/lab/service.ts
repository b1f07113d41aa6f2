/** Services on light nodes: real kube-proxies, and EndpointSlices written by hand, as no kubelet tells of pods. */
import type { ApiObject } from "./api.ts";
import { kubernetes } from "./cache.ts";
import type { ControlPlane } from "./controlplane.ts";
import type { LightNode } from "./lightnode.ts";
import type { Addresses } from "./namespace.ts";
import { kubeconfig } from "./pki.ts";
import type { Pod } from "./pod.ts";
import type { Service } from "./process.ts";
import { byFamily } from "./reachability.ts";
import { kubeProxyConfig } from "./wholenodeconfig.ts";

/** It ends with the node. */
export async function startKubeProxy(
  controlPlane: ControlPlane,
  node: LightNode,
  mode: "nftables" | "iptables" = "nftables",
  podLinks?: string,
): Promise<Service> {
  const dir = "/etc/kubernetes/kube-proxy";
  const { ca, cert, key } = controlPlane.access;
  await node.write(`${dir}/client.crt`, cert);
  await node.write(`${dir}/client.key`, key);
  const server = controlPlane.server(node.addresses.ipv4 ? "ipv4" : "ipv6");
  const user = { cert: `${dir}/client.crt`, key: `${dir}/client.key` };
  await node.write(`${dir}/kubeconfig`, kubeconfig(server, { pem: ca }, user));
  await node.write(
    `${dir}/config`,
    kubeProxyConfig(node.name, mode, `${dir}/kubeconfig`, controlPlane.families, podLinks),
  );
  const log = `${controlPlane.underlay.dir}/log/${node.name}-kube-proxy.log`;
  return node.namespace.start("kube-proxy", [kubernetes("kube-proxy"), `--config=${dir}/config`], log);
}

export interface ServiceOptions {
  /** The same for TCP and UDP; the backends listen on 7. */
  nodePort: number;
  backends: Pod[];
  /** externalTrafficPolicy. Default "Cluster". */
  policy?: "Cluster" | "Local";
  externalIps?: Addresses;
  /** What a load balancer in front of the nodes would have. */
  balancer?: Addresses;
}

/** A Service on port 7 with everything: node ports, a load balancer's addresses and others; its cluster IPs. */
export async function createService(
  { api }: ControlPlane,
  name: string,
  { nodePort, backends, policy = "Cluster", externalIps = {}, balancer = {} }: ServiceOptions,
): Promise<Addresses> {
  const families = (["ipv4", "ipv6"] as const).filter((family) => backends[0]?.addresses[family]);
  const protocols = ["TCP", "UDP"].map((protocol) => ({ name: protocol.toLowerCase(), protocol, port: 7 }));
  const service = await api.create<ApiObject & { spec: { clusterIPs: string[] } }>({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name, namespace: "default" },
    spec: {
      type: "LoadBalancer",
      externalIPs: Object.values(externalIps),
      externalTrafficPolicy: policy,
      ipFamilyPolicy: "PreferDualStack",
      ports: protocols.map((port) => ({ ...port, nodePort })),
    },
  });
  for (const family of families)
    await api.create({
      apiVersion: "discovery.k8s.io/v1",
      kind: "EndpointSlice",
      metadata: {
        name: `${name}-${family}`,
        namespace: "default",
        labels: { "kubernetes.io/service-name": name },
      },
      addressType: family === "ipv4" ? "IPv4" : "IPv6",
      ports: protocols,
      endpoints: backends.map((pod) => ({
        addresses: [pod.addresses[family]],
        nodeName: pod.node.name,
        conditions: { ready: true },
      })),
    });
  await api.patch(`/api/v1/namespaces/default/services/${name}/status`, {
    status: { loadBalancer: { ingress: Object.values(balancer).map((ip) => ({ ip })) } },
  });
  return byFamily(service.spec.clusterIPs);
}
