/**
 * The firewall as plain data: one table of chains, sets and verdict maps. It says what is meant; the backends write it
 * down in their own words. All do the same, and the same packets test them.
 */
import type { Family } from "../../net/address.ts";
import { sortedKeys } from "../../net/sortedkeys.ts";
import type { ReadonlyTable } from "../../net/table.ts";

/** Our fwmark bit: a packet from an own pod that goes to another node by the tunnel. */
export const markBit = "0x1000000";
/** Our bit of a connection's mark: packets of it went through the tunnel, from or to an own pod. */
export const connectionMarkBit = "0x2000000";

/**
 * Where a base chain looks at a packet: `prerouting` precedes routing; `postrouting` sees the link that the packet leaves
 * by (`output` does not, where destination NAT had it routed anew) and its source before NAT; `srcnat` is source NAT.
 */
export const hooks = ["prerouting", "input", "forward", "postrouting", "srcnat"] as const;
export type Hook = (typeof hooks)[number];

/** Sets whose members come and go with the cluster, so that the rules never change. */
export const setNames = ["own", "remote", "hosts", "nodes", "native", "unencrypted", "keep"] as const;
export type SetName = (typeof setNames)[number];

/** A prefix, or a set of which the members of the rule's own family count. */
type Addresses = `@${string}` | `${string}/${number}`;

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
  sourceTranslated?: boolean;
  /**
   * `ongoing`: part of a connection that there is. `established`: part of a connection that there is, or an error about one. `direct`: part of one, new or not, and no
   * error. `invalid`: part of none that there could be, or that is tracked.
   */
  state?: "ongoing" | "established" | "direct" | "invalid";
  /** Not the first packet of its connection, whose source stays what it is. */
  untranslated?: true;
  /** Whether the connection has our mark. A packet without a connection matches neither. */
  connectionMarked?: boolean;
  /** The connection has had more packets than this, both ways together. */
  packetsOver?: number;
  /** Numbers of ICMPv6 types. */
  icmpv6?: readonly number[];
  /** The way back to the source is not by the link that the packet came from. */
  spoofed?: true;
}

/** Another chain of the same hook: `jump` comes back after it, at its end or at `return`; `goto` does not. */
export type Transfer = { jump: string } | { goto: string };

/**
 * `pass`: none of our further rules in this hook is asked; others' are. With `count`, how many did so can be read. Both
 * only in base chains and in chains that are reached by `goto` alone: iptables cannot leave two chains at once.
 * `mark`, `mark-connection` and `offload` decide nothing for this packet.
 */
export type Verdict =
  | "pass"
  | "count"
  | "drop"
  | "return"
  | "mark"
  | "mark-connection"
  | "masquerade"
  | "masquerade-random"
  | "offload"
  | Transfer
  /** To where the map sends the packet's source or destination; on with the next rule if it is not in there. */
  | { map: string; by: "source" | "destination" };

export interface Rule {
  /** Undefined: of both. */
  family?: Family;
  match: Conditions;
  verdict: Verdict;
}

export interface Chain {
  /** A base chain has the name of its hook. A regular one is at most 18 characters long, as names in iptables are short. */
  name: string;
  /** Of a regular chain: the hook of the chains that lead to it. */
  hook: Hook;
  rules: Rule[];
}

/** `addresses`: no member is a prefix; a search among them takes one step. */
export type SetKind = "addresses" | "prefixes";

export interface Firewall {
  /** Base chains first. Never changed: who has seen these very objects need not look at them again. */
  chains: readonly Chain[];
  /** Members of both families by the set's name, which has at most 16 characters. */
  sets: Record<SetName, string[]> & Record<string, string[]>;
  /** Of each set. */
  kinds: Readonly<Record<string, SetKind>>;
  /** By the map's name, where each address leads to. */
  maps: Record<string, Record<string, Transfer>>;
  /** Links at which the packets of offloaded flows are met; undefined if nothing is to be offloaded. */
  devices: string[] | undefined;
}

/** A firewall as it is planned: its sets are tables that know what changed in them, and that are not sorted. */
export type PlannedFirewall = Omit<Firewall, "sets"> & {
  sets: Readonly<Record<SetName, ReadonlyTable<true>>>;
};

/** With the members of its sets as lists, sorted. A set that has not changed since has the very same list. */
export function listed(planned: PlannedFirewall): Firewall {
  const lists = Object.entries(planned.sets).map(([name, members]) => [name, sortedKeys(members)]);
  return { ...planned, sets: Object.fromEntries(lists) };
}

/** What is wrong with a firewall: names that lead nowhere, and what not every backend can say. Empty if nothing is. */
export function mistakes({ chains, sets, kinds, maps }: Firewall): string[] {
  const byName = new Map(chains.map((chain) => [chain.name, chain]));
  const found = Object.keys(sets).flatMap((name) => [
    ...(kinds[name] === undefined ? [`set ${name} has no kind`] : []),
    ...(name.length > 16 ? [`the name of set ${name} is longer than 16 characters`] : []),
  ]);
  const jumpedTo = new Set<string>();
  const lead = (from: Chain, where: Transfer) => {
    const name = "jump" in where ? where.jump : where.goto;
    const to = byName.get(name);
    if (to === undefined) found.push(`${from.name} leads to ${name}, which is not there`);
    else if (to.hook !== from.hook) found.push(`${from.name} leads to ${name} of another hook`);
    if ("jump" in where) jumpedTo.add(name);
  };
  for (const chain of chains) {
    if (chain.name.length > 18) found.push(`the name of chain ${chain.name} is longer than 18 characters`);
    for (const { verdict } of chain.rules) {
      if (typeof verdict === "string") continue;
      if (!("map" in verdict)) lead(chain, verdict);
      else if (maps[verdict.map] === undefined)
        found.push(`${chain.name} asks map ${verdict.map}, which is not there`);
      else for (const where of Object.values(maps[verdict.map] ?? {})) lead(chain, where);
    }
    for (const { match } of chain.rules)
      for (const name of setsOf(match))
        if (sets[name] === undefined) found.push(`${chain.name} asks set ${name}, which is not there`);
  }
  for (const { name, rules } of chains)
    if (jumpedTo.has(name) && rules.some(({ verdict }) => verdict === "pass" || verdict === "count"))
      found.push(`${name}, which is jumped to, lets pass`);
  return found;
}

function setsOf({ from, to, notFrom = [], notTo = [], repliesTo, repliesNotTo = [] }: Conditions): string[] {
  return [from, to, repliesTo, ...notFrom, ...notTo, ...repliesNotTo].flatMap((each) =>
    each?.startsWith("@") ? each.slice(1) : [],
  );
}
