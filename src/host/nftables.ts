/** The table `inet wigglenet`: the mark of the contract, and masquerade. No other table is read or touched. */
import { createHash } from "node:crypto";
import { type Family, families, familyOf } from "../plan/address.ts";
import { type Firewall, markBit } from "../plan/desired.ts";
import { $, type Command, CommandError, command } from "./run.ts";

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
  sets: Record<string, NftSet>;
  chains: Record<string, NftChain>;
}

/** A ruleset as it was listed: of each rule only its comment, which is the fingerprint of its text. */
export interface ObservedRuleset {
  sets: Record<string, NftSet>;
  chains: Record<string, { spec: string; fingerprints: string[] }>;
  /** Kinds of objects in the table that are neither: none of them is ours. */
  others: string[];
}

const keyword: Record<Family, string> = { ipv4: "ip", ipv6: "ip6" };
const addressType: Record<Family, string> = { ipv4: "ipv4_addr", ipv6: "ipv6_addr" };

/** What the table should hold. */
export function ruleset(firewall: Firewall): Ruleset {
  const sets: Ruleset["sets"] = {};
  for (const family of families) {
    const of = (values: readonly string[]) => values.filter((value) => familyOf(value) === family);
    sets[`pods-${family}`] = {
      spec: `type ${addressType[family]}; flags interval`,
      elements: of(firewall.podCidrs).map(bare),
    };
    sets[`nodes-${family}`] = { spec: `type ${addressType[family]}`, elements: of(firewall.nodes) };
  }
  const rule = (prefix: string, rest: string) => `${keyword[familyOf(prefix)]} saddr ${prefix} ${rest}`;
  const mark = `meta mark set meta mark or ${markBit}`;
  return {
    sets,
    chains: {
      // After destination NAT, which is at -100: what kube-proxy and portmap made of the packet is what is routed.
      prerouting: {
        spec: "type filter hook prerouting priority -90; policy accept",
        rules: firewall.marked.flatMap((prefix) => [
          rule(prefix, `ct direction original ct status & snat == 0 ${mark}`),
          rule(prefix, `ct direction reply ct status & dnat == 0 ${mark}`),
        ]),
      },
      postrouting: {
        spec: "type nat hook postrouting priority 100; policy accept",
        rules: firewall.masqueraded.map((prefix) => {
          const family = familyOf(prefix);
          const to = `${keyword[family]} daddr`;
          // Ports at random: two nodes' NAT, or two CPUs', else race for the same one (flannel#1004).
          return rule(prefix, `${to} != @pods-${family} ${to} != @nodes-${family} masquerade fully-random`);
        }),
      },
    },
  };
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
    rule?: { chain: string; comment?: string };
    [other: string]: unknown;
  }[];
}

/** Parses `nft -j list table inet wigglenet`. */
export function parseRuleset(output: string): ObservedRuleset {
  const result: ObservedRuleset = { sets: {}, chains: {}, others: [] };
  for (const { set, chain, rule, metainfo, table, ...others } of (JSON.parse(output) as NftListing)
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
    } else if (rule) result.chains[rule.chain]?.fingerprints.push(rule.comment ?? "");
  }
  return result;
}

/**
 * One transaction, or none. A set's change is its elements that differ; where the table has another structure than
 * ours, it is made anew, which the kernel does in one step.
 */
export function diffRuleset(desired: Ruleset, observed: ObservedRuleset | undefined): Command[] {
  const lines: string[] = [];
  const on = `inet ${table}`;
  const elements = (verb: string, name: string, values: readonly string[]) => {
    if (values.length > 0) lines.push(`${verb} element ${on} ${name} { ${values.join(", ")} }`);
  };
  const kept = observed && sameStructure(desired, observed) ? observed : undefined;
  if (observed !== undefined && kept === undefined) lines.push(`delete table ${on}`);
  if (kept === undefined) lines.push(`add table ${on}`);
  for (const [name, { spec, elements: wanted }] of Object.entries(desired.sets)) {
    const present = kept?.sets[name]?.elements;
    if (present === undefined) lines.push(`add set ${on} ${name} { ${spec}; }`);
    const had = new Set(present);
    const wants = new Set(wanted);
    // An interval set takes no prefix that overlaps one it has: what goes, goes first, in the same transaction.
    elements("delete", name, present?.filter((value) => !wants.has(value)) ?? []);
    elements(
      "add",
      name,
      wanted.filter((value) => !had.has(value)),
    );
  }
  for (const [name, { spec, rules }] of Object.entries(desired.chains)) {
    const present = kept?.chains[name]?.fingerprints;
    if (present === undefined) lines.push(`add chain ${on} ${name} { ${spec}; }`);
    if (present !== undefined && Bun.deepEquals(present, rules.map(fingerprint))) continue;
    if (present !== undefined && present.length > 0) lines.push(`flush chain ${on} ${name}`);
    for (const text of rules) lines.push(`add rule ${on} ${name} ${text} comment "${fingerprint(text)}"`);
  }
  return lines.length === 0 ? [] : [{ ...command`nft -f -`, stdin: `${lines.join("\n")}\n` }];
}

function sameStructure(desired: Ruleset, observed: ObservedRuleset): boolean {
  const structure = ({ sets, chains }: Ruleset | ObservedRuleset) =>
    [sets, chains].map((objects) =>
      Object.entries(objects)
        .map(([name, { spec }]) => `${name}: ${spec}`)
        .sort(),
    );
  return observed.others.length === 0 && Bun.deepEquals(structure(desired), structure(observed));
}

/** What is listed once `diffRuleset` is done. */
export function settledRuleset({ sets, chains }: Ruleset): ObservedRuleset {
  const settled = Object.entries(chains).map(([name, { spec, rules }]) => [
    name,
    { spec, fingerprints: rules.map(fingerprint) },
  ]);
  return { sets, chains: Object.fromEntries(settled), others: [] };
}

// How nft prints a rule differs between its versions; a comment is printed as it was given.
function fingerprint(rule: string): string {
  return createHash("sha256").update(rule).digest("hex").slice(0, 12);
}

/** As nft lists it: a prefix of one address without its length. */
function bare(prefix: string): string {
  return prefix.replace(/^([\d.]+)\/32$|^(.+:.*)\/128$/, "$1$2");
}

function element(value: NftValue): string {
  if (typeof value === "string") return value;
  if ("elem" in value) return element(value.elem.val);
  if ("range" in value) return value.range.join("-");
  return `${value.prefix.addr}/${value.prefix.len}`;
}
