/** The programs of the host that the agent calls: whether each is there, and not too old for what is asked of it. */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import type { Config } from "../config/config.ts";
import { CommandError, execute } from "./command.ts";
import { type Backend, chooseBackend } from "./firewall/firewall.ts";
import { lackingModules, lackOf } from "./firewall/nftmodules.ts";

export interface Program {
  /** Asks for the version. */
  argv: [name: string, ...flags: string[]];
  /** The lowest version that works. */
  lowest: string;
  /** As most distributions name it. */
  package: string;
}

/** The lowest are Debian 11's, with which the tests of overlay and firewall were run. */
export const programs = {
  ip: { argv: ["ip", "-V"], lowest: "5.9", package: "iproute2" },
  wg: { argv: ["wg", "--version"], lowest: "1.0.20210223", package: "wireguard-tools" },
  nft: { argv: ["nft", "-V"], lowest: "0.9.8", package: "nftables" },
  ipset: { argv: ["ipset", "--version"], lowest: "7.10", package: "ipset" },
  "wireguard-go": { argv: ["wireguard-go", "--version"], lowest: "0.0.20210212", package: "wireguard-go" },
} satisfies Record<string, Program>;

const iptables = (variant: string): Program[] =>
  ["iptables", "ip6tables"].map((name) => ({
    argv: [`${name}-${variant}`, "--version"],
    lowest: "1.8.7",
    package: "iptables",
  }));

/**
 * What the node has to have before the agent starts.
 * @returns modules that the kernel lacks for nftables, for which `auto` has to take iptables
 * @throws ProgramError that lists every program which is missing or too old, and modules if no backend works
 */
export async function checkPrograms(config: Config): Promise<string[]> {
  const mistakes = (await Promise.all(alwaysNeeded(config).map(examine))).flat();
  const { firewallBackend: setting } = config;
  // Where nft is missing or may not be asked, there is no telling; the latter is told of by the first pass.
  const lacking = setting === "iptables" ? [] : await lackingModules(config).catch(() => []);
  const instead = setting === "auto" && lacking.length > 0;
  const backend = await chooseBackend(instead ? "iptables" : setting).catch(() => undefined);
  const unfit = backend === undefined ? [] : (await Promise.all(neededBy(backend).map(examine))).flat();
  if (backend?.startsWith("iptables"))
    unfit.push(...lackingRight(backend, await readFile("/proc/self/status", "utf8")));
  if (lacking.length > 0 && (setting === "nftables" || unfit.length > 0)) unfit.push(lackOf(lacking));
  mistakes.push(...unfit);
  if (mistakes.length > 0) throw new ProgramError(mistakes);
  return lacking;
}

export class ProgramError extends Error {
  constructor(readonly mistakes: string[]) {
    super(`programs that this node needs:\n${mistakes.map((mistake) => `  ${mistake}`).join("\n")}`);
  }
}

export function alwaysNeeded({ linkName, wireguard, firewallOnly, nativeRouting }: Config): Program[] {
  const tunnel = !firewallOnly && Object.values(nativeRouting).includes(false);
  // One that the node runs serves the link already.
  const served = existsSync(`/var/run/wireguard/${linkName}.sock`);
  return [
    programs.ip,
    programs.nft,
    ...(tunnel ? [programs.wg] : []),
    ...(tunnel && wireguard === "userspace" && !served ? [programs["wireguard-go"]] : []),
  ];
}

export function neededBy(backend: Backend): Program[] {
  return backend === "nftables" ? [] : [...iptables(backend.replace("iptables-", "")), programs.ipset];
}

/** What iptables opens a raw socket for: the legacy one its tables, either one a match of an ipset. */
export function lackingRight(backend: Backend, status: string): string[] {
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? "0"}`);
  return effective & (1n << 13n)
    ? []
    : [
        `${backend} needs the capability NET_RAW: give it to the agent, see docs/configuration.md#nftables-and-iptables`,
      ];
}

async function examine(program: Program): Promise<string[]> {
  try {
    return judge(program, await execute({ kind: "run", argv: program.argv }));
  } catch (error) {
    if (error instanceof CommandError) return judge(program, error);
    throw error;
  }
}

/** What is wrong with a program, if anything; `said` is what it answers when asked for its version. */
export function judge({ argv: [name], lowest, package: its }: Program, said: string | Error): string[] {
  const remedy = `install ${its} ${lowest} or later`;
  if (said instanceof Error)
    return [
      said.message.includes("cannot start")
        ? `${name} is not there: ${remedy}`
        : `${said.message}: ${remedy}`,
    ];
  const [line = ""] = said.split("\n");
  const version = /[ v-](\d+(?:\.\d+)+)/.exec(line)?.[1];
  // Before 5.7, iproute2 gave a day.
  if (version === undefined) return [`${name} calls itself ${JSON.stringify(line)}: ${remedy}`];
  if (compareVersions(version, lowest) < 0) return [`${name} ${version} is too old: ${remedy}`];
  if (/json:\s+no/.test(said)) return [`${name} ${version} is built without JSON: ${remedy} that has it`];
  return [];
}

function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((version) => version.split(".").map(Number)) as [number[], number[]];
  for (let index = 0; index < Math.max(left.length, right.length); index += 1) {
    const difference = (left[index] ?? 0) - (right[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
