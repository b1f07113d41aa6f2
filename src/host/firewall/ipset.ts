/** The sets of the firewall by iptables, which both variants share: those named WIGGLENET-*. */
import { createHash } from "node:crypto";
import { type Family, families, familyOf } from "../../net/address.ts";
import type { Firewall, Transfer } from "../../plan/firewall/model.ts";
import { batch, type Command, CommandError } from "../command.ts";
import type { Reader } from "../executor.ts";
import { elementsOf } from "./nftables.ts";

/** Members of our sets by name; undefined without the set. */
export type ObservedSets = Record<string, string[] | undefined>;

const prefix = "WIGGLENET-";

export function setName(set: string, family: Family): string {
  return `${prefix}${set}-${family}`;
}

/** The set of the addresses that a map sends to one place. */
export function mapSet(map: string, where: Transfer): string {
  return createHash("sha256")
    .update(JSON.stringify([map, where]))
    .digest("hex")
    .slice(0, 12);
}

/** Where a map sends a family's addresses, each place once. */
export function mapTargets(entries: Record<string, Transfer>, family: Family): Transfer[] {
  const own = Object.entries(entries).filter(([address]) => familyOf(address) === family);
  const byText = new Map(own.map(([, where]) => [JSON.stringify(where), where]));
  return [...byText.keys()].sort().map((text) => byText.get(text) as Transfer);
}

/** The sets that the rules name, with their members. */
export function sets({ sets, maps }: Pick<Firewall, "sets" | "maps">): Record<string, string[]> {
  const result = families.flatMap((family) => {
    const members = (of: readonly string[]) => elementsOf(of, family);
    return [
      ...Object.entries(sets).map(([name, of]) => [setName(name, family), members(of)] as const),
      ...Object.entries(maps).flatMap(([map, entries]) =>
        mapTargets(entries, family).map((where) => {
          const sent = Object.keys(entries).filter((address) => Bun.deepEquals(entries[address], where));
          return [setName(mapSet(map, where), family), members(sent)] as const;
        }),
      ),
    ];
  });
  return Object.fromEntries(result);
}

export async function observeSets(reader: Reader): Promise<ObservedSets> {
  const names = (await list(reader)).split("\n").filter((name) => name.startsWith(prefix));
  // As if typed in: the one way to ask for several and not for others'.
  const [save] = batch(
    ["ipset", "-"],
    names.map((name) => `save ${name}`),
  );
  if (save === undefined) return {};
  const observed = parseSets(await reader.execute(save));
  const gone = names.filter((name) => observed[name] === undefined);
  // It ends well all the same.
  if (gone.length > 0) throw new Error(`ipset did not show ${gone.join(", ")}, which it had listed`);
  return observed;
}

/** The names of all sets; none without the program, or its part of the kernel: what needs them fails at the change. */
async function list({ $ }: Reader): Promise<string> {
  try {
    return await $`ipset list -n`;
  } catch (error) {
    if (error instanceof CommandError && /cannot start|Cannot open session/.test(error.stderr)) return "";
    throw error;
  }
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
          if (members === present) return [];
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
