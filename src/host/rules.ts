/** Policy rules: which are ours, and which of others are ahead of ours. */
import { type Family, hostPrefix } from "../net/address.ts";
import { type Rule, ruleKey } from "../plan/overlay/routes.ts";
import { batch, type Command } from "./command.ts";
import type { Reader } from "./executor.ts";
import { parseObjects } from "./iproute.ts";

/** Of routes (rt_protos) and rules that are ours. */
export const protocol = "246";

/** A rule of the kernel, in the order in which it looks at them. */
export interface ObservedRule extends Rule {
  ours: boolean;
  /** What it matches by addresses; undefined for any. */
  from: string | undefined;
  to: string | undefined;
  /** The link that it matches packets of. */
  iif: string | undefined;
  /** Whether it matches by what nobody can tell of pods' packets: a mark, a user, the link that they leave by. */
  narrowed: boolean;
  inverted: boolean;
  /** The table that it looks in; undefined if it does something else, such as to prohibit. */
  table: string | undefined;
  /** Routes of at most this length are left out; -1: none are. */
  suppressed: number;
  /** Where it goes on, if it skips rules. */
  goto: number | undefined;
}

interface IpRule {
  priority?: number;
  not?: null;
  src?: string;
  srclen?: number;
  dst?: string;
  dstlen?: number;
  tos?: string;
  fwmark?: string;
  fwmask?: string;
  iif?: string;
  oif?: string;
  l3mdev?: null;
  uid_start?: number;
  uid_end?: number;
  ipproto?: string;
  sport?: number;
  sport_start?: number;
  sport_end?: number;
  dport?: number;
  dport_start?: number;
  dport_end?: number;
  tun_id?: number;
  table?: string;
  suppress_prefixlen?: number;
  action?: string;
  goto?: number;
  protocol?: string;
}

export const familyFlag: Record<Family, string> = { ipv4: "-4", ipv6: "-6" };

export async function observeRules({ $ }: Reader, family: Family): Promise<ObservedRule[]> {
  return parseRules(family, await $`ip ${familyFlag[family]} -j -N -d rule show`);
}

/** Parses `ip -j -N -d rule show`. What a newer `ip` may say besides does not make a rule another one. */
export function parseRules(family: Family, output: string): ObservedRule[] {
  return parseObjects<IpRule>(output).map((entry) => ({
    family,
    priority: entry.priority ?? 0,
    text: textOf(entry, family),
    ours: entry.protocol === protocol,
    from: prefixOf(entry.src, entry.srclen),
    to: prefixOf(entry.dst, entry.dstlen),
    iif: entry.iif,
    narrowed: narrowing.some((name) => entry[name] !== undefined),
    inverted: entry.not !== undefined,
    table: entry.goto === undefined && entry.action === undefined ? entry.table : undefined,
    suppressed: entry.suppress_prefixlen ?? -1,
    goto: entry.goto,
  }));
}

const narrowing = ["fwmark", "oif", "l3mdev", "uid_start", "tun_id"] as const;

/** In the order of `ip -N rule`, as which it is told by the monitor, and in which a deletion names it. */
function textOf(entry: IpRule, family: Family): string {
  const port = (name: "sport" | "dport") =>
    entry[`${name}_start`] !== undefined
      ? [`${name} ${entry[`${name}_start`]}-${entry[`${name}_end`]}`]
      : entry[name] !== undefined
        ? [`${name} ${entry[name]}`]
        : [];
  const given = (name: string, value: unknown) => (value === undefined ? [] : [`${name} ${value}`]);
  // `ip` leaves out a mask of all ones.
  const mask = entry.fwmask ?? "0xffffffff";
  return [
    ...(entry.not === undefined ? [] : ["not"]),
    `from ${shown(entry.src, entry.srclen, family) ?? "all"}`,
    ...given("to", shown(entry.dst, entry.dstlen, family)),
    ...given("tos", entry.tos),
    ...(entry.fwmark === undefined ? [] : [`fwmark ${entry.fwmark}/${mask}`]),
    ...given("iif", entry.iif),
    ...given("oif", entry.oif),
    ...(entry.uid_start === undefined ? [] : [`uidrange ${entry.uid_start}-${entry.uid_end}`]),
    ...given("ipproto", entry.ipproto?.replace("ipproto-", "")),
    ...port("sport"),
    ...port("dport"),
    ...given("tun_id", entry.tun_id),
    ...(entry.goto !== undefined
      ? [`goto ${entry.goto}`]
      : entry.l3mdev !== undefined
        ? ["l3mdev"]
        : entry.action !== undefined
          ? [`type ${actionNames[entry.action] ?? entry.action}`]
          : given("lookup", entry.table)),
    ...given("suppress_prefixlength", entry.suppress_prefixlen),
  ].join(" ");
}

const actionNames: Record<string, string> = { "6": "blackhole", "7": "unreachable", "8": "prohibit" };

function shown(address: string | undefined, length: number | undefined, family: Family): string | undefined {
  if (address === undefined || address === "all") return undefined;
  return length === undefined || length === (family === "ipv4" ? 32 : 128) ? address : `${address}/${length}`;
}

function prefixOf(address: string | undefined, length: number | undefined): string | undefined {
  if (address === undefined || address === "all") return undefined;
  return length === undefined ? hostPrefix(address) : `${address}/${length}`;
}

/** Rules to add, and those with our protocol that nobody wants. */
export function diffRules(
  desired: readonly Rule[],
  observed: readonly ObservedRule[],
): { add: Command[]; remove: Command[] } {
  const present = new Set(observed.map(ruleKey));
  const wanted = new Set(desired.map(ruleKey));
  const missing = desired.filter((rule) => !present.has(ruleKey(rule)));
  const surplus = observed.filter((rule) => rule.ours && !wanted.has(ruleKey(rule)));
  return {
    add: commands("add", missing),
    remove: commands("delete", surplus),
  };
}

function commands(verb: "add" | "delete", list: readonly Rule[]): Command[] {
  return (["ipv4", "ipv6"] as const).flatMap((family) =>
    batch(
      ["ip", familyFlag[family], "-force", "-batch", "-"],
      list
        .filter((rule) => rule.family === family)
        .map(({ priority, text }) => `rule ${verb} ${text} priority ${priority} protocol ${protocol}`),
    ),
  );
}

/** What the kernel has once the rules that are missing are added. Of equal priorities the one that was added last is last. */
export function addedRules(desired: readonly Rule[], observed: readonly ObservedRule[]): ObservedRule[] {
  const present = new Set(observed.map(ruleKey));
  const missing = desired.filter((rule) => !present.has(ruleKey(rule)));
  return [
    ...observed,
    ...missing.map((rule) => ({ ...rule, ...plain, table: /lookup (\d+)/.exec(rule.text)?.[1] })),
  ].toSorted((a, b) => a.priority - b.priority);
}

/** What the kernel has once both lists of `diffRules` are done. */
export function settledRules(desired: readonly Rule[], observed: readonly ObservedRule[]): ObservedRule[] {
  const wanted = new Set(desired.map(ruleKey));
  return addedRules(desired, observed).filter((rule) => !rule.ours || wanted.has(ruleKey(rule)));
}

const plain = {
  ours: true,
  from: undefined,
  to: undefined,
  iif: undefined,
  narrowed: false,
  inverted: false,
  suppressed: -1,
  goto: undefined,
};
