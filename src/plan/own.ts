/** The links and the pod CIDRs of this node, from its Node, its links and the configuration. */
import {
  compareAddresses,
  type Family,
  families,
  familyOf,
  isUsable,
  overlaps,
  parsePrefix,
} from "../net/address.ts";
import { podCidrProblem } from "./overlay/bounds.ts";
import { type NodeObject, specPodCidrs, statusAddresses } from "./overlay/node.ts";
import type { Expression } from "./podcidr/expression.ts";
import { type PodRange, podRange } from "./podcidr/ranges.ts";

/** A link as the plan needs it. */
export interface NodeLink {
  name: string;
  /** `wireguard`, `dummy`, `veth`, …; undefined for a physical link, and for lo. */
  kind: string | undefined;
  mtu: number;
  addresses: {
    address: string;
    length: number;
    global: boolean;
    /** Why it may not be there tomorrow: temporary (RFC 8981), deprecated, or a duplicate of another host's. */
    flaw: "temporary" | "deprecated" | "duplicate" | undefined;
  }[];
}

export interface OwnSettings {
  linkName: string;
  nodeIpInterfaces: readonly string[];
  /** Those that the kernel has. */
  families: readonly Family[];
  /** Empty: all. */
  allowedPodCidrs: readonly string[];
  podCidrSource: Record<Family, "none" | "spec" | "file" | "expression">;
  /** Of families that are switched off, the prefixes that there were: an interface may have lost those of its source. */
  before?: ReadonlyMap<Family, readonly string[]>;
  podCidrExpression: Expression | undefined;
  /** Content of POD_CIDR_SOURCE_PATH, if a source is `file`. */
  podCidrFile: { path: string; content: string | undefined } | undefined;
}

// ptp names the host's side of a pod veth<8 hex digits>; its address is the pods' gateway.
const podLink = /^veth[0-9a-f]{8}$/;

export function isPodLink(name: string): boolean {
  return podLink.test(name);
}

/** The links that are the node's own, not the tunnel's and not pods'. */
export function nodeLinks<T extends NodeLink>(links: readonly T[], tunnel: string): T[] {
  return links.filter((link) => link.name !== tunnel && !isPodLink(link.name));
}

/**
 * The links that have to forward what comes by them: from pods, by the tunnel, and from outside.
 * @param addresses of the node
 */
export function forwardingLinks(
  links: readonly NodeLink[],
  tunnel: string,
  addresses: readonly string[],
  defaultLinks: readonly string[],
): string[] {
  const outward = new Set(defaultLinks);
  const inward = ({ name }: NodeLink) => name === tunnel || isPodLink(name);
  const atNode = (link: NodeLink) => link.addresses.some((entry) => addresses.includes(entry.address));
  return links
    .filter((link) => inward(link) || outward.has(link.name) || atNode(link))
    .map(({ name }) => name);
}

/** The links that match, by name or, with a `*` at its end, by how it begins. */
export function matchingLinks(links: readonly { name: string }[], patterns: readonly string[]): string[] {
  return links.map((link) => link.name).filter((name) => patterns.some((pattern) => matches(name, pattern)));
}

export function matches(name: string, pattern: string): boolean {
  return pattern.endsWith("*") ? name.startsWith(pattern.slice(0, -1)) : name === pattern;
}

/**
 * The pod CIDRs of this node by their sources, each with the addresses that pods get.
 * @param taken gateways of the node's routes and API servers: of a /64 that is on the link, each may have an address
 * @returns an empty list while the Node has none yet in its spec and no other source gives any
 * @throws Error with the source, what it gave, and what would be right
 */
export function ownPodRanges(
  node: NodeObject,
  links: readonly NodeLink[],
  settings: OwnSettings,
  taken: readonly string[] = [],
): PodRange[] {
  const own = nodeLinks(links, settings.linkName);
  // Both families at once: a pod that starts with what is there already would never get an address of the other.
  if (Object.values(settings.podCidrSource).includes("spec") && specPodCidrs(node).length === 0) return [];
  let evaluated: string[] | undefined;
  const fromSource = (family: Family): readonly string[] => {
    const source = settings.podCidrSource[family];
    if (source === "none") return [];
    if (source === "expression") evaluated ??= evaluate(node, own, settings);
    const given =
      source === "spec" ? specPodCidrs(node) : source === "file" ? fromFile(settings) : (evaluated ?? []);
    const ofFamily = given.filter((prefix) => familyOf(prefix) === family);
    if (ofFamily.length === 0 && source !== "spec")
      throw new Error(
        `POD_CIDR_SOURCE_${family.toUpperCase()}=${source} gave no prefix of this family, but ${given.join(", ") || "nothing"}: correct it, or set the source to none`,
      );
    return ofFamily;
  };
  const prefixes = families.flatMap((family) => {
    const before = settings.before?.get(family);
    try {
      return fromSource(family);
    } catch (error) {
      if (before === undefined) throw error;
      return before;
    }
  });
  const [alien] = prefixes;
  if (alien !== undefined && !prefixes.some((prefix) => settings.families.includes(familyOf(prefix))))
    throw new Error(
      `pod CIDR ${alien}: this node's kernel has no IPv6 (ipv6.disable=1); boot it without that, or set POD_CIDR_SOURCE_IPV6=none`,
    );
  for (const prefix of prefixes) {
    const problem = podCidrProblem(prefix, settings.allowedPodCidrs);
    if (problem)
      throw new Error(
        `pod CIDR ${prefix}: ${problem}, and the other nodes would refuse it: correct its source`,
      );
  }
  const addresses = own.flatMap((link) => link.addresses.map((entry) => entry.address));
  // A link may lose one of the node's own for a while.
  const excluded = [...addresses, ...statusAddresses(node).internal, ...taken];
  const distinct = [...new Set(prefixes)].sort(compareAddresses);
  // In this order a prefix comes right after one that contains it.
  const inner = distinct.findIndex((prefix, index) => index > 0 && overlaps(distinct[index - 1]!, prefix));
  if (inner > 0)
    throw new Error(
      `pod CIDRs ${distinct[inner - 1]} and ${distinct[inner]} overlap, and pods would get the same address twice: correct their source`,
    );
  return distinct.map((prefix) => podRange(prefix, excluded));
}

function evaluate(node: NodeObject, links: readonly NodeLink[], settings: OwnSettings): string[] {
  const { name, labels = {}, annotations = {} } = node.metadata;
  // Sorted, as the kernel's order changes from boot to boot; and a link without any is not there, as in 0.7.
  const interfaces = Object.fromEntries(
    links
      .map(({ name, addresses }) => [
        name,
        addresses
          .filter((entry) => !entry.flaw && isUsable(entry.address))
          .sort((a, b) => compareAddresses(a.address, b.address) || a.length - b.length)
          .map((entry) => `${entry.address}/${entry.length}`),
      ])
      .filter(([, prefixes]) => prefixes?.length),
  );
  return settings.podCidrExpression?.evaluate({ interfaces, node: { name, labels, annotations } }) ?? [];
}

function fromFile({ podCidrFile }: OwnSettings): string[] {
  const { path = "", content } = podCidrFile ?? {};
  if (content === undefined)
    throw new Error(`pod CIDR file ${path} is not there: write it, one prefix a line`);
  return content.split("\n").flatMap((line, index) => {
    const text = line.replace(/#.*/, "").trim();
    if (text === "") return [];
    const prefix = parsePrefix(text);
    if (prefix === undefined)
      throw new Error(
        `pod CIDR file ${path}, line ${index + 1}: ${JSON.stringify(text)} is not a prefix such as 10.1.0.0/24 or 2001:db8::/64`,
      );
    return prefix;
  });
}
