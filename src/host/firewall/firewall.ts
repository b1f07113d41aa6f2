/** Which of the backends writes the firewall down, and that nothing is left of the others. */

import { families } from "../../net/address.ts";
import type { Firewall, SetName } from "../../plan/firewall/model.ts";
import type { Command } from "../command.ts";
import type { NftChain } from "../events/nfnetlink.ts";
import type { Reader } from "../executor.ts";
import { diffSets, type ObservedSets, observeSets, setName, sets } from "./ipset.ts";
import {
  acceptingChains,
  type Chain,
  chains,
  diffChains,
  droppingPolicies,
  hasChain,
  type ObservedChains,
  observeChains,
  settledChains,
  type Variant,
  variants,
} from "./iptables.ts";
import { diffRuleset, removal, ruleset, settledRuleset } from "./nftables.ts";
import { type ObservedRuleset, observeRuleset, recount } from "./nftlisting.ts";

export type Backend = "nftables" | `iptables-${Variant}`;

export interface ObservedFirewall {
  ruleset: ObservedRuleset | undefined;
  /** Of the variants that are in use here; of one that is not, nothing can be ours. */
  chains: Partial<Record<Variant, ObservedChains>>;
  sets: ObservedSets;
  /** Variants whose policy of FORWARD is DROP. */
  dropping: Variant[];
  /** Chains of others at input or forward that drop what nobody accepts, in words. */
  closed: string[];
  /** Why the tables of iptables-legacy, which are in use, could not be read. */
  hidden: string | undefined;
  /** Of nf_tables, before it was listed: its generation, and the chains that matter; undefined if we have written since. */
  listing?: { generation: number; chains: NftChain[] };
}

/** `auto`: nftables where the kernel takes it. Of iptables, the variant that kubelet and kube-proxy use here. */
export async function chooseBackend(
  reader: Reader,
  setting: Backend | "auto" | "iptables",
): Promise<Backend> {
  if (setting === "iptables-nft" || setting === "iptables-legacy") return setting;
  const nft = (await reader.chains()) !== undefined;
  if (setting === "nftables" || (setting === "auto" && nft)) return "nftables";
  if (!nft) return "iptables-legacy";
  return (await legacyTables(reader)).includes("mangle") && (await kubernetesUsesLegacy(reader))
    ? "iptables-legacy"
    : "iptables-nft";
}

/**
 * @param known what was observed before: of nf_tables, which takes half a second of CPU beside 20,000 Services, it holds as
 *   long as nobody has changed anything there
 */
export async function observeFirewall(
  reader: Reader,
  backend: Backend,
  known?: ObservedFirewall,
): Promise<ObservedFirewall> {
  const now = backend === "nftables" ? reader.generation() : undefined;
  const unchanged = now !== undefined && known?.listing?.generation === now ? known : undefined;
  const listed = unchanged?.listing?.chains ?? (await reader.chains());
  const names = new Set(listed?.map(({ family, table, name }) => `${family} ${table} ${name}`));
  const [sets, ruleset, nftChains] = await Promise.all([
    observeSets(reader),
    unchanged?.ruleset ? recount(reader, unchanged.ruleset) : listed && observeRuleset(reader),
    unchanged?.chains.nft ?? (listed && observeChains(reader, "nft", names)),
  ]);
  const closed = closedChains(listed ?? []);
  const observed: ObservedFirewall = {
    ruleset,
    chains: nftChains ? { nft: nftChains } : {},
    sets,
    dropping: closed.some((chain) => /^ip6? filter FORWARD$/.test(chain)) ? ["nft"] : [],
    closed: closed.filter((chain) => !chain.endsWith(" filter FORWARD")),
    hidden: undefined,
    ...(listed && now !== undefined && { listing: { generation: now, chains: listed } }),
  };
  try {
    if ((await legacyTables(reader)).length > 0) {
      observed.chains.legacy = await observeChains(reader, "legacy");
      const policies = await droppingPolicies(reader, "legacy");
      if (policies.some((chain) => chain.endsWith(" FORWARD"))) observed.dropping.push("legacy");
      const input = policies.filter((chain) => chain.endsWith(" INPUT"));
      observed.closed.push(...input.map((chain) => `${chain} of iptables-legacy`));
    }
  } catch (error) {
    // It asks for more rights than nft, which a node that does not use it for us need not give.
    if (backend === "iptables-legacy") throw error;
    observed.hidden = (error as Error).message;
  }
  return observed;
}

/** The base chains at input and forward that drop, or that firewalld has. */
export function closedChains(chains: readonly NftChain[]): string[] {
  return chains.flatMap((chain) => {
    // A bridge has a forward hook too, and ARP an input.
    if (!/^(ip6?|inet) (input|forward)$/.test(`${chain.family} ${chain.hook}`)) return [];
    const closes = chain.policy === "drop" || chain.table === "firewalld";
    return closes && chain.table !== "wigglenet" ? [`${chain.family} ${chain.table} ${chain.name}`] : [];
  });
}

/** The chosen backend's changes first, then what is left of another: in between both hold, which does no harm. */
export function diffFirewall(backend: Backend, desired: Firewall, observed: ObservedFirewall): Command[] {
  const order = [...variants].sort(
    (a, b) => Number(backend === `iptables-${b}`) - Number(backend === `iptables-${a}`),
  );
  const byChains = order.flatMap((variant) =>
    diffChains(variant, wantedChains(variant, backend, desired, observed), observed.chains[variant] ?? {}),
  );
  const wantedSets = backend === "nftables" ? {} : sets(desired);
  return [
    ...(backend === "nftables"
      ? diffRuleset(ruleset(desired), observed.ruleset)
      : diffSets(wantedSets, observed.sets, "wanted")),
    ...byChains,
    ...(backend !== "nftables" && observed.ruleset ? [removal] : []),
    ...diffSets(wantedSets, observed.sets, "surplus"),
  ];
}

/** Takes away all that is ours, of every backend. */
export function removeFirewall({ ruleset, chains, sets }: ObservedFirewall): Command[] {
  return [
    ...(ruleset ? [removal] : []),
    ...variants.flatMap((variant) => diffChains(variant, [], chains[variant] ?? {})),
    ...diffSets({}, sets, "surplus"),
  ];
}

/** What is there once `diffFirewall` is done. */
export function settledFirewall(
  backend: Backend,
  desired: Firewall,
  observed: ObservedFirewall,
): ObservedFirewall {
  const chains = variants.map((variant) => [
    variant,
    settledChains(wantedChains(variant, backend, desired, observed)),
  ]);
  return {
    ruleset: backend === "nftables" ? settledRuleset(ruleset(desired), observed.ruleset) : undefined,
    chains: Object.fromEntries(chains),
    sets: backend === "nftables" ? {} : sets(desired),
    dropping: observed.dropping,
    closed: observed.closed,
    hidden: observed.hidden,
  };
}

/** What a set of the firewall has now, of both families. */
export function elementsIn(backend: Backend, observed: ObservedFirewall, set: SetName): string[] {
  return families.flatMap((family) =>
    backend === "nftables"
      ? (observed.ruleset?.sets[`${set}-${family}`]?.elements ?? [])
      : (observed.sets[setName(set, family)] ?? []),
  );
}

/** Packets of own pods that went to nodes outside of the tunnel, translated; undefined if it was not looked at. */
export function passedIn(backend: Backend, { ruleset, chains }: ObservedFirewall): number | undefined {
  if (backend === "nftables") return ruleset?.passed;
  const variant = backend === "iptables-nft" ? chains.nft : chains.legacy;
  return Object.values(variant ?? {}).reduce<number | undefined>(
    (sum, chain) => (chain?.passed === undefined ? sum : (sum ?? 0) + chain.passed),
    undefined,
  );
}

function wantedChains(
  variant: Variant,
  backend: Backend,
  desired: Firewall,
  { dropping }: ObservedFirewall,
): Chain[] {
  return [
    ...(backend === `iptables-${variant}` ? chains(desired) : []),
    ...(dropping.includes(variant) ? acceptingChains(desired) : []),
  ];
}

/** Tables of iptables-legacy that are in use: to ask that program would make them. */
async function legacyTables(reader: Reader): Promise<string[]> {
  const names = await Promise.all(
    ["ip", "ip6"].map((family) => reader.readFile(`/proc/net/${family}_tables_names`)),
  );
  return names.flatMap((text) => text?.split("\n").filter(Boolean) ?? []);
}

// As iptables-wrappers tells: kubelet and kube-proxy keep chains of theirs in the variant that they use.
async function kubernetesUsesLegacy(reader: Reader): Promise<boolean> {
  const chains = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"];
  return (await Promise.all(chains.map((chain) => hasChain(reader, "legacy", "mangle", chain)))).includes(
    true,
  );
}
