/** What the services of a whole node read. */

import { PAUSE_IMAGE } from "../image/labimages.ts";
import { type Families, pick } from "../kernel/underlay.ts";
import { apiServiceAddresses, podRanges } from "./controlplane.ts";

export function containerdConfig(): string {
  const unused = [
    "snapshotter.v1.btrfs",
    "snapshotter.v1.zfs",
    "snapshotter.v1.devmapper",
    "snapshotter.v1.aufs",
  ];
  unused.push("internal.v1.opt", "internal.v1.tracing", "tracing.processor.v1.otlp");
  return `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [${unused.map((plugin) => `"io.containerd.${plugin}"`).join(", ")}]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE_IMAGE}"
  disable_apparmor = true
  # without CAP_SYS_RESOURCE every sandbox would fail
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`;
}

export function kubeletConfig(clientCaFile: string, families: Families): string {
  return JSON.stringify({
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: clientCaFile },
    },
    authorization: { mode: "Webhook" },
    containerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
    cgroupDriver: "cgroupfs",
    failCgroupV1: false,
    failSwapOn: false,
    oomScoreAdj: 0,
    clusterDomain: "cluster.local",
    // no DNS server runs in the lab
    clusterDNS: Object.values(pick(families, apiServiceAddresses)).map((address) => `${address}0`),
    resolvConf: "/etc/resolv.conf",
    evictionHard: { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
    imageGCHighThresholdPercent: 100,
    nodeStatusUpdateFrequency: "5s",
    nodeStatusReportFrequency: "30s",
    syncFrequency: "5s",
    registerNode: true,
  });
}

export interface KubeProxyOptions {
  /** Default nftables. */
  mode?: "nftables" | "iptables" | "ipvs";
  /** How pods' links begin, where they shall tell pods and not the pod CIDRs. */
  podLinks?: string;
  masqueradeAll?: boolean;
}

export function kubeProxyConfig(
  node: string,
  kubeconfigFile: string,
  families: Families,
  { mode = "nftables", podLinks, masqueradeAll = false }: KubeProxyOptions = {},
): string {
  return JSON.stringify({
    apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
    kind: "KubeProxyConfiguration",
    clientConnection: { kubeconfig: kubeconfigFile },
    mode,
    nftables: { masqueradeAll },
    // Of ipvs too.
    iptables: { masqueradeAll },
    hostnameOverride: node,
    ...(podLinks
      ? { detectLocalMode: "InterfaceNamePrefix", detectLocal: { interfaceNamePrefix: podLinks } }
      : { clusterCIDR: Object.values(pick(families, podRanges)).join(",") }),
    oomScoreAdj: 0,
    // values of the whole machine, which is not the node's to set
    conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: "0s", tcpCloseWaitTimeout: "0s" },
  });
}
