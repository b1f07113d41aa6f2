/** The firewall as the nftables table `inet wigglenet`. No other table is read or touched. */
import { createHash } from "node:crypto";
import { type Family, families, familyOf } from "../../net/address.ts";
import {
  addressSets,
  connectionMarkBit,
  type Firewall,
  type Hook,
  hooks,
  markBit,
  type Rule,
  setNames,
} from "../../plan/firewall/firewall.ts";
import { $, type Command, CommandError, command } from "../command.ts";
import * as flowtable from "./flowtable.ts";

const table = "wigglenet";

export interface NftSet {
  /** As in `type ipv4_addr; flags interval`. */
  spec: string;
  elements: string[];
}

export interface NftChain {
  /** As in `type nat hook postrouting priority 100; policy accept`. */
  spec: string;
  rules: string[];
}

export interface Ruleset {
  /** As in `hook ingress priority 0`. */
  flowtables: Record<string, string>;
  sets: Record<string, NftSet>;
  chains: Record<string, NftChain>;
}

/** A ruleset as it was listed: of each rule only its comment, which is the fingerprint of its text. */
export interface ObservedRuleset {
  flowtables: Record<string, string>;
  sets: Record<string, NftSet>;
  chains: Record<string, { spec: string; fingerprints: string[] }>;
  /** Kinds of objects in the table that are neither: none of them is ours. */
  others: string[];
  /** Packets that the rules have counted which let pass; undefined if it is not known. */
  passed?: number;
}

const keyword: Record<Family, string> = { ipv4: "ip", ipv6: "ip6" };

/** Base chains; 0 is where filtering is customary, -90 follows destination NAT, -150 precedes source NAT at 100. */
const chains: Record<Hook, string> = {
  prerouting: "type filter hook prerouting priority -90; policy accept",
  input: "type filter hook input priority 0; policy accept",
  forward: "type filter hook forward priority 0; policy accept",
  postrouting: "type filter hook postrouting priority -150; policy accept",
  srcnat: "type nat hook postrouting priority 100; policy accept",
};

/** What the table should hold. */
export function ruleset({ rules, sets, devices }: Firewall): Ruleset {
  const all = setNames.flatMap((name) =>
    families.map((family) => {
      const elements = sets[name].filter((value) => familyOf(value) === family).map(bare);
      const type = family === "ipv4" ? "ipv4_addr" : "ipv6_addr";
      // A search among addresses alone takes one step, and no nft reads such a set before it changes another.
      const flags = addressSets.has(name) ? "" : "; flags interval";
      return [`${name}-${family}`, { spec: `type ${type}${flags}`, elements }] as const;
    }),
  );
  return {
    flowtables: devices ? { [flowtable.name]: flowtable.spec } : {},
    sets: Object.fromEntries(all),
    chains: Object.fromEntries(
      hooks.map((hook) => [
        hook,
        { spec: chains[hook], rules: rules.filter((rule) => rule.hook === hook).map(text) },
      ]),
    ),
  };
}

const verdicts: Record<Rule["verdict"], string> = {
  pass: "accept",
  count: "counter accept",
  drop: "counter drop",
  mark: `meta mark set meta mark or ${markBit}`,
  "mark-connection": `ct mark set ct mark or ${connectionMarkBit}`,
  masquerade: "masquerade",
  "masquerade-random": "masquerade fully-random",
  offload: `flow add @${flowtable.name}`,
};

const states = {
  established: "established,related",
  direct: "new,established",
  invalid: "invalid,untracked",
};

/** A rule as nft takes it. */
function text({ family, match, verdict }: Rule): string {
  const address = (value: string) => (value.startsWith("@") ? `${value}-${family}` : value);
  const ip = keyword[family];
  const link = (name: string) => `"${name.replace(/\+$/, "*")}"`;
  return [
    `meta nfproto ${family}`,
    ...(match.in ? [`iifname ${link(match.in)}`] : []),
    ...(match.notIn ? [`iifname != ${link(match.notIn)}`] : []),
    ...(match.out ? [`oifname ${link(match.out)}`] : []),
    ...(match.notOut ? [`oifname != ${link(match.notOut)}`] : []),
    // First what says no at the least cost: each set is a search.
    ...(match.connectionMarked === undefined
      ? []
      : [`ct mark & ${connectionMarkBit} ${match.connectionMarked ? "!=" : "=="} 0`]),
    ...(match.direction ? [`ct direction ${match.direction}`] : []),
    ...(match.destinationTranslated === undefined
      ? []
      : [`ct status & dnat ${match.destinationTranslated ? "!=" : "=="} 0`]),
    // IPS_CONFIRMED, and not IPS_SRC_NAT.
    ...(match.untranslated ? ["ct status & 0x18 == 0x8"] : []),
    ...(match.state ? [`ct state ${states[match.state]}`] : []),
    ...(match.repliesTo ? [`ct reply ${ip} daddr ${address(match.repliesTo)}`] : []),
    ...(match.repliesNotTo ?? []).map((value) => `ct reply ${ip} daddr != ${address(value)}`),
    ...(match.from ? [`${ip} saddr ${address(match.from)}`] : []),
    ...(match.notFrom ?? []).map((value) => `${ip} saddr != ${address(value)}`),
    ...(match.to ? [`${ip} daddr ${address(match.to)}`] : []),
    ...(match.notTo ?? []).map((value) => `${ip} daddr != ${address(value)}`),
    ...(match.packetsOver === undefined ? [] : [`ct packets > ${match.packetsOver}`]),
    ...(match.icmpv6 ? [`icmpv6 type ${match.icmpv6}`] : []),
    ...(match.spoofed ? ["fib saddr . iif oif missing"] : []),
    verdicts[verdict],
  ].join(" ");
}

export async function observeRuleset(): Promise<ObservedRuleset | undefined> {
  try {
    return parseRuleset(await $`nft -j list table inet ${table}`);
  } catch (error) {
    if (error instanceof CommandError && /No such file or directory/.test(error.stderr)) return undefined;
    throw error;
  }
}

type NftValue =
  | string
  | { prefix: { addr: string; len: number } }
  | { elem: { val: NftValue } }
  | { range: [string, string] };

interface NftListing {
  nftables: {
    set?: { name: string; type: string; flags?: string[]; elem?: NftValue[] };
    chain?: { name: string; type?: string; hook?: string; prio?: number; policy?: string };
    rule?: { chain: string; comment?: string; expr?: { counter?: { packets: number }; accept?: null }[] };
    flowtable?: { name: string; hook: string; prio: number };
    [other: string]: unknown;
  }[];
}

/** Parses `nft -j list table inet wigglenet`. */
export function parseRuleset(output: string): ObservedRuleset {
  const result = { flowtables: {}, sets: {}, chains: {}, others: [], passed: 0 } as Required<ObservedRuleset>;
  for (const { set, chain, rule, flowtable, metainfo, table, ...others } of (JSON.parse(output) as NftListing)
    .nftables) {
    result.others.push(...Object.keys(others));
    if (set) {
      const spec = `type ${set.type}${set.flags ? `; flags ${set.flags.join(", ")}` : ""}`;
      result.sets[set.name] = { spec, elements: (set.elem ?? []).map(element) };
    } else if (chain) {
      result.chains[chain.name] = {
        spec: `type ${chain.type} hook ${chain.hook} priority ${chain.prio}; policy ${chain.policy}`,
        fingerprints: [],
      };
    } else if (flowtable)
      result.flowtables[flowtable.name] = `hook ${flowtable.hook} priority ${flowtable.prio}`;
    else if (rule) {
      result.chains[rule.chain]?.fingerprints.push(rule.comment ?? "");
      const { expr = [] } = rule;
      if (expr.some((each) => "accept" in each))
        for (const { counter } of expr) result.passed += counter?.packets ?? 0;
    }
  }
  return result;
}

/**
 * One transaction, or none. Elements are added by declaring their set again with the new ones, and removed by flushing
 * the set and declaring it with those that stay: nft 1.0.6 reads every interval set of the host before it runs `add
 * element` or `delete element`, which takes seconds and 260 MB beside 200,000 elements of others. A table of another
 * structure than ours is replaced, which the kernel does in one step.
 */
export function diffRuleset(desired: Ruleset, observed: ObservedRuleset | undefined): Command[] {
  const lines: string[] = [];
  const on = `inet ${table}`;
  const declare = (name: string, spec: string, elements: readonly string[]) =>
    lines.push(
      `add set ${on} ${name} { ${spec};${elements.length > 0 ? ` elements = { ${elements.join(", ")} };` : ""} }`,
    );
  const kept = observed && sameStructure(desired, observed) ? observed : undefined;
  if (observed !== undefined && kept === undefined) lines.push(`delete table ${on}`);
  if (kept === undefined) lines.push(`add table ${on}`);
  const renewed = kept !== undefined && reviewed(desired, kept) ? Object.keys(desired.flowtables) : [];
  if (renewed.length > 0) lines.push(`flush chain ${on} forward`);
  for (const name of renewed) lines.push(`delete flowtable ${on} ${name}`);
  for (const [name, spec] of Object.entries(desired.flowtables))
    if (kept === undefined || renewed.length > 0) lines.push(`add flowtable ${on} ${name} { ${spec}; }`);
  for (const [name, { spec, elements: wanted }] of Object.entries(desired.sets)) {
    const present = kept?.sets[name]?.elements;
    const had = new Set(present);
    const wants = new Set(wanted);
    const added = wanted.filter((value) => !had.has(value));
    // An interval set takes no prefix that overlaps one it has: what goes, goes first, in the same transaction.
    const goes = present?.some((value) => !wants.has(value)) ?? false;
    if (goes) lines.push(`flush set ${on} ${name}`);
    if (goes ? wanted.length > 0 : present === undefined || added.length > 0)
      declare(name, spec, goes ? wanted : added);
  }
  for (const [name, { spec, rules }] of Object.entries(desired.chains)) {
    const flushed = name === "forward" && renewed.length > 0;
    const present = flushed ? [] : kept?.chains[name]?.fingerprints;
    if (present === undefined) lines.push(`add chain ${on} ${name} { ${spec}; }`);
    if (present !== undefined && Bun.deepEquals(present, rules.map(fingerprint))) continue;
    if (present !== undefined && present.length > 0) lines.push(`flush chain ${on} ${name}`);
    for (const text of rules) lines.push(`add rule ${on} ${name} ${text} comment "${fingerprint(text)}"`);
  }
  return lines.length === 0 ? [] : [{ ...command`nft -f -`, stdin: `${lines.join("\n")}\n` }];
}

/** Takes away all that is ours. */
export const removal = command`nft delete table inet ${table}`;

/**
 * Whether offloaded flows have to pass the chains again, which a new flow table makes them do. What was offloaded on its
 * way to an address that has become a node's would go on in the clear: a route of another table than the one that it
 * followed is nothing that IPv6 looks at again for. And other rules than these may have let it be offloaded: those of an
 * agent that did not mark connections.
 */
function reviewed(desired: Ruleset, { sets, chains }: ObservedRuleset): boolean {
  const nodesCame = families.some((family) => {
    const had = new Set(sets[`nodes-${family}`]?.elements);
    return desired.sets[`nodes-${family}`]?.elements.some((address) => !had.has(address));
  });
  const rules = desired.chains.forward?.rules.map(fingerprint);
  return nodesCame || !Bun.deepEquals(chains.forward?.fingerprints, rules);
}

function sameStructure(desired: Ruleset, observed: ObservedRuleset): boolean {
  const structure = ({ flowtables, sets, chains }: Ruleset | ObservedRuleset) => [
    Object.entries(flowtables).map(([name, spec]) => `${name}: ${spec}`),
    ...[sets, chains].map((objects) =>
      Object.entries(objects)
        .map(([name, { spec }]) => `${name}: ${spec}`)
        .sort(),
    ),
  ];
  return observed.others.length === 0 && Bun.deepEquals(structure(desired), structure(observed));
}

/** What is listed once `diffRuleset` is done. */
export function settledRuleset({ flowtables, sets, chains }: Ruleset): ObservedRuleset {
  const settled = Object.entries(chains).map(([name, { spec, rules }]) => [
    name,
    { spec, fingerprints: rules.map(fingerprint) },
  ]);
  return { flowtables, sets, chains: Object.fromEntries(settled), others: [] };
}

// How nft prints a rule differs between its versions; a comment is printed as it was given.
export function fingerprint(rule: string): string {
  return createHash("sha256").update(rule).digest("hex").slice(0, 12);
}

/** As nft and ipset list it: a prefix of one address without its length. */
export function bare(prefix: string): string {
  return prefix.replace(/^([\d.]+)\/32$|^(.+:.*)\/128$/, "$1$2");
}

function element(value: NftValue): string {
  if (typeof value === "string") return value;
  if ("elem" in value) return element(value.elem.val);
  if ("range" in value) return value.range.join("-");
  return `${value.prefix.addr}/${value.prefix.len}`;
}
