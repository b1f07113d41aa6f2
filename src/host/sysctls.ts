/** Sysctls below /proc/sys/net: those of our link and of pods' links, and forwarding. */
import { join } from "node:path";
import type { Family } from "../net/address.ts";
import type { Findings } from "../report/findings.ts";
import { type Step, whyNot } from "./command.ts";
import type { Executor, Perform as PerformAll, Reader } from "./executor.ts";
import { parseObjects } from "./iproute.ts";
import type { Resource } from "./resource.ts";

export type SysctlStep = Extract<Step, { kind: "sysctl" }>;
type Perform = (steps: Step[]) => Promise<unknown>;

const byHand =
  "set them in /etc/sysctl.d, or give the agent a PROC_SYS_NET_PATH that is the host's and writable";

/** As sysctl names it: "net.ipv4.ip_forward". A link's name keeps its dots. */
function dotted(name: string): string {
  return `net.${name.replaceAll("/", ".")}`;
}

/**
 * Sysctls below `root` that differ: the tunnel link's rp_filter is loose, and new links skip duplicate address
 * detection. With `linkToCome` the link may be one that is not there yet, as in a dry run.
 */
export async function diffSysctls(
  reader: Reader,
  root: string,
  { skipDad, link, linkToCome = false }: { skipDad: boolean; link?: string; linkToCome?: boolean },
): Promise<SysctlStep[]> {
  const wanted: { name: string; value: string; toCome?: boolean }[] = [];
  // A NodePort connection from another node comes by the tunnel though its source is routed to the underlay.
  if (link !== undefined)
    wanted.push({ name: `ipv4/conf/${link}/rp_filter`, value: "2", toCome: linkToCome });
  if (skipDad) wanted.push({ name: "ipv6/conf/default/accept_dad", value: "0" });
  const steps: SysctlStep[] = [];
  for (const { name, value, toCome = false } of wanted) {
    const path = join(root, name);
    const present = (await reader.readFile(path))?.trim();
    if (present === undefined ? toCome : present !== value) steps.push({ kind: "sysctl", path, value });
  }
  return steps;
}

/** Writes them. The network works without, by and large: one that cannot be written is a finding. */
export async function applySysctls(
  reader: Reader,
  root: string,
  options: Parameters<typeof diffSysctls>[2],
  findings: Findings,
  perform: Perform,
): Promise<void> {
  const lacking: string[] = [];
  let reason = "";
  for (const step of await diffSysctls(reader, root, options)) {
    try {
      await perform([step]);
    } catch (error) {
      lacking.push(`${dotted(step.path.slice(root.length + 1))}=${step.value}`);
      reason = whyNot(error);
    }
  }
  const { link = "" } = options;
  const values = await Promise.all(
    ["all", link].map((each) => reader.readFile(join(root, `ipv4/conf/${each}/rp_filter`))),
  );
  // The larger of the two is in force; 1 drops what comes by the tunnel from a NodePort of another node.
  const strict = link !== "" && Math.max(...values.map((value) => Number(value ?? 0))) === 1;
  findings.report(
    "sysctls",
    lacking.length === 0
      ? undefined
      : {
          severity: strict ? "unready" : "warning",
          message: `sysctls cannot be written (${reason}): ${byHand}. Without, ${strict ? "NodePort connections from other nodes are dropped" : "new pods may wait a second for their IPv6"}`,
          sysctls: lacking,
        },
  );
}

/** What has to be 1 for pods of a family. Writing the first sets all links and the second. */
function forwardingOf(family: Family, links: readonly string[]): string[] {
  // IPv6 asks no single link; IPv4 the one that a packet comes by.
  return family === "ipv4"
    ? ["ipv4/ip_forward", ...["default", ...links].map((link) => `ipv4/conf/${link}/forwarding`)]
    : ["ipv6/conf/all/forwarding"];
}

/**
 * Links whose IPv6 default route came by a router advertisement, which the kernel takes away, and heeds no more, once it
 * forwards IPv6. `accept_ra=2` keeps both.
 */
async function advertisedUplinks(reader: Reader, root: string): Promise<string[]> {
  // 9 is the kernel's, whatever its name is here.
  const shown = await reader.$`ip -6 -j route show default proto 9`;
  const routes = parseObjects<{ dev?: string; nexthops?: { dev?: string }[] }>(shown);
  const ways = routes.flatMap((route) => [route, ...(route.nexthops ?? [])]);
  const links = [...new Set(ways.flatMap(({ dev }) => dev ?? []))];
  const accepted = await Promise.all(
    links.map((link) => reader.readFile(join(root, `ipv6/conf/${link}/accept_ra`))),
  );
  return links.filter((_, index) => accepted[index]?.trim() === "1");
}

/**
 * Switches forwarding on for pods' families where it is off, as the ptp plugin does with each new pod. What it may not or
 * should not write is a finding.
 * @param links that pods' packets come by
 */
export async function applyForwarding(
  reader: Reader,
  root: string,
  podFamilies: ReadonlySet<Family>,
  links: readonly string[],
  findings: Findings,
  perform: Perform,
): Promise<void> {
  const off: string[] = [];
  let why = "";
  for (const family of podFamilies)
    for (const name of forwardingOf(family, links)) {
      const path = join(root, name);
      if ((await reader.readFile(path))?.trim() !== "0") continue;
      const uplinks = family === "ipv6" ? await advertisedUplinks(reader, root) : [];
      if (uplinks.length > 0) {
        off.push(dotted(name));
        const remedy = uplinks.map((uplink) => `net.ipv6.conf.${uplink}.accept_ra=2`).join(", ");
        why ||= `the default route of ${uplinks.join(", ")} is from router advertisements and would be lost with it: set ${remedy} in /etc/sysctl.d, and the agent switches it on (the ptp plugin does with the next pod in any case)`;
        continue;
      }
      try {
        await perform([{ kind: "sysctl", path, value: "1" }]);
      } catch (error) {
        off.push(dotted(name));
        why ||= `it cannot be switched on (${whyNot(error)}): ${byHand}`;
      }
    }
  findings.report(
    "forwarding",
    off.length === 0
      ? undefined
      : { severity: "unready", message: `forwarding is off, and pods need it; ${why}`, off },
  );
}

interface Means {
  /** Where the host's /proc/sys/net is. */
  root: string;
  executor: Executor;
  findings: Findings;
  perform: PerformAll;
}

/** Sysctls of the tunnel's link, and of links to come. */
export class Sysctls implements Resource<{ link: unknown }> {
  readonly #means: Means & { link: string; skipDad: boolean };

  constructor(means: Means & { link: string; skipDad: boolean }) {
    this.#means = means;
  }

  /** Nothing is kept here: to read them costs next to nothing. */
  invalidate(): void {}

  async add(desired: { link: unknown }): Promise<void> {
    const { root, link, skipDad, executor, findings, perform } = this.#means;
    const options = desired.link ? { skipDad, link, linkToCome: executor.dry } : { skipDad };
    await applySysctls(executor, root, options, findings, (steps) => perform("sysctls", steps));
  }
}

/** What forwarding pods need. */
interface DesiredForwarding {
  podFamilies: ReadonlySet<Family>;
  /** Links that pods' packets come by. */
  forwarding: readonly string[];
}

export class Forwarding implements Resource<DesiredForwarding> {
  readonly #means: Means;

  constructor(means: Means) {
    this.#means = means;
  }

  /** Nothing is kept here: to read them costs next to nothing. */
  invalidate(): void {}

  async add({ podFamilies, forwarding }: DesiredForwarding): Promise<void> {
    const { root, executor, findings, perform } = this.#means;
    await applyForwarding(executor, root, podFamilies, forwarding, findings, (steps) =>
      perform("forwarding", steps),
    );
  }
}
