/**
 * The chains of this node's firewall. Most packets belong to established connections: each chain first asks what decides
 * about most of them at the least cost, and a search in a set comes last. What the rules mean, without regard to cost, is
 * in `fixtures/specification.ts`; a test compares both. How many rules a packet passes is in docs/performance.md.
 */
import { type Family, families } from "../../net/address.ts";
import { type Chain, type Conditions, type Hook, hooks, type Rule, type Verdict } from "./model.ts";

/** What the chains follow from. Members of sets change none of them. */
export interface Settings {
  /** The tunnel's. */
  link: string;
  /** Families whose pods are in the tunnel. */
  tunnelled: readonly Family[];
  masquerade: Record<Family, boolean>;
  masqueradeRandomFully: boolean;
  filter: Record<Family, boolean>;
  /** Flows of more packets are offloaded; undefined: none is. */
  packetsOver: number | undefined;
}

/** Pods' links as ptp names them. */
const podLinks = "veth+";

// RFC 4890, 4.3.1: the errors without which paths break (1 to 4), and echo. Neighbour discovery is never forwarded.
const passingIcmpv6 = [1, 2, 3, 4, 128, 129];

/** The last chains that were made: as long as the settings stay, these very objects do. */
let made: { settings: string; chains: readonly Chain[] } | undefined;

export function chainsOf(all: Settings): readonly Chain[] {
  const { link, tunnelled, masquerade, masqueradeRandomFully, filter, packetsOver } = all;
  const settings = { link, tunnelled, masquerade, masqueradeRandomFully, filter, packetsOver };
  const text = JSON.stringify(settings);
  if (made?.settings !== text) made = { settings: text, chains: make(settings) };
  return made.chains;
}

function make(settings: Settings): Chain[] {
  const parts = {
    ...prerouting(settings),
    ...input(settings),
    ...forward(settings),
    ...postrouting(settings),
  };
  const base = (hook: Hook): Chain => ({ name: hook, hook, rules: parts[hook]?.[hook] ?? [] });
  const regular = hooks.flatMap((hook) =>
    Object.entries(parts[hook] ?? {}).flatMap(([name, rules]) =>
      name === hook || rules.length === 0 ? [] : [{ name, hook, rules }],
    ),
  );
  return [...hooks.map(base), ...regular];
}

/** By hook and name. */
type Chains = Partial<Record<Hook, Record<string, Rule[]>>>;

function rule(match: Conditions, verdict: Verdict): Omit<Rule, "family"> {
  return { match, verdict };
}

/** Rules that ask no address, of the families in the tunnel: of both at once, if both are. */
function ofTunnelled({ tunnelled }: Settings, ...rules: Omit<Rule, "family">[]): Rule[] {
  return tunnelled.length === families.length
    ? rules
    : tunnelled.flatMap((family) => rules.map((each) => ({ family, ...each })));
}

function ofEach(some: readonly Family[], rules: (family: Family) => Omit<Rule, "family">[]): Rule[] {
  return some.flatMap((family) => rules(family).map((each) => ({ family, ...each })));
}

/**
 * Whose packets are whose: a pod sends with its own address, or with one that leads back to it. No address of another
 * node's pod does, as table 24600 has a route for it; so no later chain has to ask again what comes from a pod.
 *
 * Own pods' packets to other nodes are routed by the tunnel's table, by a mark. Others may translate a connection's
 * source after its first packet was routed, as kube-proxy does with a Service's. A masquerade takes the address of the
 * tunnel's link, which is inside an own pod CIDR: so what counts is where replies go, which is the same for all packets.
 * Where the source is not translated they go to it. Where it is, it may have got another port alone, as the kernel does
 * where two connections would be one.
 */
function prerouting(settings: Settings): Chains {
  const { tunnelled } = settings;
  return {
    prerouting: {
      prerouting: [
        ...ofTunnelled(settings, rule({ notIn: podLinks }, "pass")),
        ...ofEach(tunnelled, (family) => [
          rule({ from: "@own" }, { goto: "from-own" }),
          // Of pods only: a link of that name without a pod has its own sources behind it. Neighbour discovery has others.
          ...(family === "ipv6"
            ? [rule({ from: "fe80::/10" }, "pass"), rule({ from: "::/128" }, "pass")]
            : []),
          rule({ spoofed: true }, "drop"),
        ]),
      ],
      "from-own": ofEach(tunnelled, () => [
        rule({ direction: "original", sourceTranslated: false }, "mark"),
        rule({ direction: "original", sourceTranslated: true, repliesTo: "@own" }, "mark"),
        rule({ direction: "reply", destinationTranslated: false }, "mark"),
      ]),
    },
  };
}

/** What comes to the node in the clear with an address from the tunnel, or with that of an own pod, is forged. */
function input(settings: Settings): Chains {
  const { link, tunnelled } = settings;
  return {
    input: {
      input: [
        ...ofTunnelled(settings, rule({ in: "lo" }, "pass"), rule({ in: podLinks }, "pass")),
        ...ofEach(tunnelled, (family) => [
          // Neighbour discovery (RFC 4861) comes from whoever is on the link, a router inside the own prefix too.
          ...(family === "ipv6" ? [rule({ icmpv6: [133, 134, 135, 136, 137] }, "pass")] : []),
          rule({ from: "@own", notFrom: ["@hosts"] }, "drop"),
          rule({ in: link }, "pass"),
          rule({ from: "@unencrypted" }, "pass"),
          rule({ from: "@remote", notFrom: ["@hosts"] }, "drop"),
        ]),
      ],
    },
  };
}

/**
 * A connection that was in the tunnel stays in it, or is dropped. When a node's address leaves the tunnel, routes send
 * the connection's packets outside, and nothing translates the pod's address in them: source NAT is decided by the first
 * packet. Addresses do not tell whether it was in the tunnel: the node is an outside host now. Nor does the packet's own
 * mark, which is for one packet, and the answers of a pod need what was seen of the other direction. So it is the
 * connection that is marked. An error about a connection marks none: whoever sends one could forge it.
 *
 * So the mark also tells what most packets need no further question for: one of an established connection that goes
 * between a pod and the tunnel, as those before it did.
 */
function forward(settings: Settings): Chains {
  const { link, tunnelled, masquerade, packetsOver } = settings;
  const native = families.filter((family) => !tunnelled.includes(family));
  const inTunnel = rule({ connectionMarked: false, state: "direct" }, "mark-connection");
  const marking = (match: Conditions) => rule({ ...match, ...inTunnel.match }, inTunnel.verdict);
  return {
    forward: {
      forward: [
        ...ofTunnelled(
          settings,
          rule({ connectionMarked: true }, { goto: "tunnelled" }),
          rule({}, { goto: "guards" }),
        ),
        ...ofEach(native, (family) => [
          ...offloads(packetsOver, { from: "@own" }),
          ...(settings.filter[family] ? nativeFilter(family) : []),
        ]),
      ],
      tunnelled: [
        ...ofTunnelled(
          settings,
          ...offloads(packetsOver, { in: podLinks, out: link }),
          rule({ in: podLinks, out: link, state: "ongoing" }, "pass"),
        ),
        ...ofEach(tunnelled, () => [rule({ in: link, out: podLinks, state: "ongoing", to: "@own" }, "pass")]),
        // Others' source NAT to a node's address takes a connection out of the tunnel after its first packet, at both its
        // ends. It has no pod's address outside, and goes on.
        ...ofEach(tunnelled, () =>
          withPodAddress.map((match) =>
            rule({ in: podLinks, notOut: link, notTo: ["@own"], ...match }, "drop"),
          ),
        ),
        ...ofTunnelled(settings, rule({}, { goto: "guards" })),
      ],
      guards: [
        ...ofTunnelled(
          settings,
          rule({ in: podLinks }, { goto: "from-pods" }),
          rule({ in: link }, { goto: "from-tunnel" }),
        ),
        ...ofEach(tunnelled, (family) => [
          // A Service or hostPort of ours leads what another kind of agent sends in the clear to an own pod.
          rule({ from: "@remote", notFrom: ["@hosts", "@unencrypted"] }, "drop"),
          // What claims to be an own pod comes from one.
          rule({ from: "@own", notFrom: ["@hosts"] }, "drop"),
          ...(settings.filter[family] ? filter(family) : []),
        ]),
      ],
      "from-pods": [
        ...ofTunnelled(settings, marking({ out: link })),
        ...ofEach(packetsOver === undefined ? [] : tunnelled, () =>
          offloads(packetsOver, { from: "@own", out: link }),
        ),
        ...ofTunnelled(settings, rule({ out: link }, "pass")),
        ...ofEach(tunnelled, (family) => [
          ...offloads(packetsOver, { from: "@own", out: podLinks, to: "@own", notTo: ["@remote", "@nodes"] }),
          rule({ out: podLinks, to: "@own" }, "pass"),
          ...(masquerade[family] ? untranslatable.map((match) => rule(match, { jump: "outward" })) : []),
          // These come after what drops: the packets of an offloaded flow pass no chain any more.
          ...offloads(packetsOver, { from: "@own", notTo: ["@remote", "@nodes"] }),
        ]),
      ],
      outward: ofEach(
        tunnelled.filter((family) => masquerade[family]),
        () => toOutside.map((match) => rule(match, "drop")),
      ),
      "from-tunnel": ofEach(tunnelled, () => [
        rule({ from: "@own", notFrom: ["@hosts"] }, "drop"),
        rule({ out: link }, "pass"),
        // Sent here for an address that this node has no more: it would go on to whoever has it now. Connection tracking
        // does not see what IPVS translates, but it sees that the answers came to this node's own gateway.
        rule({ notTo: ["@own"], destinationTranslated: false, repliesNotTo: ["@own"] }, "drop"),
        rule({ notTo: ["@own"], state: "invalid" }, "drop"),
        marking({ out: podLinks }),
      ]),
    },
  };
}

/** Packets that have the pod's address, or that of the tunnel's link, after all translation. */
const withPodAddress: Conditions[] = [
  { direction: "original", repliesTo: "@own" },
  { direction: "reply", destinationTranslated: false },
];

/**
 * What masquerade cannot translate is of no use outside: a packet that belongs to no connection (kubernetes#74839), and
 * one of a connection whose first packet was not translated. Such a one was in the tunnel too, and another program may
 * have overwritten the connection's mark.
 */
const untranslatable: Conditions[] = [{ state: "invalid" }, { direction: "original", untranslated: true }];

/**
 * Own pods' packets to what is neither a pod of the cluster nor a node behind its tunnel. A router, an API server or a
 * node without a tunnel may lie inside a pod CIDR, and is outside all the same.
 */
const toOutside: Conditions[] = [
  { from: "@own", notFrom: ["@hosts"], notTo: ["@own", "@remote", "@nodes", "@keep"] },
  { from: "@own", notFrom: ["@hosts"], to: "@hosts", notTo: ["@nodes", "@keep"] },
];

/**
 * Flows whose further packets go from link to link by the way that this one has, past all chains, until a route of
 * theirs changes. Decided by a packet of an own pod, whose way out is seen here; the way back, which the kernel looks up
 * by itself, without our mark, leads to that pod. What the tunnel does not carry is offloaded only where it need not.
 */
function offloads(packetsOver: number | undefined, match: Conditions): Omit<Rule, "family">[] {
  return packetsOver === undefined ? [] : [rule({ ...match, state: "established", packetsOver }, "offload")];
}

/** New connections to own pods from outside of the cluster: what counts is the way in, not the address. */
function filter(family: Family): Omit<Rule, "family">[] {
  return [
    rule({ state: "established" }, "pass"),
    // What a Service, or a hostPort, led here.
    rule({ destinationTranslated: true }, "pass"),
    ...(family === "ipv6" ? [rule({ icmpv6: passingIcmpv6 }, "pass")] : []),
    rule({ to: "@own" }, "drop"),
  ];
}

/** Routed natively, another node's pods and the nodes are told by nothing but their addresses. */
function nativeFilter(family: Family): Omit<Rule, "family">[] {
  const passing = [{ in: podLinks }, { from: "@own" }, { from: "@remote" }, { from: "@native" }] as const;
  const rules = filter(family);
  return [...rules.slice(0, -1), ...passing.map((match) => rule(match, "pass")), ...rules.slice(-1)];
}

/** A packet between pods, or between a pod and a node, of different nodes is in the tunnel or nowhere. */
function postrouting(settings: Settings): Chains {
  const { link, tunnelled, masquerade, masqueradeRandomFully } = settings;
  // Ports at random: two CPUs' NAT else race for the same one (flannel#1004).
  const translated = masqueradeRandomFully ? "masquerade-random" : "masquerade";
  return {
    postrouting: {
      postrouting: [
        ...ofTunnelled(settings, rule({ out: link }, "pass")),
        ...ofEach(tunnelled, () => [
          rule({ out: podLinks, to: "@own" }, "pass"),
          rule({ to: "@remote", notTo: ["@hosts"] }, "drop"),
          rule({ to: "@nodes" }, { goto: "to-nodes" }),
        ]),
      ],
      "to-nodes": ofEach(tunnelled, () => [
        rule({ notFrom: ["@own"] }, "pass"),
        // Replies of translated connections go the way they came.
        rule({ direction: "reply", destinationTranslated: true }, "pass"),
        // Flows with a node's address as their source: masqueraded before the tunnel stood, or translated by others.
        rule({ direction: "original", repliesNotTo: ["@own"] }, "count"),
        rule({ notFrom: ["@hosts"] }, "drop"),
      ]),
    },
    srcnat: {
      srcnat: ofEach(families, (family) => [
        // What a Service leads on from another node's pod to elsewhere comes back by this node, and crosses the underlay
        // with a node's address. Of a Service with traffic policy Local kube-proxy does not translate it: it takes any
        // pod for its own.
        ...(tunnelled.includes(family)
          ? [rule({ destinationTranslated: true, from: "@remote", notTo: ["@own"] }, translated)]
          : []),
        // Own pods' packets to the outside get the node's address.
        ...(masquerade[family] ? toOutside.map((match) => rule(match, translated)) : []),
      ]),
    },
  };
}
