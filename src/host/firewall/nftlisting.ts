/** The nftables table `inet wigglenet` as nft lists it. */
import { type Family, families } from "../../net/address.ts";
import { CommandError } from "../command.ts";
import type { Reader } from "../executor.ts";
import { listedForm } from "./nftrule.ts";

export const table = "wigglenet";

/** A set, or a map: then its elements are as in `10.1.0.2 : goto NAME`. */
export interface NftSet {
  /** As in `type ipv4_addr; flags interval`. */
  spec: string;
  elements: string[];
}

export interface ObservedRule {
  form: string;
  /** By which it can be deleted; undefined of one that was made since the table was listed. */
  handle: number | undefined;
}

export interface ObservedRuleset {
  flowtables: Record<string, string>;
  sets: Record<string, NftSet>;
  maps: Record<string, NftSet>;
  chains: Record<string, { spec: string; rules: ObservedRule[] }>;
  /** Kinds of objects in the table that are none of these: none of them is ours. */
  others: string[];
  /** Packets that the rules have counted which let pass; undefined if it is not known. */
  passed?: number;
  /** Chains that have such rules. */
  counting?: string[];
}

export async function observeRuleset({ $ }: Reader): Promise<ObservedRuleset | undefined> {
  try {
    return parseRuleset(await $`nft -j list table inet ${table}`);
  } catch (error) {
    if (error instanceof CommandError && /No such file or directory/.test(error.stderr)) return undefined;
    throw error;
  }
}

/** What the rules have counted since, of a table that is as it was: its chains are read one by one, which lists no others. */
export async function recount({ $ }: Reader, known: ObservedRuleset): Promise<ObservedRuleset> {
  const listings = (known.counting ?? []).map((chain) => $`nft -j list chain inet ${table} ${chain}`);
  const entries = (await Promise.all(listings)).flatMap((text) => (JSON.parse(text) as NftListing).nftables);
  return { ...known, passed: entries.reduce((sum, { rule }) => sum + (passedBy(rule) ?? 0), 0) };
}

/** Packets that a rule has counted and let pass; undefined if it does not do both. */
function passedBy(rule: NftListing["nftables"][0]["rule"]): number | undefined {
  const { expr = [] } = rule ?? {};
  return expr.some((each) => "accept" in each)
    ? expr.find(({ counter }) => counter !== undefined)?.counter?.packets
    : undefined;
}

type NftValue =
  | string
  | { prefix: { addr: string; len: number } }
  | { elem: { val: NftValue } }
  | { range: [string, string] };

/** Of chains, sets and maps also what other nfts than ours may have given them: `flags`, `timeout` and the like. */
interface NftListing {
  nftables: {
    set?: { name: string; type: string; flags?: string[]; elem?: NftValue[] };
    map?: { name: string; type: string; map: string; flags?: string[]; elem?: [NftValue, object][] };
    chain?: { name: string; type?: string; hook?: string; prio?: number; policy?: string };
    rule?: { chain: string; handle: number; expr?: { counter?: { packets: number }; accept?: null }[] };
    flowtable?: { name: string; hook: string; prio: number };
    [other: string]: unknown;
  }[];
}

/** Parses `nft -j list table inet wigglenet`; undefined if there is no table in it. */
export function parseRuleset(output: string): ObservedRuleset | undefined {
  const { nftables } = JSON.parse(output) as NftListing;
  if (!nftables.some((entry) => "table" in entry)) return undefined;
  const result: Required<ObservedRuleset> = {
    flowtables: {},
    sets: {},
    maps: {},
    chains: {},
    others: [],
    passed: 0,
    counting: [],
  };
  const flags = (of: { flags?: string[] }) => (of.flags ? `; flags ${of.flags.join(", ")}` : "");
  for (const entry of nftables) {
    const { set, map, chain, rule, flowtable, metainfo, table, ...others } = entry;
    result.others.push(...Object.keys(others));
    if (set)
      result.sets[set.name] = {
        spec: `type ${set.type}${flags(set)}`,
        elements: (set.elem ?? []).map(element),
      };
    else if (map)
      result.maps[map.name] = {
        spec: `type ${map.type} : ${map.map}${flags(map)}`,
        elements: (map.elem ?? []).map(([key, verdict]) => `${element(key)} : ${listedTransfer(verdict)}`),
      };
    else if (chain) result.chains[chain.name] = { spec: listedSpec(chain), rules: [] };
    else if (flowtable)
      result.flowtables[flowtable.name] = `hook ${flowtable.hook} priority ${flowtable.prio}`;
    else if (rule) {
      const { expr = [], handle } = rule;
      result.chains[rule.chain]?.rules.push({ form: listedForm(expr, chainFamily(rule.chain)), handle });
      const passed = passedBy(rule);
      if (passed === undefined) continue;
      result.passed += passed;
      if (!result.counting.includes(rule.chain)) result.counting.push(rule.chain);
    }
  }
  return result;
}

function listedSpec({ type, hook, prio, policy }: NonNullable<NftListing["nftables"][0]["chain"]>): string {
  return hook === undefined ? "" : `type ${type} hook ${hook} priority ${prio}; policy ${policy}`;
}

/** As in `goto NAME`; of what is none of ours, how it was listed. */
function listedTransfer(verdict: object): string {
  const [[kind, where] = []] = Object.entries(verdict as Record<string, { target?: string } | null>);
  return where?.target === undefined ? JSON.stringify(verdict) : `${kind} ${where.target}`;
}

/** Of which alone the packets are that come to a chain of ours. */
function chainFamily(chain: string): Family | undefined {
  return families.find((family) => chain.endsWith(`-${family}`));
}

function element(value: NftValue): string {
  if (typeof value === "string") return value;
  if ("elem" in value) return element(value.elem.val);
  if ("range" in value) return value.range.join("-");
  return `${value.prefix.addr}/${value.prefix.len}`;
}
