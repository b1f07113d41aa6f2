/** The firewall as the nftables table `inet wigglenet`. No other table is read or touched. */
import { type Family, families, familyOf } from "../../net/address.ts";
import { differences } from "../../net/sortedkeys.ts";
import type { Chain, Firewall, Hook, Rule, Transfer } from "../../plan/firewall/model.ts";
import { type Command, command } from "../command.ts";
import { editsOf } from "./edits.ts";
import * as flowtable from "./flowtable.ts";
import { type NftSet, type ObservedRule, type ObservedRuleset, table } from "./nftlisting.ts";
import { familyRule, type NftRule, nftRule } from "./nftrule.ts";

export interface NftChain {
  /** As in `type nat hook postrouting priority 100; policy accept`; empty for a regular chain. */
  spec: string;
  hook: Hook;
  rules: NftRule[];
}

export interface Ruleset {
  /** As in `hook ingress priority 0`. */
  flowtables: Record<string, string>;
  sets: Record<string, NftSet>;
  maps: Record<string, NftSet>;
  chains: Record<string, NftChain>;
}

/** Base chains; 0 is where filtering is customary, -90 follows destination NAT, -150 precedes source NAT at 100. */
const bases: Record<Hook, string> = {
  prerouting: "type filter hook prerouting priority -90; policy accept",
  input: "type filter hook input priority 0; policy accept",
  forward: "type filter hook forward priority 0; policy accept",
  postrouting: "type filter hook postrouting priority -150; policy accept",
  srcnat: "type nat hook postrouting priority 100; policy accept",
};

/** What the table should hold. */
export function ruleset({ chains, sets, kinds, maps, devices }: Firewall): Ruleset {
  const ofFamilies = <T>(make: (family: Family) => T) => families.map(make);
  const type = (family: Family) => (family === "ipv4" ? "ipv4_addr" : "ipv6_addr");
  const nftSets = Object.entries(sets).flatMap(([name, members]) =>
    ofFamilies((family) => {
      const elements = elementsOf(members, family);
      // No nft reads a set without intervals before it changes another.
      const flags = kinds[name] === "addresses" ? "" : "; flags interval";
      return [`${name}-${family}`, { spec: `type ${type(family)}${flags}`, elements }] as const;
    }),
  );
  const nftMaps = Object.entries(maps).flatMap(([name, entries]) =>
    ofFamilies((family) => {
      const elements = Object.entries(entries)
        .filter(([address]) => familyOf(address) === family)
        .map(([address, where]) => mapElement(address, resolved(where, family, chains)));
      return [`${name}-${family}`, { spec: `type ${type(family)} : verdict`, elements }] as const;
    }),
  );
  return {
    flowtables: devices ? { [flowtable.name]: flowtable.spec } : {},
    sets: Object.fromEntries(nftSets),
    maps: Object.fromEntries(nftMaps),
    chains: compiled(chains),
  };
}

const written = new WeakMap<readonly string[], Record<Family, string[]>>();
/** Lists that are sorted; what nft lists is not. */
const inOrder = new WeakSet<readonly string[]>();

/** A family's members of a set as they are listed. The same list of members gives the same lists. */
export function elementsOf(members: readonly string[], family: Family): string[] {
  let elements = written.get(members);
  if (elements === undefined) {
    elements = { ipv4: [], ipv6: [] };
    for (const value of members) elements[familyOf(value)].push(bare(value));
    written.set(members, elements);
    for (const family of families) inOrder.add(elements[family]);
  }
  return elements[family];
}

const compilations = new WeakMap<readonly Chain[], Record<string, NftChain>>();

function compiled(chains: readonly Chain[]): Record<string, NftChain> {
  const known = compilations.get(chains);
  if (known !== undefined) return known;
  const result = Object.fromEntries(chains.flatMap((chain) => nftChains(chain, chains)));
  compilations.set(chains, result);
  return result;
}

/** A chain begins with the rules of both families; what comes after them is in a chain for each family. */
function nftChains(chain: Chain, all: readonly Chain[]): [name: string, NftChain][] {
  const { name, hook, rules } = chain;
  const common = commonRules(chain);
  const first = common.map((rule) => nftRule(resolvedRule(rule, undefined, all), undefined));
  const parts = families.filter((family) => rules.slice(common.length).some((rule) => isOf(rule, family)));
  const isBase = name === hook;
  const spec = isBase ? bases[hook] : "";
  const ask = parts.map((family) => familyRule(family, `${name}-${family}`));
  const needed = isBase || common.length > 0 || parts.length === 0 || askedOfBoth(name, all);
  return [
    ...(needed ? [[name, { spec, hook, rules: [...first, ...ask] }] as [string, NftChain]] : []),
    ...parts.map((family): [string, NftChain] => {
      const own = rules.slice(common.length).filter((rule) => isOf(rule, family));
      const texts = own.map((rule) => nftRule(resolvedRule(rule, family, all), family));
      return [`${name}-${family}`, { spec: "", hook, rules: texts }];
    }),
  ];
}

const isOf = (rule: Rule, family: Family) => rule.family === undefined || rule.family === family;

function commonRules({ rules }: Chain): Rule[] {
  const common = rules.findIndex((rule) => rule.family !== undefined);
  return common < 0 ? rules : rules.slice(0, common);
}

/** Whether a rule of both families leads to this chain. */
function askedOfBoth(name: string, all: readonly Chain[]): boolean {
  return all.some((chain) =>
    commonRules(chain).some(
      ({ verdict }) => typeof verdict === "object" && !("map" in verdict) && targetOf(verdict) === name,
    ),
  );
}

function targetOf(where: Transfer): string {
  return "jump" in where ? where.jump : where.goto;
}

/** To a chain that has nothing in common of both families one of a single family goes past the question which it is. */
function resolved(where: Transfer, family: Family | undefined, all: readonly Chain[]): Transfer {
  const target = all.find(({ name }) => name === targetOf(where));
  const direct =
    family && target && commonRules(target).length === 0 && target.rules.some((rule) => isOf(rule, family));
  const name = direct ? `${targetOf(where)}-${family}` : targetOf(where);
  return "jump" in where ? { jump: name } : { goto: name };
}

function resolvedRule(rule: Rule, family: Family | undefined, all: readonly Chain[]): Rule {
  const { verdict } = rule;
  if (typeof verdict === "string" || "map" in verdict) return rule;
  return { ...rule, verdict: resolved(verdict, family, all) };
}

function mapElement(address: string, where: Transfer): string {
  return `${bare(address)} : ${"jump" in where ? "jump" : "goto"} ${targetOf(where)}`;
}

const on = `inet ${table}`;

/**
 * One transaction, or none. What stays as it is keeps its counters: objects are made and deleted one by one, those that
 * others name before these. Of the words of nft some are left out on purpose, as 1.0.6 reads much of the host before it
 * runs them. `add element` and `delete element`: every interval set, 260 MB beside 200,000 elements of others. Elements
 * are added by declaring their set again with the new ones, and removed by flushing it and declaring it with those that
 * stay. `replace rule`, and a rule's `position` and `index`: all rules, see `editsOf`. A table is replaced as a whole,
 * which the kernel does in one step, if there is something in it that is neither ours nor can be deleted so.
 */
export function diffRuleset(desired: Ruleset, observed: ObservedRuleset | undefined): Command[] {
  const kept = observed && !conflicts(desired, observed) ? observed : undefined;
  const renewed = kept !== undefined && reviewed(desired, kept);
  const surplus = (kind: "flowtables" | "sets" | "maps" | "chains") =>
    Object.keys(kept?.[kind] ?? {}).filter((name) => desired[kind][name] === undefined);
  const offloading = renewed
    ? Object.entries(desired.chains).filter(([name, { rules }]) => kept.chains[name] && rules.some(offloads))
    : [];
  const flushed = new Set(offloading.map(([name]) => name));
  const chains = Object.entries(desired.chains);
  const lines = [
    ...(observed !== undefined && kept === undefined ? [`delete table ${on}`] : []),
    ...(kept === undefined ? [`add table ${on}`] : []),
    ...[...flushed].map((name) => `flush chain ${on} ${name}`),
    ...Object.entries(desired.flowtables).flatMap(([name, spec]) => [
      ...(renewed && kept.flowtables[name] !== undefined ? [`delete flowtable ${on} ${name}`] : []),
      ...(renewed || kept?.flowtables[name] === undefined
        ? [`add flowtable ${on} ${name} { ${spec}; }`]
        : []),
    ]),
    ...Object.entries(desired.sets).flatMap(([name, set]) => setLines("set", name, set, kept?.sets[name])),
    ...chains.flatMap(([name, { spec }]) =>
      kept?.chains[name] === undefined
        ? [`add chain ${on} ${name}${spec === "" ? "" : ` { ${spec}; }`}`]
        : [],
    ),
    ...Object.entries(desired.maps).flatMap(([name, map]) => setLines("map", name, map, kept?.maps[name])),
    ...chains.flatMap(([name, { rules }]) =>
      ruleLines(name, rules, flushed.has(name) ? [] : (kept?.chains[name]?.rules ?? [])),
    ),
    ...surplus("chains").map((name) => `flush chain ${on} ${name}`),
    ...surplus("maps").map((name) => `delete map ${on} ${name}`),
    ...surplus("chains").map((name) => `delete chain ${on} ${name}`),
    ...surplus("sets").map((name) => `delete set ${on} ${name}`),
    ...surplus("flowtables").map((name) => `delete flowtable ${on} ${name}`),
  ];
  return lines.length === 0 ? [] : [{ ...command`nft -f -`, stdin: `${lines.join("\n")}\n` }];
}

/** Takes away all that is ours. */
export const removal = command`nft delete table inet ${table}`;

function setLines(kind: "set" | "map", name: string, wanted: NftSet, present: NftSet | undefined): string[] {
  if (wanted.elements === present?.elements) return [];
  // An interval set takes no prefix that overlaps one it has: what goes, goes first, in the same transaction.
  const { added, goes } = elementChanges(present?.elements ?? [], wanted.elements);
  const elements = goes ? wanted.elements : added;
  const list = elements.length > 0 ? ` elements = { ${elements.join(", ")} };` : "";
  return [
    ...(goes ? [`flush ${kind} ${on} ${name}`] : []),
    ...(present === undefined || elements.length > 0
      ? [`add ${kind} ${on} ${name} { ${wanted.spec};${list} }`]
      : []),
  ];
}

function elementChanges(
  present: readonly string[],
  wanted: readonly string[],
): { added: readonly string[]; goes: boolean } {
  if (inOrder.has(present) && inOrder.has(wanted)) {
    const { added, removed } = differences(present, wanted);
    return { added, goes: removed.length > 0 };
  }
  const [had, wants] = [new Set(present), new Set(wanted)];
  return {
    added: wanted.filter((value) => !had.has(value)),
    goes: present.some((value) => !wants.has(value)),
  };
}

function ruleLines(chain: string, wanted: readonly NftRule[], present: readonly ObservedRule[]): string[] {
  const edits = editsOf(
    present.map(({ form }) => form),
    wanted.map(({ form }) => form),
  );
  if (edits === undefined) return [];
  const add = ({ text }: NftRule) => `add rule ${on} ${chain} ${text}`;
  const gone = present.filter((_, index) => !edits.kept.includes(index));
  if (gone.length > 0 && (edits.kept.length === 0 || gone.some(({ handle }) => handle === undefined)))
    return [`flush chain ${on} ${chain}`, ...wanted.map(add)];
  const front = wanted.slice(0, edits.from).reverse();
  return [
    ...gone.map(({ handle }) => `delete rule ${on} ${chain} handle ${handle}`),
    // Onto an empty chain they come in their order.
    ...front.map(({ text }) => `insert rule ${on} ${chain} ${text}`),
    ...wanted.slice(edits.to).map(add),
  ];
}

/**
 * Whether offloaded flows have to pass the chains again, which a new flow table makes them do. What was offloaded on its
 * way to an address that has become a node's would go on in the clear: a route of another table than the one that it
 * followed is nothing that IPv6 looks at again for. And other rules than these may have let it be offloaded: those of an
 * agent that did not mark connections.
 */
function reviewed(desired: Ruleset, { flowtables, sets, chains }: ObservedRuleset): boolean {
  if (Object.keys(desired.flowtables).every((name) => flowtables[name] === undefined)) return false;
  const nodesCame = families.some((family) => {
    const [present, wanted] = [sets, desired.sets].map((all) => all[`nodes-${family}`]?.elements ?? []);
    return present !== wanted && elementChanges(present!, wanted!).added.length > 0;
  });
  return (
    nodesCame ||
    Object.entries(desired.chains).some(
      ([name, { hook, rules }]) => hook === "forward" && !sameForms(rules, chains[name]?.rules ?? []),
    )
  );
}

function sameForms(some: readonly { form: string }[], others: readonly { form: string }[]): boolean {
  return some.length === others.length && some.every(({ form }, index) => form === others[index]?.form);
}

const offloads = ({ text }: NftRule) => text.includes(`flow add @${flowtable.name}`);

/** Whether something is there under a name of ours that is another thing, or something that we have no word for. */
function conflicts(desired: Ruleset, observed: ObservedRuleset): boolean {
  const specs = ({ flowtables, sets, maps, chains }: Ruleset | ObservedRuleset) => [
    ...Object.entries(flowtables).map(([name, spec]) => [name, `flowtable ${spec}`] as const),
    ...Object.entries(chains).map(([name, { spec }]) => [`chain ${name}`, spec] as const),
    // Maps and sets share their names.
    ...[sets, maps].flatMap((all) => Object.entries(all).map(([name, { spec }]) => [name, spec] as const)),
  ];
  const wanted = new Map(specs(desired));
  return (
    observed.others.length > 0 ||
    specs(observed).some(([name, spec]) => wanted.has(name) && wanted.get(name) !== spec)
  );
}

/** What is listed once `diffRuleset` is done. */
export function settledRuleset(desired: Ruleset, before?: ObservedRuleset): ObservedRuleset {
  const { flowtables, sets, maps } = desired;
  const chains = Object.entries(desired.chains).map(([name, { spec, rules }]) => {
    const present = before?.chains[name]?.rules ?? [];
    if (sameForms(rules, present)) return [name, { spec, rules: present }];
    return [name, { spec, rules: rules.map(({ form }) => ({ form, handle: undefined })) }];
  });
  const counting = before?.counting && { counting: before.counting };
  return { flowtables, sets, maps, chains: Object.fromEntries(chains), others: [], ...counting };
}

/** As nft and ipset list it: a prefix of one address without its length. */
export function bare(prefix: string): string {
  const length = prefix.includes(":") ? "/128" : "/32";
  return prefix.endsWith(length) ? prefix.slice(0, -length.length) : prefix;
}
