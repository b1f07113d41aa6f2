/**
 * Which modules this kernel lacks for the firewall by iptables. Its programs say so when they are given rules to test,
 * and a transaction with such a rule fails as a whole, with no word of the module.
 */
import { type Family, families } from "../../net/address.ts";
import { connectionMarkBit, markBit } from "../../plan/firewall/model.ts";
import { CommandError, stderrOf } from "../command.ts";
import type { Variant } from "./iptables.ts";
import type { Uses } from "./nftmodules.ts";

/** A rule that a kernel without these modules refuses. */
export interface Sample {
  modules: string[];
  table: "mangle" | "filter" | "nat";
  /** The name of the match or target in it. */
  extension: string;
  rule: string;
}

/** The samples of one table, and the line of the first in what its program reads. */
export interface Asked {
  table: Sample["table"];
  from: number;
  samples: Sample[];
}

/** One sample for each extension that our rules use in one configuration. */
export function samples(family: Family, { tunnel, masquerade }: Uses): Sample[] {
  const rpfilter = family === "ipv4" ? "ipt_rpfilter" : "ip6t_rpfilter";
  const sample = (module: string, table: Sample["table"], rule: string): Sample => ({
    modules: [module],
    table,
    extension: /-[mj] (\w+)/.exec(rule)?.[1] ?? "",
    rule,
  });
  return [
    sample("xt_conntrack", "filter", "-m conntrack --ctstate ESTABLISHED"),
    ...(tunnel
      ? [
          sample("xt_connmark", "filter", `-m connmark --mark ${connectionMarkBit}/${connectionMarkBit}`),
          sample(
            "xt_connmark",
            "filter",
            `-j CONNMARK --set-xmark ${connectionMarkBit}/${connectionMarkBit}`,
          ),
          sample("xt_mark", "mangle", `-j MARK --set-xmark ${markBit}/${markBit}`),
          sample(rpfilter, "mangle", "-m rpfilter --invert"),
        ]
      : []),
    ...(tunnel || masquerade ? [sample("xt_MASQUERADE", "nat", "-j MASQUERADE")] : []),
    // Last of its table: the set is not there, and at that a program ends.
    sample("xt_set", "filter", "-m set --match-set WIGGLENET-check src"),
  ];
}

export function tablesOf(all: readonly Sample[]): Asked[] {
  const names = [...new Set(all.map(({ table }) => table))];
  // After `*TABLE` and the chain.
  return names.map((table) => ({ table, from: 3, samples: all.filter((each) => each.table === table) }));
}

/** What a program lacks by its words, of the modules of the samples that it was given. */
export function lackingIn(stderr: string, { table, from, samples }: Asked, family: Family): string[] {
  if (/unable to initialize table|can't initialize ip6?tables table/.test(stderr))
    return [`${family === "ipv4" ? "iptable" : "ip6table"}_${table}`];
  const named = [
    ...stderr.matchAll(/Extension (\w+) (?:revision \d+ )?(?:is )?not supported, missing kernel module/g),
    ...stderr.matchAll(/Couldn't load (?:match|target) [`'"](\w+)/g),
  ].map(([, name]) => name);
  const line = /Kernel module xt_set is not loaded/.test(stderr)
    ? Number(/Error occurred at line: (\d+)/.exec(stderr)?.[1] ?? 0) - from
    : -1;
  const lacking = samples.filter(({ extension }, index) => named.includes(extension) || index === line);
  return [...new Set(lacking.flatMap(({ modules }) => modules))];
}

/**
 * Asks the kernel by the programs of a variant, which change nothing. They load modules that it has. `nft_compat` stands
 * for all extensions, without which `iptables-nft` has none.
 */
export async function lackingExtensions(variant: Variant, uses: Uses): Promise<string[]> {
  const asked = families.flatMap((family) =>
    tablesOf(samples(family, uses)).map(async (asked) => ({
      asked: asked.samples.flatMap(({ modules }) => modules),
      lacking: lackingIn(await test(variant, family, asked), asked, family),
    })),
  );
  const answers = await Promise.all(asked);
  const lacking = new Set(answers.flatMap((answer) => answer.lacking));
  const all = answers.every((answer) => answer.asked.every((module) => lacking.has(module)));
  return variant === "nft" && all ? ["nft_compat"] : [...lacking];
}

/** @returns what the program said on stderr, also where it ended well */
async function test(variant: Variant, family: Family, { table, samples }: Asked): Promise<string> {
  const program = `${family === "ipv4" ? "iptables" : "ip6tables"}-${variant}-restore`;
  const chain = "WIGGLENET-CHECK";
  const rules = samples.map(({ rule }) => `-A ${chain} ${rule}`);
  const stdin = `${[`*${table}`, `:${chain} - [0:0]`, ...rules, "COMMIT"].join("\n")}\n`;
  try {
    return await stderrOf({ kind: "run", argv: [program, "--test", "--noflush", "-w", "10"], stdin });
  } catch (error) {
    if (error instanceof CommandError) return error.stderr;
    throw error;
  }
}
