/** What the firewall of this node should do. */
import { type Family, families } from "../../net/address.ts";
import {
  type Chain,
  type Conditions,
  type Firewall,
  type Hook,
  hooks,
  type Rule,
  type SetKind,
  type SetName,
} from "./model.ts";

export const setKinds: Readonly<Record<SetName, SetKind>> = {
  own: "prefixes",
  remote: "prefixes",
  hosts: "addresses",
  nodes: "addresses",
  native: "addresses",
  unencrypted: "prefixes",
  keep: "prefixes",
};

/** A rule and the base chain that it belongs to. */
type HookRule = Rule & { hook: Hook };

/** What a firewall's chains follow from. */
export interface FirewallSettings {
  link: string;
  /** Families whose pods are in the tunnel. */
  tunnelled: readonly Family[];
  masquerade: Record<Family, boolean>;
  masqueradeRandomFully: boolean;
  filter: Record<Family, boolean>;
  /** Links that are there, of those whose flows are to be offloaded, and after how many packets. */
  flowtable: { devices: readonly string[]; packets: number } | undefined;
}

/** Pods' links as ptp names them. */
const podLinks = "veth+";

// RFC 4890, 4.3.1: the errors without which paths break (1 to 4), and echo. Neighbour discovery is never forwarded.
const passingIcmpv6 = [1, 2, 3, 4, 128, 129];

/** All but the members of its sets. */
export function firewall(settings: FirewallSettings): Omit<Firewall, "sets"> {
  return {
    chains: chainsOf(settings),
    kinds: setKinds,
    maps: {},
    devices: settings.flowtable && [...settings.flowtable.devices].sort(),
  };
}

/** The last chains that were made: they follow from settings alone, and are the same objects as long as these stay. */
let made: { settings: string; chains: readonly Chain[] } | undefined;

function chainsOf(input: FirewallSettings): readonly Chain[] {
  const { link, tunnelled, masquerade: masquerades, masqueradeRandomFully: random, filter: filters } = input;
  const packets = input.flowtable?.packets;
  const settings = JSON.stringify([link, tunnelled, masquerades, random, filters, packets]);
  if (made?.settings === settings) return made.chains;
  const rules = families.flatMap((family) => {
    const inTunnel = tunnelled.includes(family);
    return [
      ...(inTunnel
        ? [
            ...noPlaintext(link, family),
            ...marks(family),
            ...staysInTunnel(link, family),
            ledOn(family, random),
          ]
        : []),
      ...(inTunnel && masquerades[family] ? unmasqueraded(link, family) : []),
      ...(packets === undefined ? [] : offload(link, family, inTunnel, packets)),
      ...(filters[family] ? filter(link, family, inTunnel) : []),
      ...(masquerades[family] ? masquerade(family, random) : []),
    ];
  });
  const chains = hooks.map((hook) => ({
    name: hook,
    hook,
    rules: rules.filter((rule) => rule.hook === hook).map(({ hook: _, ...rule }) => rule),
  }));
  made = { settings, chains };
  return chains;
}

/** A packet between pods, or between a pod and a node, of different nodes is in the tunnel or nowhere. */
function noPlaintext(link: string, family: Family): HookRule[] {
  const rule = (hook: Hook, verdict: "pass" | "count" | "drop", match: Conditions): HookRule => ({
    hook,
    family,
    match,
    verdict,
  });
  const passingOn: Conditions = { in: link, notOut: link, notTo: ["@own"] };
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
    // Sent here for an address that this node has no more: it would go on to whoever has it now.
    rule("forward", "drop", { ...passingOn, destinationTranslated: false }),
    rule("forward", "drop", { ...passingOn, state: "invalid" }),
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
function marks(family: Family): HookRule[] {
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
function staysInTunnel(link: string, family: Family): HookRule[] {
  const rule = (verdict: "mark-connection" | "drop", match: Conditions): HookRule => ({
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
function unmasqueraded(link: string, family: Family): HookRule[] {
  const states: Conditions[] = [{ state: "invalid" }, { direction: "original", untranslated: true }];
  return states.flatMap((state) =>
    toOutside.map((match): HookRule => {
      return { hook: "forward", family, match: { notOut: link, ...match, ...state }, verdict: "drop" };
    }),
  );
}

/**
 * Flows whose further packets go from link to link by the way that this one has, past all chains, until a route of
 * theirs changes. Decided by a packet of an own pod, whose way out is seen here; the way back, which the kernel looks up
 * by itself, without our mark, leads to that pod. What the tunnel does not carry is offloaded only where it need not.
 */
function offload(link: string, family: Family, tunnelled: boolean, packetsOver: number): HookRule[] {
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
function filter(link: string, family: Family, tunnelled: boolean): HookRule[] {
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
      (match): HookRule => ({ hook: "forward", family, match: { to: "@own", ...match }, verdict: "pass" }),
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
function ledOn(family: Family, random: boolean): HookRule {
  return {
    hook: "srcnat",
    family,
    match: { destinationTranslated: true, from: "@remote", notTo: ["@own"] },
    verdict: random ? "masquerade-random" : "masquerade",
  };
}

/** Own pods' packets to the outside get the node's address. */
function masquerade(family: Family, random: boolean): HookRule[] {
  return toOutside.map((match) => ({
    hook: "srcnat",
    family,
    match,
    // Ports at random: two CPUs' NAT else race for the same one (flannel#1004).
    verdict: random ? "masquerade-random" : "masquerade",
  }));
}
