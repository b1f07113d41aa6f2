/** Services on light nodes: real kube-proxies, and EndpointSlices written by hand, as no kubelet tells of pods. */
import { kubernetes } from "./cache.ts";
import type { ControlPlane } from "./controlplane.ts";
import type { LightNode } from "./lightnode.ts";
import { kubeconfig } from "./pki.ts";
import type { Pod } from "./pod.ts";
import type { Service } from "./process.ts";
import { kubeProxyConfig } from "./wholenodeconfig.ts";

/** It ends with the node. */
export async function startKubeProxy(
  controlPlane: ControlPlane,
  node: LightNode,
  mode: "nftables" | "iptables" = "nftables",
): Promise<Service> {
  const dir = "/etc/kubernetes/kube-proxy";
  const { ca, cert, key } = controlPlane.access;
  await node.write(`${dir}/client.crt`, cert);
  await node.write(`${dir}/client.key`, key);
  const server = controlPlane.server(node.addresses.ipv4 ? "ipv4" : "ipv6");
  const user = { cert: `${dir}/client.crt`, key: `${dir}/client.key` };
  await node.write(`${dir}/kubeconfig`, kubeconfig(server, { pem: ca }, user));
  await node.write(`${dir}/config`, kubeProxyConfig(node.name, mode, `${dir}/kubeconfig`));
  const log = `${controlPlane.underlay.dir}/log/${node.name}-kube-proxy.log`;
  return node.namespace.start("kube-proxy", [kubernetes("kube-proxy"), `--config=${dir}/config`], log);
}

export interface NodePortOptions {
  /** The same for TCP and UDP; the backends listen on 7. */
  nodePort: number;
  backends: Pod[];
  /** externalTrafficPolicy. Default "Cluster". */
  policy?: "Cluster" | "Local";
}

/** A Service of type NodePort with an EndpointSlice for each family that its backends have. */
export async function createNodePort(
  { api }: ControlPlane,
  name: string,
  { nodePort, backends, policy = "Cluster" }: NodePortOptions,
): Promise<void> {
  const families = (["ipv4", "ipv6"] as const).filter((family) => backends[0]?.addresses[family]);
  const protocols = ["TCP", "UDP"].map((protocol) => ({ name: protocol.toLowerCase(), protocol, port: 7 }));
  await api.create({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name, namespace: "default" },
    spec: {
      type: "NodePort",
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
}
