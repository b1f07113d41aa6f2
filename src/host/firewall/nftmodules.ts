/** Which modules this kernel lacks for the firewall by nftables: nft says "No such file or directory", and no more. */
import { randomBytes } from "node:crypto";
import type { Config } from "../../config/config.ts";
import { connectionMarkBit } from "../../plan/firewall/model.ts";
import type { Finding } from "../../report/findings.ts";
import { batch, CommandError, execute } from "../command.ts";
import { listChains } from "../events/nfnetlink.ts";

/** A command of nft that a kernel refuses if it lacks these modules. */
export interface Sample {
  /** The one that the kernel asks for, and those that it needs in turn. */
  modules: string[];
  line: string;
}

/** What our ruleset uses in one configuration: `tunnel` if a family is in it, `masquerade` if one is masqueraded. */
export interface Uses {
  tunnel: boolean;
  masquerade: boolean;
}

export function usesOf({ firewallOnly, nativeRouting, masquerade }: Config): Uses {
  return {
    tunnel: !firewallOnly && Object.values(nativeRouting).includes(false),
    masquerade: Object.values(masquerade).includes(true),
  };
}

/** One sample for each module, none of which needs another's: the kernel reports every line that it refuses. */
export function samples({ tunnel, masquerade }: Uses): Sample[] {
  // Of a table that is there, a chain of another type would be refused as if its type were not known.
  const table = `inet wigglenet-check-${randomBytes(4).toString("hex")}`;
  const rule = (text: string) => `add rule ${table} rules ${text}`;
  return [
    { modules: ["nf_tables"], line: `add table ${table}` },
    // Without a hook it takes a masquerade, whether or not there are chains of NAT.
    { modules: [], line: `add chain ${table} rules` },
    { modules: ["nft_ct"], line: rule("ct state established accept") },
    // Part of nf_tables since Linux 5.17.
    { modules: ["nft_counter"], line: rule("counter drop") },
    {
      modules: ["nft_chain_nat"],
      line: `add chain ${table} srcnat { type nat hook postrouting priority 100; }`,
    },
    ...(tunnel
      ? [
          // It has this only with CONFIG_NF_CONNTRACK_MARK.
          { modules: ["nft_ct"], line: rule(`ct mark set ct mark or ${connectionMarkBit}`) },
          {
            modules: ["nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6"],
            line: rule("fib saddr . iif oif missing drop"),
          },
        ]
      : []),
    // What leaves the tunnel for another node's pod by a Service is masqueraded in every configuration.
    ...(tunnel || masquerade ? [{ modules: ["nft_masq"], line: rule("masquerade") }] : []),
  ];
}

const refusal =
  /^(?:\S+?:(\d+):\S+ )?Error: Could not process rule: (?:No such file or directory|Operation not supported|Address family not supported by protocol|Protocol not supported)$/gm;

/**
 * The modules that are lacking by what nft said when it was given the samples, one a line. Empty if it said nothing of
 * the kind: a kernel that is busy, or a caller without rights, tells nothing of modules.
 */
export function lackingIn(stderr: string, asked: readonly Sample[]): string[] {
  const lines = [...stderr.matchAll(refusal)].map(([, line]) => Number(line ?? 0));
  // Without its table nothing else can be added.
  if (lines.includes(1)) return asked[0]?.modules ?? [];
  const lacking = lines.flatMap((line) => asked[line - 1]?.modules ?? []);
  // An nft that does not name the line leaves all of them.
  return [
    ...new Set(lines.length > 0 && lacking.length === 0 ? asked.flatMap(({ modules }) => modules) : lacking),
  ];
}

/**
 * Asks the kernel, by one process of nft that changes nothing. It loads modules that it has.
 * @throws NetlinkError without the right to ask
 */
export async function lackingModules(uses: Uses): Promise<string[]> {
  if ((await listChains()) === undefined) return ["nf_tables"];
  const asked = samples(uses);
  try {
    const lines = asked.map(({ line }) => line);
    for (const command of batch(["nft", "-c", "-f", "-"], lines)) await execute(command);
    return [];
  } catch (error) {
    if (error instanceof CommandError) return lackingIn(error.stderr, asked);
    throw error;
  }
}

/** What is lacking for a backend and the remedy, for the end of a message. */
export function lackOf(modules: readonly string[], backend: string): string {
  const names = modules.join(" ");
  const inet = modules.includes("nf_tables") ? " (with CONFIG_NF_TABLES_INET)" : "";
  return `this kernel has no ${modules.join(", ")}${inet}, which the firewall by ${backend} needs: modprobe -a ${names}, and for each boot name them in /etc/modules-load.d/wigglenet.conf, or install a kernel that has them`;
}

/** That a backend has been taken instead of others, and why. */
export function takenInstead(backend: string, lacks: readonly string[]): Finding {
  return {
    severity: "warning",
    message: `${lacks.join(". And ")}. The firewall is by ${backend} until the agent is started again`,
  };
}
