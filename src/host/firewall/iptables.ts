/**
 * The firewall by iptables and ipset, for kernels without nf_tables and for nodes that keep to iptables: chains named
 * WIGGLENET-*. Of others' chains only the jumps to ours are asked for and made.
 */
import { type Family, families, familyOf } from "../../net/address.ts";
import { type Firewall, type Hook, hooks } from "../../plan/firewall/model.ts";
import { batch, type Command, CommandError } from "../command.ts";
import type { Reader } from "../executor.ts";
import { editsOf } from "./edits.ts";
import { iptablesRules, listedRule } from "./iptablesrule.ts";

export const variants = ["nft", "legacy"] as const;
export type Variant = (typeof variants)[number];

/** A chain of ours and the chain that jumps to it: first of all, or last, when others' rules had their say. */
interface Place {
  table: string;
  parent: string;
  chain: string;
  position: "first" | "last";
}

const prefix = "WIGGLENET-";

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

/** A chain that a node should have; without `parent` and `position` a regular one. */
export interface Chain {
  family: Family;
  table: string;
  chain: string;
  place: Place | undefined;
  rules: string[];
}

export interface ObservedChain {
  rules: string[];
  /** Whether its parent jumps to it; of a regular chain, true. */
  jump: boolean;
  /** Packets that the rules have counted which let pass; undefined if it is not known. */
  passed?: number;
}

/** The chains of ours that are there, of one variant, by `chainKey`; undefined without the chain. */
export type ObservedChains = Record<string, ObservedChain | undefined>;

/** The whole firewall by iptables. */
export function chains(firewall: Firewall): Chain[] {
  const nameOf = (name: string) =>
    (hooks as readonly string[]).includes(name)
      ? places[name as Hook].chain
      : `${prefix}${name.toUpperCase()}`;
  return families.flatMap((family) => {
    const all = firewall.chains.map(({ name, hook, rules }) => ({
      family,
      table: places[hook].table,
      chain: nameOf(name),
      place: name === hook ? places[hook] : undefined,
      rules: rules
        .filter((rule) => rule.family === undefined || rule.family === family)
        .flatMap((rule) => iptablesRules(rule, family, firewall, nameOf)),
    }));
    // One that nothing leads to in this family could not be found again.
    const reached = new Set<string>();
    const reach = (chain: Chain) => {
      if (reached.has(chain.chain)) return;
      reached.add(chain.chain);
      const next = ledTo(chain.rules.join("\n"));
      for (const each of all) if (next.includes(each.chain)) reach(each);
    };
    for (const chain of all) if (chain.place) reach(chain);
    return all.filter(({ chain }) => reached.has(chain));
  });
}

/** The chains of ours that rules lead to, of a listing or as they are written. */
function ledTo(rules: string): string[] {
  return [...rules.matchAll(/(?:^| )-[jg] (WIGGLENET-\S+)$/gm)].map(([, name = ""]) => name);
}

/** What a policy of DROP needs, whichever the backend. */
export function acceptingChains({ sets }: Pick<Firewall, "sets">): Chain[] {
  const rules = (family: Family) =>
    sets.own
      .filter((prefix) => familyOf(prefix) === family)
      .flatMap((prefix) => [`-s ${prefix} -j ACCEPT`, `-d ${prefix} -j ACCEPT`]);
  const { table, chain } = acceptance;
  return families.map((family) => ({ family, table, chain, place: acceptance, rules: rules(family) }));
}

const everyPlace = [...Object.values(places), acceptance];
const tables = [...new Set(everyPlace.map((place) => place.table))];

/**
 * Regular chains are found by what leads to them: the Go implementation has chains of other names that begin as ours do.
 * @param known the chains that there are, as `ip filter FORWARD`, where that is known: the others are not asked for
 */
export async function observeChains(
  { $ }: Reader,
  variant: Variant,
  known?: ReadonlySet<string>,
): Promise<ObservedChains> {
  const result: ObservedChains = {};
  const there = (family: Family, table: string, chain: string) =>
    known === undefined || known.has(`${nftFamily[family]} ${table} ${chain}`);
  const look = async (family: Family, table: string, chain: string, parent?: string): Promise<void> => {
    const key = chainKey({ family, table, chain });
    if (key in result) return;
    result[key] = undefined;
    if (!there(family, table, chain)) return;
    const program = `${tool[family]}-${variant}`;
    // Asked for first: it says plainly that there is no such chain.
    const jump = parent && (await answer($`${program} -w 10 -t ${table} -C ${parent} -j ${chain}`));
    if (jump === "absent") return;
    const listing = await answer($`${program} -w 10 -t ${table} -v -S ${chain}`);
    if (listing === "absent") return;
    result[key] = {
      rules: parseChain(listing),
      jump: jump !== "no rule",
      passed: parsePassed(listing),
    };
    await Promise.all(ledTo(listing).map((name) => look(family, table, name)));
  };
  const asked = families.flatMap((family) =>
    everyPlace.map(({ table, chain, parent }) => look(family, table, chain, parent)),
  );
  // Which of them fails first differs from time to time: a reason that changes would be told again.
  const failed = (await Promise.allSettled(asked)).find((each) => each.status === "rejected");
  if (failed) throw failed.reason;
  return result;
}

/** What `iptables -v -S CHAIN` says of the rules that count what they let pass: those of connections' own direction. */
export function parsePassed(listing: string): number {
  const counts = listing.matchAll(/ --ctdir ORIGINAL .*-c (\d+) \d+ -j RETURN$/gm);
  return [...counts].reduce((sum, [, packets]) => sum + Number(packets), 0);
}

/** The rules of `iptables -v -S CHAIN`, as they are written. */
export function parseChain(listing: string): string[] {
  return listing.split("\n").flatMap((line) => listedRule(line) ?? []);
}

/** Each table of each family is one transaction. A chain of ours that is not desired is taken away. */
export function diffChains(variant: Variant, desired: readonly Chain[], observed: ObservedChains): Command[] {
  return families.flatMap((family) =>
    tables.flatMap((table) => {
      const lines = diffTable(
        desired.filter((chain) => chain.family === family && chain.table === table),
        Object.entries(observed).flatMap(([key, chain]) => {
          const [ofFamily, ofTable, name = ""] = key.split(" ");
          return chain && ofFamily === family && ofTable === table ? [[name, chain] as const] : [];
        }),
      );
      return lines.length === 0
        ? []
        : batch(
            [`${tool[family]}-${variant}-restore`, "--noflush", "-w", "10"],
            [`*${table}`, ...lines, "COMMIT"],
          );
    }),
  );
}

/** What others name comes before these, and goes after them; what stays as it is keeps its counters. */
function diffTable(
  desired: readonly Chain[],
  observed: readonly (readonly [string, ObservedChain])[],
): string[] {
  const present = new Map(observed);
  const surplus = [...present].filter(([name]) => !desired.some(({ chain }) => chain === name));
  const parentOf = (name: string) => everyPlace.find((place) => place.chain === name)?.parent;
  return [
    ...desired.filter(({ chain }) => !present.has(chain)).map(({ chain }) => `:${chain} - [0:0]`),
    ...desired.flatMap(({ chain, rules }) => ruleLines(chain, rules, present.get(chain)?.rules ?? [])),
    ...desired.flatMap(({ chain, place }) => {
      if (place === undefined || present.get(chain)?.jump) return [];
      const { parent, position } = place;
      return [position === "first" ? `-I ${parent} 1 -j ${chain}` : `-A ${parent} -j ${chain}`];
    }),
    // Declared anew, a chain is empty.
    ...surplus.map(([name]) => `:${name} - [0:0]`),
    ...surplus.flatMap(([name, { jump }]) => {
      const parent = parentOf(name);
      return parent !== undefined && jump ? [`-D ${parent} -j ${name}`] : [];
    }),
    ...surplus.map(([name]) => `-X ${name}`),
  ];
}

function ruleLines(chain: string, wanted: readonly string[], present: readonly string[]): string[] {
  const edits = editsOf(present, wanted);
  if (edits === undefined) return [];
  const add = (rule: string) => `-A ${chain} ${rule}`;
  // Declared anew, a chain is empty; the transaction has it full again in the same step.
  if (edits.kept.length === 0 && present.length > 0) return [`:${chain} - [0:0]`, ...wanted.map(add)];
  const gone = present.map((_, index) => index).filter((index) => !edits.kept.includes(index));
  return [
    // By their numbers, the last first, as the ones after a deleted rule move up.
    ...gone.reverse().map((index) => `-D ${chain} ${index + 1}`),
    ...wanted
      .slice(0, edits.from)
      .reverse()
      .map((rule) => `-I ${chain} 1 ${rule}`),
    ...wanted.slice(edits.to).map(add),
  ];
}

/** What is there once `diffChains` is done. */
export function settledChains(desired: readonly Chain[]): ObservedChains {
  return Object.fromEntries(desired.map((each) => [chainKey(each), { rules: each.rules, jump: true }]));
}

/** Whether an IPv4 chain is there. */
export async function hasChain(
  { $ }: Reader,
  variant: Variant,
  table: string,
  chain: string,
): Promise<boolean> {
  return (await answer($`${`${tool.ipv4}-${variant}`} -w 10 -t ${table} -S ${chain}`)) !== "absent";
}

/** The chains whose policy is DROP, as `ip filter FORWARD`. Of the listings only the policy is read. */
export async function droppingPolicies({ $ }: Reader, variant: Variant): Promise<string[]> {
  const chains = families.flatMap((family) => ["INPUT", "FORWARD"].map((chain) => ({ family, chain })));
  const found = chains.map(async ({ family, chain }) => {
    const listing = await $`${`${tool[family]}-${variant}`} -w 10 -S ${chain}`;
    return listing.startsWith(`-P ${chain} DROP`) ? [`${nftFamily[family]} filter ${chain}`] : [];
  });
  return (await Promise.all(found)).flat();
}

function chainKey({ family, table, chain }: { family: Family; table: string; chain: string }): string {
  return `${family} ${table} ${chain}`;
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
