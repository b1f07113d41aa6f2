/**
 * The desired state of this one node: plain data, from what the cluster says and what the node has. It is kept, and a
 * change of one node costs what that node adds to it; the first plan is the same with all nodes changed.
 */
import {
  compareAddresses,
  contains,
  type Family,
  families,
  familyOf,
  hostPrefix,
  overlaps,
} from "../net/address.ts";
import { PrefixIndex, type Underlay } from "../net/lookup.ts";
import { type Mark, type ReadonlyTable, Table } from "../net/table.ts";
import { type CniList, cniList } from "./cni.ts";
import { Contents } from "./contents.ts";
import { type Contribution, contributionOf, type Peer, type Surroundings } from "./contribution.ts";
import { firewall } from "./firewall/firewall.ts";
import type { PlannedFirewall } from "./firewall/model.ts";
import { Claims, type OwnClaims, type Standing } from "./overlay/claims.ts";
import type { NodeRecord } from "./overlay/node.ts";
import { podTable, type Route, type Rule, rules } from "./overlay/routes.ts";
import type { PodRange } from "./podcidr/ranges.ts";

export type { Peer } from "./contribution.ts";

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

/** Its tables are the same from plan to plan, so that what changed in them can be told; they are not sorted. */
export interface Desired {
  link: { mtu: number; addresses: string[] } | undefined;
  /** By public key. */
  peers: ReadonlyTable<Peer>;
  /** By place. */
  routes: ReadonlyTable<Route>;
  rules: Rule[];
  firewall: PlannedFirewall;
  cni: CniList | undefined;
  /** By node name, what of it does not hold and why. */
  problems: ReadonlyTable<readonly string[]>;
}

export interface PlanInput {
  own: OwnNode;
  /** By name. */
  nodes: ReadonlyTable<NodeRecord>;
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
  underlay: Underlay;
  /** Pod CIDRs of nodes that left a short while ago, and addresses of theirs that lie inside. */
  departed: readonly string[];
  /** Addresses of the API server. */
  reserved: readonly string[];
  /** Whether `nodes` are all. */
  whole: boolean;
}

// WireGuard's 32 bytes + UDP 8 + IPv6 40, which leaves a multiple of 16 for its padding on a 1500 underlay.
const tunnelOverhead = 80;
// A link with less has no IPv6 (RFC 8200, 5). On an underlay of less than 1360 the tunnel's packets are fragmented.
const ipv6Least = 1280;

/** What this node contributes itself, and what is sent to nobody. No node has such a name. */
const [ownPart, contestedPart] = [" own", " contested"];

/** Kept from plan to plan. */
export class Plan {
  readonly #first: Standing;
  #claims: Claims | undefined;
  /** What claims and contributions follow from beside the nodes. */
  #context: Context | undefined;
  #wasWhole = false;
  /** How far the nodes are taken over. */
  #mark: Mark | undefined;
  /** Prefixes that several claim and none holds. */
  #contested: readonly string[] = [];
  readonly #contents = new Contents();
  readonly #problems = new Table<readonly string[]>((a, b) => Bun.deepEquals(a, b));

  /** @param standing what decides which of two claims counts: what is in the tunnel before the first plan */
  constructor(standing: Standing) {
    this.#first = standing;
  }

  /** Who holds what now: a copy. */
  get standing(): Standing {
    return this.#claims?.standing ?? this.#first;
  }

  update(input: PlanInput): Desired {
    const context = contextOf(input);
    const { claims, changed } = this.#settle(input, context);
    const contents = this.#contents;
    const inTunnel = (value: string) => context.tunnelled.includes(familyOf(value));
    const contested = [...claims.contested.podCidrs].filter(inTunnel).sort(compareAddresses);
    // Where an endpoint lies in one, its node's contribution is another one.
    const all = !Bun.deepEquals(contested, this.#contested);
    this.#contested = contested;
    const surroundings = {
      ...context,
      port: input.settings.port,
      contested: new PrefixIndex(contested.map((prefix) => ({ prefix }))),
      excepted: new Set([...input.reserved, ...input.underlay.gateways]),
    };
    for (const name of all ? new Set([...changed, ...input.nodes.keys()]) : changed) {
      const node = claims.get(name);
      const contribution = node && contributionOf(node, surroundings);
      contents.put(name, contribution);
      const problems = node ? [...node.record.problems, ...node.refused] : [];
      if (contribution?.peer && contribution.peer.endpoint === undefined) problems.push(noEndpoint(input));
      if (problems.length > 0) this.#problems.set(name, problems);
      else this.#problems.delete(name);
    }
    const addresses = [...claims.contested.addresses].filter(
      // The API server speaks TLS: better reached as any host outside than not at all.
      (address) => inTunnel(address) && !input.reserved.includes(address),
    );
    const blocked = { podCidrs: contested, addresses };
    contents.put(contestedPart, contestedContribution(blocked, surroundings, contents));
    contents.put(ownPart, ownContribution(input, surroundings, contents));
    return this.#desired(input, context);
  }

  /** Takes over what changed of the nodes. @returns the names of those that are settled in another way than before */
  #settle(input: PlanInput, context: Context): { claims: Claims; changed: ReadonlySet<string> } {
    const { nodes, whole } = input;
    const known = this.#claims;
    const changes = nodes.changedSince(this.#mark);
    this.#mark = nodes.mark();
    const unchanged = changes !== "all" && changes.size === 0;
    // What is held for nodes that are not known yet is held until one more is known.
    const goesOn = this.#wasWhole === whole && (whole || unchanged);
    if (known && goesOn && Bun.deepEquals(context, this.#context)) {
      const names = changes === "all" ? this.#names(nodes) : changes;
      const records = Array.from(names, (name) => [name, nodes.get(name)] as const).filter(
        ([name, record]) => known.get(name)?.record !== record,
      );
      return { claims: known, changed: known.update(records) };
    }
    this.#context = context;
    this.#wasWhole = whole;
    const claims = new Claims({ ...context.own, whole }, this.standing);
    claims.update(nodes.entries());
    this.#claims = claims;
    return { claims, changed: this.#names(nodes) };
  }

  /** Of all nodes that there are, or that were there. */
  #names(nodes: ReadonlyTable<NodeRecord>): Set<string> {
    return new Set([...this.#contents.contributors(), ...nodes.keys()]);
  }

  #desired(input: PlanInput, context: Context): Desired {
    const { own, settings } = input;
    const { tunnelled } = context;
    const inTunnel = ({ subnet }: PodRange) => tunnelled.includes(familyOf(subnet));
    const inner = own.podRanges.filter(inTunnel);
    const least = inner.some(({ subnet }) => familyOf(subnet) === "ipv6") ? ipv6Least : 0;
    const tunnel = tunnelled.length > 0;
    const mtu = tunnel ? Math.max(input.underlayMtu - tunnelOverhead, least) : input.underlayMtu;
    const addresses = inner.map(({ gateway }) => hostPrefix(gateway)).sort(compareAddresses);
    const { peers, routes, sets } = this.#contents;
    return {
      link: tunnel ? { mtu, addresses } : undefined,
      peers,
      routes,
      rules: rules(tunnelled, context.own.podCidrs),
      firewall: { ...firewall({ ...settings, link: settings.linkName, tunnelled }), sets },
      cni: own.podRanges.length > 0 ? cniList(own.podRanges, mtu) : undefined,
      problems: this.#problems,
    };
  }
}

/** What claims and contributions follow from, beside the nodes and settings of the firewall. */
interface Context {
  own: Omit<OwnClaims, "whole">;
  /** Families in which this node can reach a peer. */
  reaches: readonly Family[];
  /** Families whose pods are in the tunnel. */
  tunnelled: readonly Family[];
  port: number;
  tunnelFamilies: readonly Family[];
}

function contextOf({ own, settings, underlay, reserved }: PlanInput): Context {
  const { gateways, defaultGateways, onLink } = underlay;
  const { tunnelFamilies, nativeRouting, allowedPodCidrs, port } = settings;
  const reaches = tunnelFamilies.filter((family) =>
    own.endpoints.some((address) => familyOf(address) === family),
  );
  return {
    own: {
      name: own.name,
      publicKey: own.publicKey,
      podCidrs: own.podRanges.map((range) => range.subnet),
      addresses: own.addresses,
      bounds: {
        ...{ gateways, defaultGateways, onLink },
        ownAddresses: own.onLinks,
        apiServer: reserved,
        allowed: allowedPodCidrs,
      },
      reaches,
    },
    reaches,
    tunnelled: families.filter((family) => !nativeRouting[family]),
    port,
    tunnelFamilies,
  };
}

/** What is sent to nobody. */
function contestedContribution(
  { podCidrs, addresses }: { podCidrs: readonly string[]; addresses: readonly string[] },
  { contested, excepted }: Surroundings,
  contents: Contents,
): Contribution {
  const around = new Set<string>();
  for (const address of excepted) for (const { prefix } of contested.around(address)) around.add(prefix);
  return {
    peer: undefined,
    // Packets for them would leave in the clear.
    routes: podCidrs.map((prefix) => ({ type: "unreachable", prefix, table: podTable })),
    sets: {
      // But what there is in one that this node has to reach.
      remote: podCidrs.filter((prefix) => contents.blocked(prefix) === 0 && !around.has(prefix)),
      // These have no route in the tunnel: pods' packets to them are dropped.
      nodes: addresses,
    },
    blocked: [],
  };
}

/** What this node has itself, and what is left of nodes that departed. */
function ownContribution(
  { own, settings, departed, underlay }: PlanInput,
  { tunnelled, contested, excepted }: Surroundings,
  contents: Contents,
): Contribution {
  const inTunnel = (value: string) => tunnelled.includes(familyOf(value));
  const podCidrs = own.podRanges.map((range) => range.subnet);
  const isPrefix = (value: string) => value.includes("/");
  const left = departed.filter(
    (value) => isPrefix(value) && inTunnel(value) && !podCidrs.some((prefix) => overlaps(prefix, value)),
  );
  const leftPrefixes = new PrefixIndex(left.map((prefix) => ({ prefix })));
  const isRemote = (address: string) =>
    inTunnel(address) &&
    (contents.isRemote(address) || [leftPrefixes, contested].some((index) => index.longest(address)));
  // One that left the cluster may still run, and its kubelet be about to register it again.
  const outside = [...excepted, ...departed.filter((value) => !isPrefix(value))];
  const hosts = [...own.endpoints, ...own.onLinks, ...underlay.gateways];
  return {
    peer: undefined,
    routes: [
      // Whoever routes them: what comes for a dead address would go back by the default route, and so on.
      ...podCidrs.map((prefix): Route => ({ type: "unreachable", prefix, table: "main" })),
      ...left.map((prefix): Route => ({ type: "unreachable", prefix, table: podTable })),
      ...outside
        .filter(isRemote)
        .map((address): Route => ({ type: "throw", prefix: hostPrefix(address), table: podTable })),
    ],
    sets: {
      own: podCidrs,
      keep: settings.nonMasqueradeCidrs,
      hosts: [
        ...hosts.filter((address) => podCidrs.some((prefix) => contains(prefix, address))),
        // A provider's router, say, inside of a pod CIDR that is a part of a prefix on our link.
        ...[...excepted].filter((address) => contents.isRemote(address)),
      ],
    },
    blocked: [],
  };
}

function noEndpoint({ own, settings }: PlanInput): string {
  const has = [...new Set(own.endpoints.map(familyOf))].join(" and ") || "no address";
  return `none of its addresses has a family that this node has too (${has}) and WG_IP_FAMILY allows (${settings.tunnelFamilies.join(", ")})`;
}
