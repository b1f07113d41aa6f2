/** A rule in the words of iptables, as `iptables -S` shows it: what is written can be compared with what is there. */
import { type Family, familyOf } from "../../net/address.ts";
import {
  type Conditions,
  connectionMarkBit,
  type Firewall,
  markBit,
  type Rule,
  type SetName,
  type Transfer,
  type Verdict,
} from "../../plan/firewall/model.ts";
import { mapSet, mapTargets, setName } from "./ipset.ts";
import { bare } from "./nftables.ts";

const targets: Record<Exclude<Extract<Verdict, string>, "offload">, string> = {
  // Others' rules have their say.
  pass: "RETURN",
  count: "RETURN",
  drop: "DROP",
  return: "RETURN",
  mark: `MARK --set-xmark ${markBit}/${markBit}`,
  "mark-connection": `CONNMARK --set-xmark ${connectionMarkBit}/${connectionMarkBit}`,
  masquerade: "MASQUERADE",
  "masquerade-random": "MASQUERADE --random-fully",
};

const states = {
  ongoing: "ESTABLISHED",
  established: "RELATED,ESTABLISHED",
  direct: "NEW,ESTABLISHED",
  invalid: "INVALID,UNTRACKED",
};
const connectionMark = `--mark ${connectionMarkBit}/${connectionMarkBit}`;

/**
 * A rule's matches and target; it can offload nothing, and nothing needs to be. Where replies go can be matched with a
 * prefix, not with a set: a rule for each prefix of the set, or one that excludes them all. Of a map there is a set for
 * each chain that it leads to, and a rule for each of these.
 * @param chainName what a regular chain is called here
 */
export function iptablesRules(
  { match, verdict }: Rule,
  family: Family,
  { sets, maps }: Pick<Firewall, "sets" | "maps">,
  chainName: (chain: string) => string,
): string[] {
  if (verdict === "offload") return [];
  if (match.icmpv6 && match.icmpv6.length > 1)
    return match.icmpv6.flatMap((type) => {
      const one = { match: { ...match, icmpv6: [type] }, verdict };
      return iptablesRules(one, family, { sets, maps }, chainName);
    });
  const transfer = (where: Transfer) =>
    "jump" in where ? `-j ${chainName(where.jump)}` : `-g ${chainName(where.goto)}`;
  const members = (set: `@${SetName}`) =>
    sets[set.slice(1) as SetName].filter((prefix) => familyOf(prefix) === family).map(bare);
  const rule = (target: string, replies: string[] = [], looked: string[] = []) =>
    [...conditions(match, family, replies), ...looked, target].join(" ");
  if (typeof verdict === "object" && "map" in verdict) {
    const { map, by } = verdict;
    return mapTargets(maps[map] ?? {}, family).map((where) => {
      const name = setName(mapSet(map, where), family);
      return rule(transfer(where), [], [`-m set --match-set ${name} ${by === "source" ? "src" : "dst"}`]);
    });
  }
  const target = typeof verdict === "string" ? `-j ${targets[verdict]}` : transfer(verdict);
  if (match.repliesTo)
    return members(match.repliesTo).map((prefix) => rule(target, [`--ctrepldst ${prefix}`]));
  const excluded = (match.repliesNotTo ?? []).flatMap(members);
  return [
    rule(
      target,
      excluded.map((prefix) => `! --ctrepldst ${prefix}`),
    ),
  ];
}

function conditions(match: Conditions, family: Family, replies: readonly string[]): string[] {
  const prefix = (side: "s" | "d", value: string | undefined, not = "") =>
    value === undefined || value.startsWith("@") ? [] : [`${not}-${side} ${value}`];
  const set = (side: "src" | "dst", value: string | undefined, not = "") =>
    value?.startsWith("@") ? [`-m set ${not}--match-set ${setName(value.slice(1), family)} ${side}`] : [];
  const { notFrom = [], notTo = [] } = match;
  return [
    // What is no match of a module comes first in any listing.
    ...prefix("s", match.from),
    ...notFrom.flatMap((value) => prefix("s", value, "! ")),
    ...prefix("d", match.to),
    ...notTo.flatMap((value) => prefix("d", value, "! ")),
    ...(match.in ? [`-i ${match.in}`] : []),
    ...(match.notIn ? [`! -i ${match.notIn}`] : []),
    ...(match.out ? [`-o ${match.out}`] : []),
    ...(match.notOut ? [`! -o ${match.notOut}`] : []),
    ...(match.icmpv6 === undefined ? [] : ["-p ipv6-icmp"]),
    // First what says no at the least cost: each set is a search.
    ...(match.connectionMarked === undefined
      ? []
      : [`-m connmark ${match.connectionMarked ? "" : "! "}${connectionMark}`]),
    ...tuple(match.direction, replies),
    ...(match.destinationTranslated === undefined
      ? []
      : [`-m conntrack ${match.destinationTranslated ? "" : "! "}--ctstate DNAT`]),
    ...(match.sourceTranslated === undefined
      ? []
      : [`-m conntrack ${match.sourceTranslated ? "" : "! "}--ctstate SNAT`]),
    ...(match.untranslated ? ["-m conntrack --ctstatus CONFIRMED -m conntrack ! --ctstate SNAT"] : []),
    ...(match.state ? [`-m conntrack --ctstate ${states[match.state]}`] : []),
    ...set("src", match.from),
    ...notFrom.flatMap((value) => set("src", value, "! ")),
    ...set("dst", match.to),
    ...notTo.flatMap((value) => set("dst", value, "! ")),
    ...(match.icmpv6 === undefined ? [] : [`-m icmp6 --icmpv6-type ${match.icmpv6}`]),
    ...(match.spoofed ? ["-m rpfilter --invert"] : []),
  ];
}

/**
 * One match where that is enough. None of them with a state: of a packet without a connection the kernel asks that alone,
 * and the rest would hold.
 */
function tuple(direction: Conditions["direction"], replies: readonly string[]): string[] {
  const ofDirection = direction ? [`--ctdir ${direction.toUpperCase()}`] : [];
  const [first, ...others] = replies;
  return [[...(first ? [first] : []), ...ofDirection].join(" "), ...others]
    .filter(Boolean)
    .map((match) => `-m conntrack ${match}`);
}

/** A line of `iptables -v -S CHAIN` as a rule, without its comment and what it has counted; undefined if it is none. */
export function listedRule(line: string): string | undefined {
  const [, rule] = /^-A \S+ ?(.*)$/.exec(line) ?? [];
  return rule
    ?.replace(/(^| )-m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+)(?= |$)/g, "")
    .replace(/(^| )-c \d+ \d+(?= |$)/, "")
    .trimStart();
}
