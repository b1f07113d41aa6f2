/**
 * Every variable of the environment: what `config.ts` reads, what `install` writes into the environment file, and what
 * docs/configuration.md explains at length (a test compares them).
 */
export interface Setting {
  /** As it would be set; empty where there is none. */
  default: string;
  /** One line. */
  meaning: string;
}

export const settings = {
  NODE_NAME: { default: "", meaning: "the name of this node's Node object; required" },
  KUBECONFIG: { default: "", meaning: "a kubeconfig file; in a pod, its service account needs none" },
  NODE_IP_INTERFACES: {
    default: "",
    meaning: "comma-separated links whose lasting global addresses are node addresses too",
  },
  PROC_SYS_NET_PATH: { default: "/proc/sys/net", meaning: "where the host's /proc/sys/net is" },
  RESYNC_PERIOD: {
    default: "60",
    meaning: "seconds between two full comparisons of the node with what should be there",
  },
  LOG_LEVEL: { default: "info", meaning: "trace, debug, info, warn or error" },
  POD_CIDR_SOURCE_IPV4: {
    default: "spec",
    meaning: "where the IPv4 pod CIDRs come from: none, spec, file or expression",
  },
  POD_CIDR_SOURCE_IPV6: {
    default: "spec",
    meaning: "where the IPv6 pod CIDRs come from: none, spec, file or expression",
  },
  POD_CIDR_SOURCE_PATH: { default: "", meaning: "the file for file: one prefix a line" },
  POD_CIDR_EXPRESSION: { default: "", meaning: "the CEL expression for expression" },
  POD_CIDR_EXPRESSION_PATH: { default: "", meaning: "a file that holds the CEL expression" },
  ALLOWED_POD_CIDRS: {
    default: "",
    meaning: "comma-separated prefixes that all pod CIDRs lie in: what is claimed outside is refused",
  },
  CNI_CONFIG_PATH: { default: "/etc/cni/net.d/10-wigglenet.conflist", meaning: "the CNI file" },
  POD_IPV6_DAD: {
    default: "0",
    meaning: "1: new links go through IPv6 duplicate address detection, 1 to 2 s for each pod",
  },
  WIREGUARD: {
    default: "auto",
    meaning: "kernel, userspace (wireguard-go), or auto: the kernel's if it has one",
  },
  WIGGLENET_IFACE_NAME: { default: "wigglenet", meaning: "the tunnel's link" },
  WIGGLENET_WG_PORT: { default: "24601", meaning: "the tunnel's UDP port, the same on every node" },
  WIGGLENET_PRIVKEY_PATH: {
    default: "/etc/wigglenet/private.key",
    meaning: "the tunnel's private key, made at the first start",
  },
  WG_IP_FAMILY: {
    default: "dualstack",
    meaning: "which family the tunnel's endpoints may have: ipv4, ipv6 or dualstack",
  },
  NATIVE_ROUTING_IPV4: { default: "0", meaning: "1: the underlay routes IPv4 pods, not the tunnel" },
  NATIVE_ROUTING_IPV6: { default: "0", meaning: "1: the underlay routes IPv6 pods, not the tunnel" },
  MASQUERADE_IPV4: { default: "1", meaning: "pods' IPv4 packets to the outside get the node's address" },
  MASQUERADE_IPV6: { default: "1", meaning: "pods' IPv6 packets to the outside get the node's address" },
  NON_MASQUERADE_CIDRS: {
    default: "",
    meaning: "comma-separated prefixes outside that see the pods' own addresses all the same",
  },
  MASQUERADE_RANDOM_FULLY: { default: "1", meaning: "masquerade takes a random source port" },
  FILTER_IPV4: {
    default: "0",
    meaning: "1: new IPv4 connections from outside the cluster to pods are dropped",
  },
  FILTER_IPV6: {
    default: "0",
    meaning: "1: new IPv6 connections from outside the cluster to pods are dropped",
  },
  FIREWALL_BACKEND: {
    default: "auto",
    meaning: "nftables, iptables, or auto: nftables if the kernel has it",
  },
  FIREWALL_ONLY: { default: "0", meaning: "1: masquerade and filter alone; no tunnel, routes and CNI file" },
  ENABLE_NETWORK_POLICY: {
    default: "0",
    meaning: "refused if set to 1: this version enforces no NetworkPolicy",
  },
  ENABLE_FLOWTABLE: { default: "0", meaning: "1: established flows of pods are offloaded; nftables only" },
  FLOWTABLE_DEVICES: {
    default: "",
    meaning: "comma-separated links of the flows to offload, such as eth0,wigglenet,veth*",
  },
  FLOWTABLE_PACKET_THRESHOLD: {
    default: "128",
    meaning: "after more packets than this a connection is offloaded",
  },
  HEALTH_BIND_ADDR: {
    default: "",
    meaning: "where /healthz and /readyz are answered, as 127.0.0.1:24602 or [::1]:24602",
  },
  ENABLE_METRICS: { default: "0", meaning: "1: /metrics is answered, for Prometheus" },
  METRICS_BIND_ADDR: {
    default: "127.0.0.1:9091",
    meaning: "where /metrics is answered; :9091 is all addresses, open to the network",
  },
  METRICS_TLS_CERT_FILE: { default: "", meaning: "certificate of /metrics: HTTPS instead of HTTP" },
  METRICS_TLS_KEY_FILE: { default: "", meaning: "the certificate's private key" },
  METRICS_TLS_CLIENT_CA_FILE: {
    default: "",
    meaning: "a CA: who asks for /metrics must have a certificate of it",
  },
} as const satisfies Record<string, Setting>;

export type SettingName = keyof typeof settings;

/** A variable's value, or its default; an empty one counts as unset. */
export function readSetting(env: Record<string, string | undefined>, name: SettingName): string {
  return env[name] || settings[name].default;
}

export const settingNames = Object.keys(settings) as SettingName[];
