/**
 * What the firewall of this node should do, as rules that say what they mean. The backends write them down in their
 * own words; both do the same, and the same packets test them.
 */
import { compareAddresses, type Family, families } from "../../net/address.ts";

/** Our fwmark bit: a packet from an own pod that goes to another node by the tunnel. */
export const markBit = "0x1000000";
/** Our bit of a connection's mark: packets of it went through the tunnel, from or to an own pod. */
export const connectionMarkBit = "0x2000000";

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
  /**
   * `established`: part of a connection that there is, or an error about one. `direct`: part of one, new or not, and no
   * error. `invalid`: part of none that there could be, or that is tracked.
   */
  state?: "established" | "direct" | "invalid";
  /** Not the first packet of its connection, whose source stays what it is. */
  untranslated?: true;
  /** Whether the connection has our mark. A packet without a connection matches neither. */
  connectionMarked?: boolean;
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
   * `mark`, `mark-connection` and `offload` decide nothing for this packet.
   */
  verdict:
    | "pass"
    | "count"
    | "drop"
    | "mark"
    | "mark-connection"
    | "masquerade"
    | "masquerade-random"
    | "offload";
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
          ? [
              ...noPlaintext(input.link, family),
              ...marks(family),
              ...staysInTunnel(input.link, family),
              ledOn(family, input.masqueradeRandomFully),
            ]
          : []),
        ...(tunnelled && input.masquerade[family] ? unmasqueraded(input.link, family) : []),
        ...(input.flowtable ? offload(input.link, family, tunnelled, input.flowtable.packets) : []),
        ...(input.filter[family] ? filter(input.link, family, tunnelled) : []),
        ...(input.masquerade[family] ? masquerade(family, input.masqueradeRandomFully) : []),
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
  return withPodAddress.map((match) => ({
    hook: "prerouting",
    family,
    match: { from: "@own", ...match },
    verdict: "mark",
  }));
}

/** Packets that have the pod's address, or that of the tunnel's link, after all translation. */
const withPodAddress: Conditions[] = [
  { direction: "original", repliesTo: "@own" },
  { direction: "reply", destinationTranslated: false },
];

/**
 * A connection that was in the tunnel stays in it, or is dropped. When a node's address leaves the tunnel, routes send
 * the connection's packets outside, and nothing translates the pod's address in them: source NAT is decided by the first
 * packet. Addresses do not tell whether it was in the tunnel: the node is an outside host now. Nor does the packet's own
 * mark, which is for one packet, and the answers of a pod need what was seen of the other direction. So it is the
 * connection that is marked. An error about a connection marks none: whoever sends one could forge it.
 *
 * These rules precede what offloads: the packets of an offloaded flow pass no chain any more.
 */
function staysInTunnel(link: string, family: Family): Rule[] {
  const rule = (verdict: "mark-connection" | "drop", match: Conditions): Rule => ({
    hook: "forward",
    family,
    match,
    verdict,
  });
  const inTunnel: Conditions = { connectionMarked: false, state: "direct" };
  const outside: Conditions = { in: podLinks, notOut: link, connectionMarked: true, notTo: ["@own"] };
  return [
    rule("mark-connection", { in: podLinks, out: link, ...inTunnel }),
    rule("mark-connection", { in: link, out: podLinks, ...inTunnel }),
    // Others' source NAT to a node's address takes a connection out of the tunnel after its first packet, at both its
    // ends. It has no pod's address outside, and goes on.
    ...withPodAddress.map((match) => rule("drop", { ...outside, ...match })),
  ];
}

/**
 * What masquerade cannot translate is of no use outside: a packet that belongs to no connection (kubernetes#74839), and
 * one of a connection whose first packet was not translated. Such a one was in the tunnel too, and another program may
 * have overwritten the connection's mark.
 */
function unmasqueraded(link: string, family: Family): Rule[] {
  const states: Conditions[] = [{ state: "invalid" }, { direction: "original", untranslated: true }];
  return states.flatMap((state) =>
    toOutside.map((match): Rule => {
      return { hook: "forward", family, match: { notOut: link, ...match, ...state }, verdict: "drop" };
    }),
  );
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

/**
 * Own pods' packets to what is neither a pod of the cluster nor a node behind its tunnel. A router, an API server or a
 * node without a tunnel may lie inside a pod CIDR, and is outside all the same.
 */
const toOutside: Conditions[] = [
  { from: "@own", notFrom: ["@hosts"], notTo: ["@own", "@remote", "@nodes", "@keep"] },
  { from: "@own", notFrom: ["@hosts"], to: "@hosts", notTo: ["@nodes", "@keep"] },
];

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

/** Own pods' packets to the outside get the node's address. */
function masquerade(family: Family, random: boolean): Rule[] {
  return toOutside.map((match) => ({
    hook: "srcnat",
    family,
    match,
    // Ports at random: two CPUs' NAT else race for the same one (flannel#1004).
    verdict: random ? "masquerade-random" : "masquerade",
  }));
}
