/** The programs of the host that the agent calls: whether each is there, and not too old for what is asked of it. */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import type { Config } from "../config/config.ts";
import type { Finding } from "../report/findings.ts";
import { CommandError, execute } from "./command.ts";
import { nodeReader } from "./executor.ts";
import { type Backend, chooseBackend } from "./firewall/firewall.ts";
import type { Variant } from "./firewall/iptables.ts";
import { lackingExtensions } from "./firewall/iptmodules.ts";
import { lackingModules, lackOf, takenInstead, type Uses, usesOf } from "./firewall/nftmodules.ts";

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

export interface Fit {
  /** What the firewall is to be written by. */
  backend: Config["firewallBackend"];
  /** Why it is not what would be taken of a kernel that has all. */
  warning: Finding | undefined;
}

/**
 * What the node has to have before the agent starts. Where the kernel lacks a module for nftables, `auto` takes iptables;
 * where it lacks one for the variant of iptables that Kubernetes uses here, the other variant is taken.
 * @throws ProgramError that lists every program which is missing or too old, and modules if no backend works
 */
export async function checkPrograms(config: Config): Promise<Fit> {
  const mistakes = (await Promise.all(alwaysNeeded(config).map(examine))).flat();
  const { firewallBackend: setting } = config;
  const uses = usesOf(config);
  // Where nft is missing or may not be asked, there is no telling; the latter is told of by the first pass.
  const modules = setting === "iptables" ? [] : await lackingModules(uses).catch(() => []);
  const lacks = modules.length > 0 ? [lackOf(modules, "nftables")] : [];
  const instead = setting === "auto" && lacks.length > 0;
  const first = await chooseBackend(nodeReader, instead ? "iptables" : setting).catch(() => undefined);
  let backend = first;
  if (first !== undefined && first !== "nftables") {
    const unfit = await unfitFor(first);
    const lacking = unfit.length > 0 ? [] : await lackOfVariant(first, uses);
    lacks.push(...lacking);
    if (lacking.length > 0) {
      backend = first === "iptables-nft" ? "iptables-legacy" : "iptables-nft";
      unfit.push(...(await unfitFor(backend)));
      if (unfit.length === 0) unfit.push(...(await lackOfVariant(backend, uses)));
    }
    if (unfit.length > 0) mistakes.push(...unfit, ...lacks);
  } else if (setting === "nftables") mistakes.push(...lacks);
  if (mistakes.length > 0) throw new ProgramError(mistakes);
  const warning = lacks.length > 0 && backend ? takenInstead(backend, lacks) : undefined;
  return { backend: warning && backend ? backend : setting, warning };
}

async function unfitFor(backend: Backend): Promise<string[]> {
  const unfit = (await Promise.all(neededBy(backend).map(examine))).flat();
  return [...unfit, ...lackingRight(backend, await readFile("/proc/self/status", "utf8"))];
}

const ofBoth = ["nf_tables", "nft_chain_nat", "nft_counter"];

async function lackOfVariant(backend: `iptables-${Variant}`, uses: Uses): Promise<string[]> {
  const nft = backend === "iptables-nft";
  const extensions = await lackingExtensions(nft ? "nft" : "legacy", uses);
  // Its chains and counters are nftables' own.
  const shared = nft
    ? (await lackingModules(uses).catch(() => [])).filter((each) => ofBoth.includes(each))
    : [];
  const modules = [...shared, ...extensions];
  return modules.length > 0 ? [lackOf(modules, backend)] : [];
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
