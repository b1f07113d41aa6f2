/**
 * hostPorts whose rules are gone. The portmap plugin writes them once, when a pod is added, and nobody repairs them:
 * `nft flush ruleset`, as `systemctl restart nftables` does it, takes them for good (plugins#512).
 */
import { createHash } from "node:crypto";
import { type Family, families, familyOf, parseAddress } from "../../net/address.ts";
import type { Findings } from "../../report/findings.ts";
import { CniResults, network } from "../cniresults.ts";
import { CommandError } from "../command.ts";
import type { Reader } from "../executor.ts";
import type { Reason, Resource } from "../resource.ts";

/** A pod with hostPorts. */
export interface HostPortPod {
  containerId: string;
  /** `namespace/name`, or its container where the runtime has told no name. */
  name: string;
  /** As "tcp 8080". */
  ports: string[];
  /** In which it needs rules. */
  families: Family[];
  /** Its links on the host; a pod whose link is gone is gone. */
  links: string[];
}

interface CacheEntry {
  containerId?: string;
  cniArgs?: [string, string][];
  capabilityArgs?: { portMappings?: { hostPort?: number; protocol?: string; hostIP?: string }[] };
  result?: { interfaces?: { name?: string; sandbox?: string }[]; ips?: { address?: string }[] };
}

/** Parses a file of libcni's cache; undefined if it is of no pod with hostPorts. Throws if it is no JSON. */
export function parseCacheEntry(content: string): HostPortPod | undefined {
  const { containerId, cniArgs, capabilityArgs, result } = (JSON.parse(content) as CacheEntry | null) ?? {};
  const mappings = (capabilityArgs?.portMappings ?? []).filter(({ hostPort }) => (hostPort ?? 0) > 0);
  if (!containerId || mappings.length === 0) return undefined;
  const args = new Map(cniArgs ?? []);
  const [namespace, name] = [args.get("K8S_POD_NAMESPACE"), args.get("K8S_POD_NAME")];
  const addresses = (result?.ips ?? []).flatMap(
    ({ address }) => parseAddress(address?.split("/")[0] ?? "") ?? [],
  );
  // A mapping of one address of the host has no rule in the other family.
  const mapped = (family: Family) =>
    mappings.some(({ hostIP }) => !hostIP || familyOf(parseAddress(hostIP) ?? hostIP) === family);
  return {
    containerId,
    name: name ? `${namespace}/${name}` : containerId,
    ports: mappings.map(({ protocol, hostPort }) => `${protocol ?? "tcp"} ${hostPort}`),
    families: families.filter(
      (family) => mapped(family) && addresses.some((address) => familyOf(address) === family),
    ),
    links: (result?.interfaces ?? []).flatMap((each) => (each.sandbox ? [] : (each.name ?? []))),
  };
}

const programs = {
  ipv4: { name: "iptables", table: "ip", names: "/proc/net/ip_tables_names" },
  ipv6: { name: "ip6tables", table: "ip6", names: "/proc/net/ip6_tables_names" },
};

/** All rules of portmap in a family, by either of its backends; undefined where they cannot be read. */
async function portmapRules(reader: Reader, family: Family): Promise<string | undefined> {
  const { $ } = reader;
  const { name, table, names } = programs[family];
  const legacy = ((await reader.readFile(names).catch(() => "nat")) ?? "").split("\n").includes("nat");
  const texts = await Promise.all([
    rulesOf(() => $`nft list table ${table} cni_hostport`),
    // Not by iptables-nft: of a table that is not there it says that it is incompatible.
    rulesOf(() => $`nft list chain ${table} nat CNI-HOSTPORT-DNAT`),
    // Asked for nothing it would load its tables.
    legacy ? rulesOf(() => $`${`${name}-legacy`} -w 10 -t nat -S CNI-HOSTPORT-DNAT`) : "",
  ]);
  return texts.includes(undefined) ? undefined : texts.join("\n");
}

async function rulesOf(list: () => Promise<string>): Promise<string | undefined> {
  try {
    return await list();
  } catch (error) {
    const absent = /No chain|No such file|does not exist|cannot start/;
    return error instanceof CommandError && absent.test(error.stderr) ? "" : undefined;
  }
}

/**
 * The chain that portmap gives a container in iptables. The container's id is in a comment there too, which nft does not
 * show where an older iptables has written it.
 */
export function chainOf(containerId: string): string {
  const hash = createHash("sha512").update(`${network}${containerId}`).digest("hex");
  return `CNI-DN-${hash}`.slice(0, 28);
}

/** Those that have no rule of theirs in a family in which they need one. */
export function withoutRules(
  pods: readonly HostPortPod[],
  rules: Partial<Record<Family, string | undefined>>,
): HostPortPod[] {
  return pods.filter(({ containerId, families }) =>
    families.some((family) => {
      const text = rules[family];
      return text !== undefined && !text.includes(containerId) && !text.includes(chainOf(containerId));
    }),
  );
}

export class HostPorts implements Resource<unknown> {
  readonly #reader: Reader;
  readonly #findings: Findings;
  readonly #results = new CniResults(parseCacheEntry);
  /** Whether nothing has happened to the firewall since. */
  #looked = false;

  constructor(reader: Reader, findings: Findings) {
    this.#reader = reader;
    this.#findings = findings;
  }

  invalidate(reason: Reason): void {
    if (["firewall", "drift", "resync"].includes(reason)) this.#looked = false;
  }

  /** They are none of ours to repair: those that have lost their rules are named. */
  async add(): Promise<void> {
    if (this.#looked) return;
    this.#looked = true;
    const lost = (await this.#lost()).map(({ name, ports }) => `${name}: ${ports.join(", ")}`);
    this.#findings.report(
      "hostPorts",
      lost.length === 0
        ? undefined
        : {
            severity: "warning",
            message:
              "hostPorts of pods have lost their rules, as with nft flush ruleset or systemctl restart nftables, and reach nothing: delete these pods, so that new ones get theirs",
            pods: lost.sort(),
          },
    );
  }

  async #lost(): Promise<HostPortPod[]> {
    const known = await this.#results.read();
    if (known.length === 0) return [];
    const links = [...((await this.#reader.readFile("/proc/net/dev")) ?? "").matchAll(/^ *([^:\s]+):/gm)].map(
      ([, name]) => name,
    );
    const pods = known.filter((pod) => pod.links.some((link) => links.includes(link)));
    if (pods.length === 0) return [];
    const needed = families.filter((family) => pods.some((pod) => pod.families.includes(family)));
    const rules = await Promise.all(
      needed.map(async (family) => [family, await portmapRules(this.#reader, family)] as const),
    );
    return withoutRules(pods, Object.fromEntries(rules));
  }
}
