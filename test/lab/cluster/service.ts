/** Services on light nodes: real kube-proxies, and EndpointSlices written by hand, as no kubelet tells of pods. */

import { kubernetes } from "../cache.ts";
import type { Addresses } from "../kernel/namespace.ts";
import { byFamily } from "../probe/reachability.ts";
import type { Service } from "../process.ts";
import type { ApiObject } from "./api.ts";
import type { ControlPlane } from "./controlplane.ts";
import type { LightNode } from "./lightnode.ts";
import { kubeconfig } from "./pki.ts";
import { Pod } from "./pod.ts";
import { type KubeProxyOptions, kubeProxyConfig } from "./wholenodeconfig.ts";

/** It ends with the node. */
export async function startKubeProxy(
  controlPlane: ControlPlane,
  node: LightNode,
  options: KubeProxyOptions = {},
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
    kubeProxyConfig(node.name, `${dir}/kubeconfig`, controlPlane.families, options),
  );
  const log = `${controlPlane.underlay.dir}/log/${node.name}-kube-proxy.log`;
  return node.namespace.start("kube-proxy", [kubernetes("kube-proxy"), `--config=${dir}/config`], log);
}

export interface ServiceOptions {
  /** The same for TCP and UDP; the backends listen on 7. */
  nodePort: number;
  /** A node is one by its own address, as a pod with hostNetwork. */
  backends: (Pod | LightNode)[];
  /** externalTrafficPolicy. Default "Cluster". */
  policy?: "Cluster" | "Local";
  externalIps?: Addresses[];
  /** What load balancers in front of the nodes would have. */
  balancers?: Addresses[];
}

/** A Service on port 7 with everything: node ports, a load balancer's addresses and others; its cluster IPs. */
export async function createService(
  { api }: ControlPlane,
  name: string,
  { nodePort, backends, policy = "Cluster", externalIps = [], balancers = [] }: ServiceOptions,
): Promise<Addresses> {
  const families = (["ipv4", "ipv6"] as const).filter((family) => backends[0]?.addresses[family]);
  const protocols = ["TCP", "UDP"].map((protocol) => ({ name: protocol.toLowerCase(), protocol, port: 7 }));
  const service = await api.create<ApiObject & { spec: { clusterIPs: string[] } }>({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name, namespace: "default" },
    spec: {
      type: "LoadBalancer",
      externalIPs: externalIps.flatMap((each) => Object.values(each)),
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
      endpoints: backends.map((backend) => ({
        addresses: [backend.addresses[family]],
        nodeName: backend instanceof Pod ? backend.node.name : backend.name,
        conditions: { ready: true },
      })),
    });
  await api.patch(`/api/v1/namespaces/default/services/${name}/status`, {
    status: {
      loadBalancer: { ingress: balancers.flatMap((each) => Object.values(each).map((ip) => ({ ip }))) },
    },
  });
  return byFamily(service.spec.clusterIPs);
}
