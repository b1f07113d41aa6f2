/**
 * What the plan knows of a node: a few hundred bytes taken from its annotations (the contract between the
 * agents) and, for nodes whose agent is of the other kind, from its spec and status.
 */
import { createHash } from "node:crypto";
import { compareAddresses, isUsable, parseAddress, parsePrefix, unusableAs } from "../../net/address.ts";

export const annotation = {
  publicKey: "wigglenet/public-key",
  nodeIps: "wigglenet/node-ips",
  podCidrs: "wigglenet/pod-cidrs",
  agent: "wigglenet/agent",
} as const;

/** How many pod CIDRs a node may have, and how many addresses. */
export const mostClaims = 16;

export interface NodeRecord {
  name: string;
  /** Creation time, RFC 3339: the older of two Nodes with the same claim wins. */
  created: string;
  /** WireGuard public key, base64 of 32 bytes; undefined while it has none or when its annotations are malformed. */
  publicKey?: string;
  /** Prefixes of its pods. */
  podCidrs: string[];
  /** Addresses that its pods and ours reach through the tunnel. */
  addresses: string[];
  /** Where its tunnel may be reached, best first. */
  endpoints: string[];
  /** Its agent is of the other kind, which sends its pods' packets to other nodes in the clear. */
  clearToNodes: boolean;
  /** What is wrong with its annotations, in words. */
  problems: string[];
}

/** The parts of a whole Node that a record is made from when the annotations do not suffice. */
export interface NodeObject {
  metadata: {
    name: string;
    creationTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec?: { podCIDR?: string; podCIDRs?: string[] };
  status?: { addresses?: { type: string; address: string }[] };
}

/** The value of `wigglenet/agent`. */
interface AgentValue {
  version: string;
  /** SHA-256 of the `wigglenet/node-ips` value, its first 16 hex digits. */
  nodeIps: string;
  /** How many of node-ips, counted from the first, are on the node's own links: those go through the tunnel. */
  tunnelled: number;
}

/** The annotations of a node, from what it knows of itself; a null takes one away. */
export function annotationsOf(own: {
  version: string;
  publicKey: string | null;
  podCidrs: readonly string[];
  addresses: readonly string[];
  endpoints: readonly string[];
}): Record<string, string | null> {
  const nodeIps = JSON.stringify([
    ...own.addresses,
    ...own.endpoints.filter((address) => !own.addresses.includes(address)),
  ]);
  const agent: AgentValue = {
    version: own.version,
    nodeIps: checksum(nodeIps),
    tunnelled: own.addresses.length,
  };
  return {
    [annotation.publicKey]: own.publicKey,
    [annotation.nodeIps]: nodeIps,
    [annotation.podCidrs]: JSON.stringify(own.podCidrs),
    [annotation.agent]: JSON.stringify(agent),
  };
}

/** Whether a node's annotations say all that is needed, so that its spec and status need not be read. */
export function saysAll(annotations: Record<string, string> | undefined): boolean {
  const agent = parseAgent(annotations?.[annotation.agent]);
  const nodeIps = annotations?.[annotation.nodeIps] ?? "";
  return agent !== undefined && agent.nodeIps === checksum(nodeIps);
}

/** A node whose agent is of our kind, from its metadata alone. */
export function fromAnnotations({ metadata }: Pick<NodeObject, "metadata">): NodeRecord {
  const parsed = parseAnnotations(metadata.annotations ?? {});
  const tunnelled = parseAgent(metadata.annotations?.[annotation.agent])?.tunnelled ?? 0;
  return record(metadata, {
    ...parsed,
    addresses: usable(parsed.nodeIps.slice(0, tunnelled)),
    endpoints: usable(parsed.nodeIps),
    clearToNodes: false,
  });
}

/** A node without an agent, or with one of the other kind, whose addresses are in `status` and in node-ips. */
export function fromNode(node: NodeObject): NodeRecord {
  const parsed = parseAnnotations(node.metadata.annotations ?? {});
  const { internal, external } = statusAddresses(node);
  const endpoints = unique([...internal, ...usable(parsed.nodeIps), ...external]).slice(0, mostClaims);
  return record(node.metadata, {
    ...parsed,
    podCidrs: parsed.podCidrs.length > 0 ? parsed.podCidrs : specPodCidrs(node).slice(0, mostClaims),
    addresses: endpoints.filter((address) => !external.includes(address)),
    endpoints,
    clearToNodes: parsed.publicKey !== undefined,
  });
}

/** `spec.podCIDRs`, canonical; what does not parse is left out. */
export function specPodCidrs(node: NodeObject): string[] {
  const given = node.spec?.podCIDRs ?? (node.spec?.podCIDR ? [node.spec.podCIDR] : []);
  return given.flatMap((cidr) => parsePrefix(cidr) ?? []);
}

/** The addresses of `status.addresses` by type, canonical, in their order; apart those that no node can have. */
export function statusAddresses(node: NodeObject): {
  internal: string[];
  external: string[];
  unusable: string[];
} {
  const of = (type: string) =>
    (node.status?.addresses ?? [])
      .filter((entry) => entry.type === type)
      .flatMap((entry) => parseAddress(entry.address) ?? []);
  const internal = unique(of("InternalIP"));
  const external = unique(of("ExternalIP")).filter((address) => !internal.includes(address));
  return {
    internal: internal.filter(isUsable),
    external: external.filter(isUsable),
    unusable: [...internal, ...external].filter((address) => !isUsable(address)),
  };
}

/** The canonical text of a key if `value` is base64 of 32 bytes that are not all zero. */
export function parseKey(value: string): string | undefined {
  if (value.length > 100) return undefined;
  const text = value.trim();
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) return undefined;
  const bytes = Buffer.from(text, "base64");
  return bytes.toString("base64") === text && bytes.some((byte) => byte !== 0) ? text : undefined;
}

function record(
  metadata: NodeObject["metadata"],
  values: Omit<ParsedAnnotations, "nodeIps"> & {
    addresses: string[];
    endpoints: string[];
    clearToNodes: boolean;
  },
): NodeRecord {
  const { publicKey, podCidrs, addresses, endpoints, clearToNodes, malformed, leftOut } = values;
  return {
    name: metadata.name,
    created: metadata.creationTimestamp ?? "",
    // Half a description of a node is worse than none: what is malformed costs this node its tunnel, and only its own.
    ...(publicKey !== undefined && malformed.length === 0 ? { publicKey } : {}),
    podCidrs: [...podCidrs].sort(compareAddresses),
    addresses: [...addresses].sort(compareAddresses),
    endpoints,
    clearToNodes,
    problems: [...malformed, ...leftOut],
  };
}

/** Characters of a list; 16 prefixes have no 1,000. An annotation may have 256 KiB, and each agent parses it. */
const longestList = 16_384;
/** Of `wigglenet/agent`. */
const longestAgent = 1_024;

interface ParsedAnnotations {
  publicKey: string | undefined;
  podCidrs: string[];
  /** In their order, also those that no node can have: the first so many are tunnelled. */
  nodeIps: string[];
  /** What is not as the contract has it. */
  malformed: string[];
  /** What is well formed and not taken. */
  leftOut: string[];
}

function parseAnnotations(annotations: Record<string, string>): ParsedAnnotations {
  const malformed: string[] = [];
  const leftOut: string[] = [];
  const wrong = (name: string, right: string) => {
    const value = annotations[name] ?? "";
    malformed.push(`${name}: ${quoted(value)} is not ${right}`);
  };
  const list = (name: string, parse: (text: string) => string | undefined, right: string): string[] => {
    const value = parseList(annotations[name]);
    const parsed = value
      ?.slice(0, mostClaims)
      .map((each) => (typeof each === "string" ? parse(each) : undefined));
    if (value === undefined || parsed === undefined || parsed.includes(undefined)) {
      wrong(name, right);
      return [];
    }
    if (value.length > mostClaims)
      leftOut.push(`${name}: ${value.length} entries, of which the first ${mostClaims} count`);
    for (const each of unique(parsed as string[])) {
      const why = unusableAs(each);
      if (why) leftOut.push(`${name}: ${each} is ${why}`);
    }
    return unique(parsed as string[]);
  };
  const key = annotations[annotation.publicKey];
  const publicKey = key ? parseKey(key) : undefined;
  if (key && publicKey === undefined) wrong(annotation.publicKey, "base64 of 32 bytes");
  return {
    publicKey,
    podCidrs: usable(list(annotation.podCidrs, parsePrefix, "a JSON list of prefixes")),
    nodeIps: list(annotation.nodeIps, parseAddress, "a JSON list of addresses"),
    malformed,
    leftOut,
  };
}

function quoted(value: string): string {
  return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
}

// The other implementation writes null for an empty list.
function parseList(value: string | undefined): unknown[] | undefined {
  if (value !== undefined && value.length > longestList) return undefined;
  try {
    const parsed: unknown = JSON.parse(value || "[]") ?? [];
    return Array.isArray(parsed) ? parsed : undefined;
  } catch {
    return undefined;
  }
}

function parseAgent(value = ""): AgentValue | undefined {
  if (value.length > longestAgent) return undefined;
  try {
    const { version, nodeIps, tunnelled } = JSON.parse(value) as Partial<AgentValue>;
    if (typeof version !== "string" || typeof nodeIps !== "string") return undefined;
    return Number.isSafeInteger(tunnelled) && (tunnelled as number) >= 0
      ? { version, nodeIps, tunnelled: tunnelled as number }
      : undefined;
  } catch {
    return undefined;
  }
}

function usable(values: readonly string[]): string[] {
  return values.filter(isUsable);
}

function checksum(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 16);
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)];
}
