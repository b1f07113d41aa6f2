/** The DaemonSet of the Go implementation (tibordp/wigglenet 0.7), and the rights with it, as its manifests have them. */
import type { ApiObject } from "./api.ts";

/** What its default manifest sets. */
export const goEnvironment: Record<string, string> = {
  MASQUERADE_IPV4: "1",
  MASQUERADE_IPV6: "1",
  FILTER_IPV4: "0",
  FILTER_IPV6: "0",
  NODE_IP_INTERFACES: "",
  POD_CIDR_SOURCE_IPV4: "spec",
  POD_CIDR_SOURCE_IPV6: "spec",
  POD_CIDR_SOURCE_PATH: "/etc/wigglenet/cidrs.txt",
  NATIVE_ROUTING_IPV6: "0",
  NATIVE_ROUTING_IPV4: "0",
  ENABLE_NETWORK_POLICY: "1",
  FIREWALL_BACKEND: "nftables",
};

const metadata = { name: "wigglenet", namespace: "kube-system" };
const rbac = "rbac.authorization.k8s.io";
const read = ["get", "list", "watch"];
const labels = { app: "wigglenet" };

const mounts: [name: string, path: string, options?: object][] = [
  ["cfg", "/etc/wigglenet"],
  ["cni-cfg", "/etc/cni/net.d"],
  ["xtables-lock", "/run/xtables.lock", { type: "FileOrCreate" }],
  ["lib-modules", "/lib/modules"],
];

/** @param args of its program, which takes the flags of klog */
export function goManifest({
  image = "ghcr.io/tibordp/wigglenet:v0.7.0",
  args = [] as string[],
} = {}): ApiObject[] {
  const container = {
    name: "wigglenet",
    image,
    imagePullPolicy: "IfNotPresent",
    ...(args.length > 0 && { args }),
    env: [
      ...Object.entries(goEnvironment).map(([name, value]) => ({ name, value })),
      { name: "NODE_NAME", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } },
    ],
    volumeMounts: mounts.map(([name, mountPath]) => ({
      name,
      mountPath,
      ...(name === "lib-modules" && { readOnly: true }),
    })),
    resources: { requests: { cpu: "100m", memory: "50Mi" }, limits: { cpu: "100m", memory: "50Mi" } },
    securityContext: { privileged: false, capabilities: { add: ["NET_RAW", "NET_ADMIN"] } },
  };
  const pod = {
    hostNetwork: true,
    tolerations: [{ operator: "Exists" }],
    serviceAccountName: "wigglenet",
    priorityClassName: "system-node-critical",
    containers: [container],
    volumes: mounts.map(([name, path, options]) => ({ name, hostPath: { path, ...options } })),
  };
  return [
    {
      apiVersion: `${rbac}/v1`,
      kind: "ClusterRole",
      metadata: { name: "wigglenet" },
      rules: [
        { apiGroups: [""], resources: ["nodes"], verbs: [...read, "patch"] },
        { apiGroups: [""], resources: ["pods", "namespaces"], verbs: read },
        { apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: read },
      ],
    },
    {
      apiVersion: `${rbac}/v1`,
      kind: "ClusterRoleBinding",
      metadata: { name: "wigglenet" },
      roleRef: { apiGroup: rbac, kind: "ClusterRole", name: "wigglenet" },
      subjects: [{ kind: "ServiceAccount", ...metadata }],
    },
    { apiVersion: "v1", kind: "ServiceAccount", metadata },
    {
      apiVersion: "apps/v1",
      kind: "DaemonSet",
      metadata: { ...metadata, labels },
      spec: { selector: { matchLabels: labels }, template: { metadata: { labels }, spec: pod } },
    },
  ];
}
