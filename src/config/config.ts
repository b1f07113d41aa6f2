/** The environment, read once: the only place that does. Every mistake is reported, none is replaced by a default. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Family, families, familyOf, lengthOf, parseAddress, parsePrefix } from "../net/address.ts";
import { compileExpression, type Expression } from "../plan/podcidr/expression.ts";
import { shorten } from "../report/shorten.ts";
import { type CertificateError, type CertificateFiles, readCertificate } from "./certificate.ts";
import { readSetting, type SettingName, settings } from "./settings.ts";

export type PodCidrSource = "none" | "spec" | "file" | "expression";
export type PerFamily<T> = Record<Family, T>;

/** Where to listen. */
export interface BindAddress {
  /** The variable that says so, and as it says it, for messages. */
  variable: string;
  text: string;
  /** Undefined: all addresses of both families. */
  hostname: string | undefined;
  port: number;
}

export interface MetricsSettings {
  address: BindAddress;
  certificate: CertificateFiles | undefined;
}

export interface Config {
  /** The Node that this agent serves. */
  nodeName: string;
  /** A kubeconfig file, or undefined for the in-cluster service account. */
  kubeconfig: string | undefined;
  linkName: string;
  /** UDP port of the tunnel on every node. */
  port: number;
  privateKeyPath: string;
  wireguard: "auto" | "kernel" | "userspace";
  /** Which families the tunnel's endpoints may have. */
  tunnelFamilies: readonly Family[];
  cniConfigPath: string;
  /** Links whose global addresses are node addresses besides those of the Node's status. */
  nodeIpInterfaces: string[];
  podCidrSource: PerFamily<PodCidrSource>;
  podCidrSourcePath: string | undefined;
  podCidrExpression: Expression | undefined;
  /** Prefixes that pod CIDRs must lie in; empty: any. */
  allowedPodCidrs: string[];
  masquerade: PerFamily<boolean>;
  /** Whether masquerading takes a random port, where it can. */
  masqueradeRandomFully: boolean;
  /** Destinations that see pods' own addresses, besides the cluster's. */
  nonMasqueradeCidrs: string[];
  /** Whether new connections from outside of the cluster to pods are dropped. */
  filter: PerFamily<boolean>;
  /** With its variant where the kernel lacks what another needs. */
  firewallBackend: "auto" | "nftables" | "iptables" | "iptables-nft" | "iptables-legacy";
  /** Links (`*` at the end: all that begin so) whose established flows are offloaded after so many packets. */
  flowtable: { devices: string[]; packets: number } | undefined;
  nativeRouting: PerFamily<boolean>;
  firewallOnly: boolean;
  /** Where the host's /proc/sys/net is. */
  procSysNet: string;
  /** Those that the kernel has: booted with ipv6.disable=1 it has IPv4 alone. */
  families: readonly Family[];
  /** Whether new links go through IPv6 duplicate address detection, 1 to 2 s for a new pod. */
  podIpv6Dad: boolean;
  /** Seconds between two full observations. */
  resyncPeriod: number;
  /** Where health is told; undefined: nowhere. */
  health: BindAddress | undefined;
  /** Undefined: off. */
  metrics: MetricsSettings | undefined;
  logLevel: string;
}

export class ConfigError extends Error {
  constructor(readonly mistakes: string[]) {
    super(`wrong configuration:\n${mistakes.map((mistake) => `  ${mistake}`).join("\n")}`);
  }
}

type Environment = Record<string, string | undefined>;

/**
 * Reads the configuration; throws a `ConfigError` that lists all mistakes.
 * @param found mistakes around the settings, to be told in the same message
 */
export function readConfig(env: Environment, found: readonly string[] = []): Config {
  const mistakes = [...found];
  const wrong = (name: SettingName, right: string) => {
    mistakes.push(`${name}=${shorten(JSON.stringify(env[name] ?? ""), 300)}: ${shorten(right, 600)}`);
  };
  const text = (name: SettingName) => readSetting(env, name);
  const optional = (name: SettingName) => text(name) || undefined;
  const bool = (name: SettingName): boolean => {
    const value = parseBool(text(name));
    if (value === undefined) wrong(name, "must be a boolean: 1, t, true, 0, f or false");
    return value ?? false;
  };
  const integer = (name: SettingName, least: number, most: number): number => {
    const value = text(name);
    if (/^\d{1,9}$/.test(value) && Number(value) >= least && Number(value) <= most) return Number(value);
    wrong(name, `must be a whole number from ${least} to ${most}`);
    return least;
  };
  const choice = <T extends string>(name: SettingName, choices: readonly T[]): T => {
    const value = text(name);
    if (choices.includes(value as T)) return value as T;
    wrong(name, `must be one of ${choices.join(", ")}`);
    return settings[name].default as T;
  };
  const prefixes = (name: SettingName, instead: (prefix: string) => string): string[] =>
    text(name)
      .split(",")
      .map((each) => each.trim())
      .filter(Boolean)
      .flatMap((each) => {
        const prefix = parsePrefix(each);
        const quoted = JSON.stringify(each);
        if (prefix === undefined)
          wrong(name, `${quoted} is not a prefix such as 192.168.0.0/16 or 2001:db8::/32`);
        // An ipset cannot hold it.
        else if (lengthOf(prefix) === 0) wrong(name, `${quoted} is everything: ${instead(prefix)}`);
        return prefix ?? [];
      });
  const linkNames = (name: SettingName): string[] => {
    const names = text(name)
      .split(",")
      .map((each) => each.trim())
      .filter(Boolean);
    for (const each of names)
      if (each.length > 15 || /[\s/"]/.test(each))
        wrong(name, `${JSON.stringify(each)} cannot be the name of a link`);
    return names;
  };
  const path = (name: SettingName): string => {
    const value = text(name);
    if (!value.startsWith("/")) wrong(name, "must be an absolute path");
    return value;
  };
  /** Undefined where nothing is set and nothing has to be. */
  const bindAddress = (name: SettingName): BindAddress | undefined => {
    const value = text(name);
    if (value === "" && settings[name].default === "") return undefined;
    const [, ipv6, other = "", digits] = /^(?:\[(.*)\]|([^:]*)):(\d{1,5})$/.exec(value) ?? [];
    const hostname = ipv6 ?? other;
    const port = Number(digits);
    const known =
      hostname === "" ? ipv6 === undefined : parseAddress(hostname)?.includes(":") === (ipv6 !== undefined);
    if (known && port >= 1 && port <= 65_535)
      return { variable: name, text: value, hostname: hostname || undefined, port };
    wrong(name, "must be an address and a port, as 127.0.0.1:9091 or [::1]:9091, or :9091 for all addresses");
    return undefined;
  };
  const perFamily = <T>(read: (suffix: "IPV4" | "IPV6", family: Family) => T): PerFamily<T> => ({
    ipv4: read("IPV4", "ipv4"),
    ipv6: read("IPV6", "ipv6"),
  });

  const nodeName = text("NODE_NAME");
  if (nodeName === "") wrong("NODE_NAME", "must be the name of this node's Node object");
  const linkName = text("WIGGLENET_IFACE_NAME");
  // The kernel's limit is 15 bytes; dots would split the sysctl path.
  if (!/^[A-Za-z0-9_-]{1,15}$/.test(linkName))
    wrong("WIGGLENET_IFACE_NAME", "must be a link name of 1 to 15 letters, digits, - and _");
  else if (/^veth|^lo$/.test(linkName))
    wrong("WIGGLENET_IFACE_NAME", "must not be lo, nor begin with veth: so are pods' links named");
  const nodeIpInterfaces = linkNames("NODE_IP_INTERFACES");

  const podCidrSource = perFamily((family) =>
    choice<PodCidrSource>(`POD_CIDR_SOURCE_${family}`, ["none", "spec", "file", "expression"]),
  );
  const sources = Object.values(podCidrSource);
  const firewallOnly = bool("FIREWALL_ONLY");
  if (sources.every((source) => source === "none") && !firewallOnly)
    wrong(
      "POD_CIDR_SOURCE_IPV6",
      "must not be none while POD_CIDR_SOURCE_IPV4 is none too: pods would have no address",
    );
  const podCidrSourcePath = sources.includes("file")
    ? path("POD_CIDR_SOURCE_PATH")
    : optional("POD_CIDR_SOURCE_PATH");

  const procSysNet = path("PROC_SYS_NET_PATH");
  const present = families.filter((family) => existsSync(join(procSysNet, family)));
  if (procSysNet.startsWith("/") && !present.includes("ipv4"))
    wrong("PROC_SYS_NET_PATH", "must be where the host's /proc/sys/net is: there is no ipv4 in it");

  const firewallBackend = choice("FIREWALL_BACKEND", ["auto", "nftables", "iptables"]);
  const offloads = bool("ENABLE_FLOWTABLE");
  const flowtable = {
    devices: linkNames("FLOWTABLE_DEVICES"),
    packets: integer("FLOWTABLE_PACKET_THRESHOLD", 0, 999_999_999),
  };
  if (offloads && firewallBackend === "iptables")
    wrong(
      "ENABLE_FLOWTABLE",
      "flow tables are of nftables: set FIREWALL_BACKEND to nftables or auto, or this to 0",
    );
  if (offloads && flowtable.devices.length === 0)
    wrong("FLOWTABLE_DEVICES", `must list the links of the flows to offload, such as eth0,${linkName},veth*`);

  const health = bindAddress("HEALTH_BIND_ADDR");
  const metricsAddress = bindAddress("METRICS_BIND_ADDR");
  const metered = bool("ENABLE_METRICS");
  if (metered && health && health.port === metricsAddress?.port)
    wrong("HEALTH_BIND_ADDR", "must have another port than METRICS_BIND_ADDR");

  if (bool("ENABLE_NETWORK_POLICY"))
    wrong(
      "ENABLE_NETWORK_POLICY",
      "this version enforces no NetworkPolicy yet: set it to 0, and have kube-network-policies (kubernetes-sigs) enforce them meanwhile, see docs/migration.md#networkpolicy",
    );
  const cniConfigPath = path("CNI_CONFIG_PATH");
  if (cniConfigPath.startsWith("/") && !cniConfigPath.endsWith(".conflist"))
    wrong("CNI_CONFIG_PATH", "must end in .conflist: in other files the container runtime reads one plugin");
  const config: Config = {
    nodeName,
    kubeconfig: optional("KUBECONFIG"),
    linkName,
    port: integer("WIGGLENET_WG_PORT", 1, 65535),
    privateKeyPath: path("WIGGLENET_PRIVKEY_PATH"),
    wireguard: choice("WIREGUARD", ["auto", "kernel", "userspace"]),
    tunnelFamilies: tunnelFamilies[choice("WG_IP_FAMILY", ["ipv4", "ipv6", "dualstack"])],
    cniConfigPath,
    nodeIpInterfaces,
    podCidrSource,
    podCidrSourcePath,
    allowedPodCidrs: prefixes("ALLOWED_POD_CIDRS", () => "leave it out, as that is the default"),
    podCidrExpression: sources.includes("expression") ? readExpression(env, wrong) : undefined,
    masquerade: perFamily((family) => bool(`MASQUERADE_${family}`)),
    masqueradeRandomFully: bool("MASQUERADE_RANDOM_FULLY"),
    nonMasqueradeCidrs: prefixes(
      "NON_MASQUERADE_CIDRS",
      (prefix) => `set MASQUERADE_${familyOf(prefix).toUpperCase()}=0 instead`,
    ),
    filter: perFamily((family) => bool(`FILTER_${family}`)),
    firewallBackend,
    flowtable: offloads ? flowtable : undefined,
    // What the kernel does not have cannot be in the tunnel.
    nativeRouting: perFamily(
      (suffix, family) => bool(`NATIVE_ROUTING_${suffix}`) || !present.includes(family),
    ),
    firewallOnly,
    procSysNet,
    families: present,
    podIpv6Dad: bool("POD_IPV6_DAD"),
    resyncPeriod: integer("RESYNC_PERIOD", 1, 86_400),
    health,
    metrics:
      metered && metricsAddress
        ? { address: metricsAddress, certificate: readCertificateFiles(env, wrong) }
        : undefined,
    logLevel: choice("LOG_LEVEL", ["trace", "debug", "info", "warn", "error"]),
  };
  if (mistakes.length > 0) throw new ConfigError(mistakes);
  return config;
}

const tunnelFamilies: Record<"ipv4" | "ipv6" | "dualstack", readonly Family[]> = {
  ipv4: ["ipv4"],
  ipv6: ["ipv6"],
  dualstack: ["ipv4", "ipv6"],
};

/** What Go's strconv.ParseBool takes. */
export function parseBool(value: string): boolean | undefined {
  if (["1", "t", "T", "true", "TRUE", "True"].includes(value)) return true;
  if (["0", "f", "F", "false", "FALSE", "False"].includes(value)) return false;
  return undefined;
}

function readExpression(
  env: Environment,
  wrong: (name: SettingName, right: string) => void,
): Expression | undefined {
  const file = env.POD_CIDR_EXPRESSION_PATH;
  if (file && env.POD_CIDR_EXPRESSION)
    wrong("POD_CIDR_EXPRESSION", "must not be set while POD_CIDR_EXPRESSION_PATH is: unset one of the two");
  const name = file ? "POD_CIDR_EXPRESSION_PATH" : "POD_CIDR_EXPRESSION";
  try {
    const source = file ? readFileSync(file, "utf8") : (env[name] ?? "");
    if (source.trim() === "") throw new Error("must be a CEL expression, as a POD_CIDR_SOURCE is expression");
    return compileExpression(source);
  } catch (error) {
    wrong(name, (error as Error).message);
    return undefined;
  }
}

/** The files of the metrics endpoint's certificate, tried out. */
function readCertificateFiles(
  env: Environment,
  wrong: (name: SettingName, right: string) => void,
): CertificateFiles | undefined {
  const names = {
    cert: "METRICS_TLS_CERT_FILE",
    key: "METRICS_TLS_KEY_FILE",
    clientCa: "METRICS_TLS_CLIENT_CA_FILE",
  } as const;
  const [cert, key, clientCa] = Object.values(names).map((name) => env[name] || undefined);
  if (cert === undefined && key === undefined && clientCa === undefined) return undefined;
  if (cert === undefined) wrong(names.cert, `must be set too, as ${key ? names.key : names.clientCa} is`);
  else if (key === undefined) wrong(names.key, `must be set too, as ${names.cert} is`);
  else
    try {
      readCertificate({ cert, key, clientCa });
      return { cert, key, clientCa };
    } catch (error) {
      wrong(names[(error as CertificateError).file], (error as Error).message);
    }
  return undefined;
}
