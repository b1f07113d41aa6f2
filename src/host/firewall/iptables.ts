/**
 * The firewall by iptables and ipset, for kernels without nf_tables and for nodes that keep to iptables: chains and
 * sets named WIGGLENET-*. Of others' chains only the jumps to ours are asked for and made.
 */
import { type Family, families, familyOf } from "../../net/address.ts";
import {
  connectionMarkBit,
  type Firewall,
  type Hook,
  hooks,
  markBit,
  type Rule,
  type SetName,
  setNames,
} from "../../plan/firewall/firewall.ts";
import { $, batch, type Command, CommandError, execute } from "../command.ts";
import { bare, fingerprint } from "./nftables.ts";

export const variants = ["nft", "legacy"] as const;
export type Variant = (typeof variants)[number];

/** A chain of ours and the chain that jumps to it: first of all, or last, when others' rules had their say. */
interface Place {
  table: string;
  parent: string;
  chain: string;
  position: "first" | "last";
}

const places: Record<Hook, Place> = {
  // Before destination NAT, which our conditions do not look at.
  prerouting: { table: "mangle", parent: "PREROUTING", chain: "WIGGLENET-PREROUTING", position: "first" },
  input: { table: "filter", parent: "INPUT", chain: "WIGGLENET-INPUT", position: "first" },
  forward: { table: "filter", parent: "FORWARD", chain: "WIGGLENET-FILTER", position: "first" },
  postrouting: { table: "mangle", parent: "POSTROUTING", chain: "WIGGLENET-POSTROUTING", position: "first" },
  srcnat: { table: "nat", parent: "POSTROUTING", chain: "WIGGLENET-SRCNAT", position: "first" },
};
/** Accepts the pods' traffic where the policy of FORWARD is DROP (ufw, Docker), which no other table can undo. */
const acceptance: Place = {
  table: "filter",
  parent: "FORWARD",
  chain: "WIGGLENET-FORWARD",
  position: "last",
};

const tool: Record<Family, string> = { ipv4: "iptables", ipv6: "ip6tables" };
const nftFamily: Record<Family, string> = { ipv4: "ip", ipv6: "ip6" };

/** A chain that a node should have. */
export type Chain = Place & { family: Family; rules: string[] };

/** The chains of ours that are there, of one variant, by `chainKey`; undefined without the chain. */
export type ObservedChains = Record<
  string,
  /** `passed`: packets that the rules have counted which let pass; undefined if it is not known. */
  { fingerprints: string[]; jump: boolean; passed?: number } | undefined
>;

/** Members of our sets by name, which both variants share; undefined without the set. */
export type ObservedSets = Record<string, string[] | undefined>;

/** The whole firewall by iptables. */
export function chains({ rules, sets }: Firewall): Chain[] {
  return families.flatMap((family) =>
    hooks.map((hook) => ({
      ...places[hook],
      family,
      rules: rules
        .filter((rule) => rule.hook === hook && rule.family === family)
        .flatMap((rule) => words(rule, sets)),
    })),
  );
}

/** What a policy of DROP needs, whichever the backend. */
export function acceptingChains({ sets }: Firewall): Chain[] {
  const rules = (family: Family) =>
    sets.own
      .filter((prefix) => familyOf(prefix) === family)
      .flatMap((prefix) => [`-s ${prefix} -j ACCEPT`, `-d ${prefix} -j ACCEPT`]);
  return families.map((family) => ({ ...acceptance, family, rules: rules(family) }));
}

/** The sets that the rules name, with their members. */
export function sets(desired: Firewall): Record<string, string[]> {
  const entries = setNames.flatMap((set) =>
    families.map((family) => [
      setName(set, family),
      desired.sets[set].filter((value) => familyOf(value) === family).map(bare),
    ]),
  );
  return Object.fromEntries(entries);
}

const everyPlace = [...Object.values(places), acceptance];
const everySet = setNames.flatMap((set) => families.map((family) => setName(set, family)));

/** @param known the chains that there are, as `ip filter FORWARD`, where that is known: the others are not asked for */
export async function observeChains(variant: Variant, known?: ReadonlySet<string>): Promise<ObservedChains> {
  const chain = async (family: Family, { table, parent, chain }: Place) => {
    if (known && !known.has(`${nftFamily[family]} ${table} ${chain}`)) return undefined;
    const program = `${tool[family]}-${variant}`;
    // Asked for first: it says plainly that there is no such chain.
    const jump = await answer($`${program} -w 10 -t ${table} -C ${parent} -j ${chain}`);
    if (jump === "absent") return undefined;
    const listing = await answer($`${program} -w 10 -t ${table} -v -S ${chain}`);
    return {
      fingerprints: parseChain(listing),
      jump: jump !== "no rule",
      passed: parsePassed(listing),
    };
  };
  const entries = families.flatMap((family) =>
    everyPlace.map(async (place) => [chainKey({ ...place, family }), await chain(family, place)] as const),
  );
  return Object.fromEntries(await Promise.all(entries));
}

export async function observeSets(): Promise<ObservedSets> {
  const names = new Set((await answer($`ipset list -n`)).split("\n"));
  const there = everySet.filter((name) => names.has(name));
  // As if typed in: the one way to ask for several and not for others'.
  const [save] = batch(
    ["ipset", "-"],
    there.map((name) => `save ${name}`),
  );
  if (save === undefined) return {};
  const observed = parseSets(await execute(save));
  const gone = there.filter((name) => observed[name] === undefined);
  // It ends well all the same.
  if (gone.length > 0) throw new Error(`ipset did not show ${gone.join(", ")}, which it had listed`);
  return observed;
}

/** What `iptables -v -S CHAIN` says of the rules that count what they let pass: those of connections' own direction. */
export function parsePassed(listing: string): number {
  const counts = listing.matchAll(/ --ctdir ORIGINAL .*-c (\d+) \d+ -j RETURN$/gm);
  return [...counts].reduce((sum, [, packets]) => sum + Number(packets), 0);
}

/** The fingerprints of `iptables -S CHAIN`, rule by rule. */
export function parseChain(listing: string): string[] {
  return listing
    .split("\n")
    .filter((line) => line.startsWith("-A "))
    .map((line) => /--comment "?wigglenet:([0-9a-f]{12})"?/.exec(line)?.[1] ?? "");
}

/** The sets and their members, of what `save SET` printed one after the other, prompts between them. */
export function parseSets(listing: string): ObservedSets {
  const result: Record<string, string[]> = {};
  for (const line of listing.split("\n")) {
    const [, verb, name = "", member] = /^(?:ipset> )*(create|add) (\S+) (\S+)/.exec(line) ?? [];
    if (verb === "create") result[name] = [];
    else if (member) result[name]?.push(member);
  }
  return result;
}

/** Creates and fills sets, before rules name them; or, with `surplus`, destroys what no rule names any more. */
export function diffSets(
  desired: Record<string, string[]>,
  observed: ObservedSets,
  which: "wanted" | "surplus",
): Command[] {
  const lines =
    which === "surplus"
      ? Object.keys(observed)
          .filter((name) => observed[name] && !desired[name])
          .map((name) => `destroy ${name}`)
      : Object.entries(desired).flatMap(([name, members]) => {
          const present = observed[name];
          const had = new Set(present);
          const wants = new Set(members);
          const family = name.endsWith("ipv6") ? "inet6" : "inet";
          return [
            ...(present ? [] : [`create ${name} hash:net family ${family} maxelem 262144`]),
            ...members.filter((value) => !had.has(value)).map((value) => `add ${name} ${value}`),
            ...(present ?? []).filter((value) => !wants.has(value)).map((value) => `del ${name} ${value}`),
          ];
        });
  return batch(["ipset", "restore"], lines);
}

/** Each table of each family is one transaction. A chain of ours that is not desired is taken away. */
export function diffChains(variant: Variant, desired: readonly Chain[], observed: ObservedChains): Command[] {
  const names = [...new Set(everyPlace.map((place) => place.table))];
  return families.flatMap((family) =>
    names.flatMap((table) => diffTable(variant, family, table, desired, observed)),
  );
}

function diffTable(
  variant: Variant,
  family: Family,
  table: string,
  desired: readonly Chain[],
  observed: ObservedChains,
): Command[] {
  const lines = everyPlace
    .filter((place) => place.table === table)
    .flatMap(({ parent, chain, position }) => {
      const key = chainKey({ family, table, chain });
      const present = observed[key];
      const wanted = desired.find((each) => chainKey(each) === key);
      if (wanted === undefined)
        return present
          ? [`:${chain} - [0:0]`, ...(present.jump ? [`-D ${parent} -j ${chain}`] : []), `-X ${chain}`]
          : [];
      const same =
        present !== undefined && Bun.deepEquals(present.fingerprints, wanted.rules.map(fingerprint));
      const rules = wanted.rules.map(
        (rule) => `-A ${chain} -m comment --comment wigglenet:${fingerprint(rule)} ${rule}`,
      );
      return [
        // Declared anew, a chain is empty; the transaction has it full again in the same step.
        ...(same ? [] : [`:${chain} - [0:0]`, ...rules]),
        ...(present?.jump
          ? []
          : [position === "first" ? `-I ${parent} 1 -j ${chain}` : `-A ${parent} -j ${chain}`]),
      ];
    });
  return lines.length === 0
    ? []
    : batch(
        [`${tool[family]}-${variant}-restore`, "--noflush", "-w", "10"],
        [`*${table}`, ...lines, "COMMIT"],
      );
}

/** What is there once `diffChains` is done. */
export function settledChains(desired: readonly Chain[]): ObservedChains {
  return Object.fromEntries(
    desired.map((each) => [chainKey(each), { fingerprints: each.rules.map(fingerprint), jump: true }]),
  );
}

/** Whether an IPv4 chain is there. */
export async function hasChain(variant: Variant, table: string, chain: string): Promise<boolean> {
  return (await answer($`${`${tool.ipv4}-${variant}`} -w 10 -t ${table} -S ${chain}`)) !== "absent";
}

/** The chains whose policy is DROP, as `ip filter FORWARD`. Of the listings only the policy is read. */
export async function droppingPolicies(variant: Variant): Promise<string[]> {
  const chains = families.flatMap((family) => ["INPUT", "FORWARD"].map((chain) => ({ family, chain })));
  const found = chains.map(async ({ family, chain }) => {
    const listing = await $`${`${tool[family]}-${variant}`} -w 10 -S ${chain}`;
    return listing.startsWith(`-P ${chain} DROP`) ? [`${nftFamily[family]} filter ${chain}`] : [];
  });
  return (await Promise.all(found)).flat();
}

const targets: Record<Exclude<Rule["verdict"], "offload">, string> = {
  // Others' rules have their say.
  pass: "RETURN",
  count: "RETURN",
  drop: "DROP",
  mark: `MARK --set-xmark ${markBit}/${markBit}`,
  "mark-connection": `CONNMARK --set-xmark ${connectionMarkBit}/${connectionMarkBit}`,
  masquerade: "MASQUERADE",
  "masquerade-random": "MASQUERADE --random-fully",
};

const states = {
  established: "RELATED,ESTABLISHED",
  direct: "NEW,ESTABLISHED",
  invalid: "INVALID,UNTRACKED",
};
const connectionMark = `--mark ${connectionMarkBit}/${connectionMarkBit}`;

/**
 * A rule's matches and target as iptables takes them; it can offload nothing, and nothing needs to be. Where replies go
 * can be matched with a prefix, not with a set: a rule for each prefix of the set, or one that excludes them all.
 */
function words({ family, match, verdict }: Rule, sets: Firewall["sets"]): string[] {
  if (verdict === "offload") return [];
  const members = (set: `@${SetName}`) =>
    sets[set.slice(1) as SetName].filter((prefix) => familyOf(prefix) === family);
  const address = (value: string, side: "src" | "dst", not = "") =>
    value.startsWith("@")
      ? `-m set ${not}--match-set ${setName(value.slice(1), family)} ${side}`
      : `${not}-${side === "src" ? "s" : "d"} ${value}`;
  const all = (replies: string[]) => [
    ...(match.in ? [`-i ${match.in}`] : []),
    ...(match.notIn ? [`! -i ${match.notIn}`] : []),
    ...(match.out ? [`-o ${match.out}`] : []),
    ...(match.notOut ? [`! -o ${match.notOut}`] : []),
    ...(match.connectionMarked === undefined
      ? []
      : [`-m connmark ${match.connectionMarked ? "" : "! "}${connectionMark}`]),
    ...(match.direction ? [`-m conntrack --ctdir ${match.direction.toUpperCase()}`] : []),
    ...(match.destinationTranslated === undefined
      ? []
      : [`-m conntrack ${match.destinationTranslated ? "" : "! "}--ctstate DNAT`]),
    ...(match.untranslated ? ["-m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT"] : []),
    ...(match.state ? [`-m conntrack --ctstate ${states[match.state]}`] : []),
    ...replies,
    ...(match.from ? [address(match.from, "src")] : []),
    ...(match.notFrom ?? []).map((value) => address(value, "src", "! ")),
    ...(match.to ? [address(match.to, "dst")] : []),
    ...(match.notTo ?? []).map((value) => address(value, "dst", "! ")),
    ...(match.icmpv6 === undefined ? [] : [`-p icmpv6 --icmpv6-type ${match.icmpv6}`]),
    ...(match.spoofed ? ["-m rpfilter --invert"] : []),
    `-j ${targets[verdict]}`,
  ];
  if (match.repliesTo)
    return members(match.repliesTo).map((prefix) => all([`-m conntrack --ctrepldst ${prefix}`]).join(" "));
  const excluded = (match.repliesNotTo ?? []).flatMap(members);
  return [all(excluded.map((prefix) => `-m conntrack ! --ctrepldst ${prefix}`)).join(" ")];
}

function chainKey({ family, table, chain }: { family: Family; table: string; chain: string }): string {
  return `${family} ${table} ${chain}`;
}

export function setName(set: string, family: Family): string {
  return `WIGGLENET-${set}-${family}`;
}

/** The output, or what the command says in other words: there is no such chain or set, or no such rule. */
async function answer(output: Promise<string>): Promise<string | "absent" | "no rule"> {
  try {
    return await output;
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    // Without the program, or its part of the kernel, there is nothing of ours; what needs them fails at the change.
    if (
      /No chain|does not exist|Couldn't load target|cannot start|Cannot open session|Address family not supported/.test(
        error.stderr,
      )
    )
      return "absent";
    if (/Bad rule/.test(error.stderr)) return "no rule";
    if (/Can't open socket to ipset/.test(error.stderr))
      throw new Error(
        `${error.message} To read rules that match an ipset takes NET_RAW: give it to the agent, at least until FIREWALL_BACKEND is nftables and it has started once`,
      );
    throw error;
  }
}
