/**
 * What the firewall of this node should do, as rules that say what they mean. The backends write them down in their
 * own words; both do the same, and the same packets test them.
 */
import { compareAddresses, type Family, families } from "./address.ts";

/** Our fwmark bit: a packet from an own pod that goes to another node by the tunnel. */
export const markBit = "0x1000000";

/**
 * Where a rule looks at a packet: `prerouting` precedes routing; `postrouting` sees the link that the packet leaves by
 * (`output` does not, where destination NAT had it routed anew) and its source before NAT; `srcnat` is source NAT.
 */
export const hooks = ["prerouting", "input", "forward", "postrouting", "srcnat"] as const;
export type Hook = (typeof hooks)[number];

/** Sets whose members come and go with the cluster; one for each family, so that the rules never change. */
export const setNames = ["own", "remote", "hosts", "nodes", "native", "unencrypted", "keep"] as const;
export type SetName = (typeof setNames)[number];
/** Those whose members are addresses, and never prefixes. */
export const addressSets: ReadonlySet<SetName> = new Set(["hosts", "nodes", "native"]);

/** A prefix, or a set. */
type Addresses = `@${SetName}` | `${string}/${number}`;

/** All of a rule's conditions must hold; those that it does not have do not matter. */
export interface Conditions {
  /** A link; with `+` at its end, all that begin so. */
  in?: string;
  notIn?: string;
  out?: string;
  notOut?: string;
  from?: Addresses;
  notFrom?: Addresses[];
  to?: Addresses;
  notTo?: Addresses[];
  direction?: "original" | "reply";
  /** Where the connection's replies go: to its source, or to what that was translated to. */
  repliesTo?: `@${SetName}`;
  repliesNotTo?: `@${SetName}`[];
  destinationTranslated?: boolean;
  /** Part of a connection that there is, or an error about one; or of none that there could be. */
  state?: "established" | "invalid";
  /** Not the first packet of a connection. */
  confirmed?: true;
  /** The connection has had more packets than this, both ways together. */
  packetsOver?: number;
  /** Number of an ICMPv6 type. */
  icmpv6?: number;
  /** The way back to the source is not by the link that the packet came from. */
  spoofed?: true;
}

export interface Rule {
  hook: Hook;
  family: Family;
  match: Conditions;
  /**
   * `pass`: none of our further rules in this hook is asked; others' are. With `count`, how many did so can be read.
   * `offload` decides nothing for this packet.
   */
  verdict: "pass" | "count" | "drop" | "mark" | "masquerade" | "masquerade-random" | "offload";
}

export interface Firewall {
  rules: Rule[];
  sets: Record<SetName, string[]>;
  /** Links at which the packets of offloaded flows are met; undefined if nothing is to be offloaded. */
  devices: string[] | undefined;
}

export interface FirewallInput {
  link: string;
  ownPodCidrs: readonly string[];
  remotePodCidrs: readonly string[];
  /** Addresses of nodes, the own one too, and of routers that lie inside a pod CIDR (a whole on-link /64): no pods'. */
  hosts: readonly string[];
  /** Addresses of nodes whose tunnel stands. */
  nodes: readonly string[];
  /** Addresses of nodes, of families that are routed natively. */
  native: readonly string[];
  /** Pod CIDRs of nodes whose agent sends pod→node in the clear. */
  unencrypted: readonly string[];
  /** Families whose pods are in the tunnel. */
  tunnelled: readonly Family[];
  masquerade: Record<Family, boolean>;
  masqueradeRandomFully: boolean;
  nonMasqueradeCidrs: readonly string[];
  filter: Record<Family, boolean>;
  /** Links that are there, of those whose flows are to be offloaded, and after how many packets. */
  flowtable: { devices: readonly string[]; packets: number } | undefined;
}

/** Pods' links as ptp names them. */
const podLinks = "veth+";

// RFC 4890, 4.3.1: the errors without which paths break (1 to 4), and echo. Neighbour discovery is never forwarded.
const passingIcmpv6 = [1, 2, 3, 4, 128, 129];

export function firewall(input: FirewallInput): Firewall {
  const sorted = (values: readonly string[]) => [...new Set(values)].sort(compareAddresses);
  return {
    rules: families.flatMap((family) => {
      const tunnelled = input.tunnelled.includes(family);
      return [
        ...(tunnelled
          ? [...noPlaintext(input.link, family), ...marks(family), ledOn(family, input.masqueradeRandomFully)]
          : []),
        ...(tunnelled && input.masquerade[family] ? departed(input.link, family) : []),
        ...(input.flowtable ? offload(input.link, family, tunnelled, input.flowtable.packets) : []),
        ...(input.filter[family] ? filter(input.link, family, tunnelled) : []),
        ...(input.masquerade[family] ? [masquerade(family, input.masqueradeRandomFully)] : []),
      ];
    }),
    sets: {
      own: sorted(input.ownPodCidrs),
      remote: sorted(input.remotePodCidrs),
      hosts: sorted(input.hosts),
      nodes: sorted(input.nodes),
      native: sorted(input.native),
      unencrypted: sorted(input.unencrypted),
      keep: sorted(input.nonMasqueradeCidrs),
    },
    devices: input.flowtable && [...input.flowtable.devices].sort(),
  };
}

/** A packet between pods, or between a pod and a node, of different nodes is in the tunnel or nowhere. */
function noPlaintext(link: string, family: Family): Rule[] {
  const rule = (hook: Hook, verdict: "pass" | "count" | "drop", match: Conditions): Rule => ({
    hook,
    family,
    match,
    verdict,
  });
  return [
    // Of pods only: a link of that name without a pod has its own sources behind it. Neighbour discovery has others.
    ...(family === "ipv6"
      ? [
          rule("prerouting", "pass", { in: podLinks, from: "fe80::/10" }),
          rule("prerouting", "pass", { in: podLinks, from: "::/128" }),
        ]
      : []),
    rule("prerouting", "drop", { in: podLinks, notFrom: ["@own"], spoofed: true }),
    rule("postrouting", "drop", { to: "@remote", notTo: ["@hosts"], notOut: link }),
    // A Service or hostPort of ours leads what another kind of agent sends in the clear to an own pod.
    rule("forward", "drop", { from: "@remote", notFrom: ["@hosts", "@unencrypted"], notIn: link }),
    // What claims to be an own pod comes from one.
    rule("forward", "drop", { from: "@own", notFrom: ["@hosts"], notIn: podLinks }),
    // Replies of translated connections go the way they came.
    rule("postrouting", "pass", {
      notOut: link,
      from: "@own",
      to: "@nodes",
      direction: "reply",
      destinationTranslated: true,
    }),
    // Flows with a node's address as their source: masqueraded before the tunnel stood, or translated by others.
    rule("postrouting", "count", {
      notOut: link,
      from: "@own",
      to: "@nodes",
      direction: "original",
      repliesNotTo: ["@own"],
    }),
    rule("postrouting", "drop", { from: "@own", notFrom: ["@hosts"], to: "@nodes", notOut: link }),
    rule("input", "pass", { in: "lo" }),
    // Neighbour discovery (RFC 4861) comes from whoever is on the link, a router inside the own prefix too.
    ...(family === "ipv6"
      ? [133, 134, 135, 136, 137].map((icmpv6) => rule("input", "pass", { icmpv6 }))
      : []),
    rule("input", "drop", { from: "@own", notFrom: ["@hosts"], notIn: podLinks }),
    rule("input", "pass", { from: "@unencrypted" }),
    rule("input", "drop", { from: "@remote", notFrom: ["@hosts"], notIn: link }),
  ];
}

/**
 * Own pods' packets to other nodes are routed by the tunnel's table. Others may translate a connection's source after
 * its first packet was routed, as kube-proxy does with a Service's. A masquerade takes the address of the tunnel's link,
 * which is inside an own pod CIDR: so what counts is where replies go, which is the same for all packets. Whether the
 * source was translated is not: the kernel changes a port alone where two connections would be one.
 */
function marks(family: Family): Rule[] {
  return [
    { direction: "original", repliesTo: "@own" } as const,
    { direction: "reply", destinationTranslated: false } as const,
  ].map((match) => ({ hook: "prerouting", family, match: { from: "@own", ...match }, verdict: "mark" }));
}

/**
 * A flow to a node whose address has left the tunnel ends: it would go on in the clear with the pod's address, as its
 * translation is decided by the first packet. What goes outside is masqueraded, so a flow that is not was in the tunnel.
 * Nor is it of use outside if it is of no connection: then nothing translates it (kubernetes#74839).
 */
function departed(link: string, family: Family): Rule[] {
  const outside: Conditions = { notOut: link, from: "@own", notFrom: ["@hosts"], notTo: notOutside };
  const matches: Conditions[] = [
    // A node's address may lie inside its pod CIDR, and what is masqueraded have it.
    { ...outside, direction: "original", confirmed: true, repliesTo: "@own", repliesNotTo: ["@hosts"] },
    { ...outside, state: "invalid" },
  ];
  // Where they precede what offloads, past this chain.
  return matches.map((match) => ({ hook: "forward", family, match, verdict: "drop" }));
}

/**
 * Flows whose further packets go from link to link by the way that this one has, past all chains, until a route of
 * theirs changes. Decided by a packet of an own pod, whose way out is seen here; the way back, which the kernel looks up
 * by itself, without our mark, leads to that pod. What the tunnel does not carry is offloaded only where it need not.
 */
function offload(link: string, family: Family, tunnelled: boolean, packetsOver: number): Rule[] {
  const from: Conditions = { from: "@own", state: "established", packetsOver };
  const matches: Conditions[] = tunnelled
    ? [
        { ...from, in: podLinks, out: link },
        { ...from, in: podLinks, notTo: ["@remote", "@nodes"] },
      ]
    : [from];
  return matches.map((match) => ({ hook: "forward", family, match, verdict: "offload" }));
}

/** New connections to own pods from outside of the cluster: what counts is the way in, not the address. */
function filter(link: string, family: Family, tunnelled: boolean): Rule[] {
  const passing: Conditions[] = [
    { state: "established" },
    // What a Service, or a hostPort, led here.
    { destinationTranslated: true },
    { in: podLinks },
    ...(family === "ipv6" ? passingIcmpv6.map((icmpv6) => ({ icmpv6 })) : []),
    // Routed natively, another node's pods and the nodes are told by nothing but their addresses.
    ...(tunnelled ? [{ in: link }] : ([{ from: "@own" }, { from: "@remote" }, { from: "@native" }] as const)),
  ];
  return [
    ...passing.map(
      (match): Rule => ({ hook: "forward", family, match: { to: "@own", ...match }, verdict: "pass" }),
    ),
    { hook: "forward", family, match: { to: "@own" }, verdict: "drop" },
  ];
}

const notOutside: Addresses[] = ["@own", "@remote", "@nodes", "@keep"];

/**
 * What a Service leads on from another node's pod to elsewhere comes back by this node, and crosses the underlay with a
 * node's address. Of a Service with traffic policy Local kube-proxy does not translate it: it takes any pod for its own.
 */
function ledOn(family: Family, random: boolean): Rule {
  return {
    hook: "srcnat",
    family,
    match: { destinationTranslated: true, from: "@remote", notTo: ["@own"] },
    verdict: random ? "masquerade-random" : "masquerade",
  };
}

/** Own pods' packets to what is neither a pod of the cluster nor a node behind its tunnel get the node's address. */
function masquerade(family: Family, random: boolean): Rule {
  return {
    hook: "srcnat",
    family,
    match: { from: "@own", notFrom: ["@hosts"], notTo: notOutside },
    // Ports at random: two CPUs' NAT else race for the same one (flannel#1004).
    verdict: random ? "masquerade-random" : "masquerade",
  };
}
