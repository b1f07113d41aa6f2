/** The desired state of this one node: plain data, sorted, from what the cluster says and what the node has. */
import { compareAddresses, contains, type Family, families, familyOf, hostPrefix } from "../net/address.ts";
import type { Underlay } from "../net/lookup.ts";
import { type CniList, cniList } from "./cni.ts";
import { firewall } from "./firewall/firewall.ts";
import type { Firewall } from "./firewall/model.ts";
import { blocked, inside } from "./overlay/blocked.ts";
import { type SettledNode, type Standing, settle } from "./overlay/claims.ts";
import type { NodeRecord } from "./overlay/node.ts";
import { type Route, type Rule, routes, rules } from "./overlay/routes.ts";
import type { PodRange } from "./podcidr/ranges.ts";

export interface OwnNode {
  name: string;
  publicKey: string | null;
  podRanges: PodRange[];
  /** Addresses on its own links that others reach through the tunnel. */
  addresses: string[];
  /** All its addresses; their families are those in which it can reach a peer. */
  endpoints: string[];
  /** All addresses of its own links, temporary ones too. */
  onLinks: string[];
}

export interface Peer {
  /** Name of its node, for the log. */
  node: string;
  publicKey: string;
  /** `address:port`, IPv6 in brackets; undefined if no family is common: the peer may still come to us. */
  endpoint: string | undefined;
  allowedIps: string[];
}

export interface Desired {
  link: { mtu: number; addresses: string[] } | undefined;
  peers: Peer[];
  routes: Route[];
  rules: Rule[];
  firewall: Firewall;
  cni: CniList | undefined;
  /** By node name, what of it does not hold and why. */
  problems: Map<string, readonly string[]>;
  /** Who holds what now: the next plan's input. */
  standing: Standing;
}

export interface PlanInput {
  own: OwnNode;
  nodes: readonly NodeRecord[];
  settings: {
    port: number;
    tunnelFamilies: readonly Family[];
    nativeRouting: Record<Family, boolean>;
    linkName: string;
    /** Empty: all. */
    allowedPodCidrs: readonly string[];
    masquerade: Record<Family, boolean>;
    masqueradeRandomFully: boolean;
    nonMasqueradeCidrs: readonly string[];
    filter: Record<Family, boolean>;
    flowtable: { devices: readonly string[]; packets: number } | undefined;
  };
  /** Smallest MTU of the links that carry the node's addresses. */
  underlayMtu: number;
  standing: Standing;
  underlay: Underlay;
  /** Pod CIDRs of nodes that left a short while ago, and addresses of theirs that lie inside. */
  departed: readonly string[];
  /** Addresses of the API server. */
  reserved: readonly string[];
  /** Whether `nodes` are all. */
  whole: boolean;
}

export function plan(input: PlanInput): Desired {
  const { own, settings } = input;
  const ownPodCidrs = own.podRanges.map((range) => range.subnet);
  const reaches = settings.tunnelFamilies.filter((family) =>
    own.endpoints.some((address) => familyOf(address) === family),
  );
  const { underlay } = input;
  const { nodes, refused, contested, standing } = settle(
    {
      name: own.name,
      publicKey: own.publicKey,
      podCidrs: ownPodCidrs,
      addresses: own.addresses,
      bounds: {
        ...underlay,
        ownAddresses: own.onLinks,
        apiServer: input.reserved,
        allowed: settings.allowedPodCidrs,
      },
      reaches,
      whole: input.whole,
    },
    input.nodes,
    input.standing,
  );
  const problems = new Map(refused);
  for (const { name, problems: own } of input.nodes)
    if (own.length > 0) problems.set(name, [...own, ...(problems.get(name) ?? [])]);

  const tunnelled = families.filter((family) => !settings.nativeRouting[family]);
  const inTunnel = (value: string) => tunnelled.includes(familyOf(value));
  const others = [...input.reserved, ...underlay.gateways];
  const block = blocked(
    {
      podCidrs: contested.podCidrs.filter(inTunnel),
      // The API server speaks TLS: better reached as any host outside than not at all.
      addresses: contested.addresses.filter((each) => inTunnel(each) && !input.reserved.includes(each)),
    },
    () => [...input.nodes.flatMap((node) => node.endpoints), ...others],
  );
  // A provider's router, say, inside of a pod CIDR that is a part of a prefix on our link.
  const noPods = inside(
    nodes.flatMap((node) => node.podCidrs),
    () => others,
  );
  const tunnel = tunnelled.length > 0;
  const least = ownPodCidrs.some((prefix) => inTunnel(prefix) && familyOf(prefix) === "ipv6") ? ipv6Least : 0;
  const mtu = tunnel ? Math.max(input.underlayMtu - tunnelOverhead, least) : input.underlayMtu;
  const peers = (tunnel ? nodes : []).flatMap((node) => {
    const peer = peerOf(node, settings.port, reaches, inTunnel);
    if (peer && peer.endpoint === undefined)
      problems.set(node.record.name, [...(problems.get(node.record.name) ?? []), noEndpoint(input)]);
    return peer ? [peer] : [];
  });
  // A tunnel that we cannot open stands for the node's pods, which may open it, and not for what works without it.
  const reached = new Set(peers.filter((peer) => peer.endpoint !== undefined).map((peer) => peer.node));
  return {
    link: tunnel
      ? {
          mtu,
          addresses: own.podRanges
            .filter((range) => inTunnel(range.subnet))
            .map((range) => hostPrefix(range.gateway))
            .sort(compareAddresses),
        }
      : undefined,
    peers: peers.sort((a, b) => (a.publicKey < b.publicKey ? -1 : 1)),
    routes: routes({
      ownPodCidrs,
      nodes,
      reached,
      departed: input.departed,
      blocked: [...block.podCidrs, ...block.around],
      excepted: [...block.excepted, ...others],
      inTunnel,
    }),
    rules: rules(tunnelled, ownPodCidrs),
    firewall: firewall({
      link: settings.linkName,
      ownPodCidrs: outermost(ownPodCidrs),
      remotePodCidrs: outermost([...nodes.flatMap((node) => node.podCidrs), ...block.podCidrs]),
      hosts: [
        ...inside(ownPodCidrs, () => [...own.endpoints, ...own.onLinks, ...underlay.gateways]),
        ...nodes.flatMap((node) => insideOwn(node)),
        ...noPods,
      ],
      nodes: [
        ...nodes
          .filter((node) => reached.has(node.record.name))
          .flatMap((node) => node.addresses.filter(inTunnel)),
        // These have no route in the tunnel: pods' packets to them are dropped.
        ...block.addresses,
        ...block.excepted.filter((address) => !others.includes(address)),
      ],
      native: nodes.flatMap((node) => node.record.endpoints.filter((address) => !inTunnel(address))),
      unencrypted: outermost(
        nodes.filter((node) => node.record.clearToNodes).flatMap((node) => node.podCidrs),
      ),
      tunnelled,
      masquerade: settings.masquerade,
      masqueradeRandomFully: settings.masqueradeRandomFully,
      nonMasqueradeCidrs: outermost(settings.nonMasqueradeCidrs),
      filter: settings.filter,
      flowtable: settings.flowtable,
    }),
    cni: own.podRanges.length > 0 ? cniList(own.podRanges, mtu) : undefined,
    problems,
    standing: { ...standing, endpoints: new Map(nodes.flatMap((node) => wayOf(node, reaches))) },
  };
}

/** The address that a node's packets go to, by its key. */
function wayOf({ publicKey, record }: SettledNode, reaches: readonly Family[]): [string, string][] {
  const address = record.endpoints.find((candidate) => reaches.includes(familyOf(candidate)));
  return publicKey !== undefined && address !== undefined ? [[publicKey, address]] : [];
}

// WireGuard's 32 bytes + UDP 8 + IPv6 40, which leaves a multiple of 16 for its padding on a 1500 underlay.
const tunnelOverhead = 80;
// A link with less has no IPv6 (RFC 8200, 5). On an underlay of less than 1360 the tunnel's packets are fragmented.
const ipv6Least = 1280;

function peerOf(
  node: SettledNode,
  port: number,
  reaches: readonly Family[],
  inTunnel: (value: string) => boolean,
): Peer | undefined {
  if (node.publicKey === undefined) return undefined;
  const allowedIps = [...node.podCidrs, ...node.addresses.map(hostPrefix)]
    .filter(inTunnel)
    .sort(compareAddresses);
  const [[, address] = []] = wayOf(node, reaches);
  const endpoint = address && (familyOf(address) === "ipv6" ? `[${address}]:${port}` : `${address}:${port}`);
  return { node: node.record.name, publicKey: node.publicKey, endpoint, allowedIps };
}

function noEndpoint({ own, settings }: PlanInput): string {
  const has = [...new Set(own.endpoints.map(familyOf))].join(" and ") || "no address";
  return `none of its addresses has a family that this node has too (${has}) and WG_IP_FAMILY allows (${settings.tunnelFamilies.join(", ")})`;
}

/** Its addresses that lie in its own pod CIDRs. */
function insideOwn({ record, addresses, podCidrs }: SettledNode): string[] {
  return [...record.endpoints, ...addresses].filter((address) =>
    podCidrs.some((prefix) => contains(prefix, address)),
  );
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)].sort(compareAddresses);
}

/** The prefixes that no other contains. */
export function outermost(prefixes: readonly string[]): string[] {
  const result: string[] = [];
  // In this order a prefix comes right after those that contain it.
  for (const prefix of unique(prefixes)) {
    const last = result.at(-1);
    if (last === undefined || !contains(last, prefix)) result.push(prefix);
  }
  return result;
}
