/**
 * The host's side of pods: the ptp plugin gives a pod's link the gateway's address and a route to the pod, once, when the
 * pod is added. The kernel takes both away when IPv6 is switched off on the link, or the link is set down, and nobody
 * but us puts them back.
 */
import { contains, familyOf, hostPrefix, parseAddress } from "../net/address.ts";
import { CniResults } from "./cniresults.ts";
import { batch } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import { isOff, switchOn } from "./ipv6.ts";
import { type Link, type Links, observeLinks } from "./link.ts";
import type { Resource } from "./resource.ts";

/** A pod's link on the host, as ptp has set it up. */
export interface PodLink {
  name: string;
  /** The pod's addresses, each with its gateway, which is the link's address. */
  ends: { address: string; gateway: string }[];
}

interface CacheEntry {
  result?: {
    interfaces?: { name?: string; sandbox?: string }[];
    ips?: { address?: string; gateway?: string }[];
  };
}

/** Parses a file of libcni's cache. Throws if it is no JSON. */
export function parsePodLink(content: string): PodLink | undefined {
  const { interfaces = [], ips = [] } = (JSON.parse(content) as CacheEntry | null)?.result ?? {};
  const name = interfaces.find(({ sandbox }) => !sandbox)?.name;
  if (name === undefined) return undefined;
  const ends = ips.flatMap(({ address, gateway }) => {
    const own = parseAddress(address?.split("/")[0] ?? "");
    const other = parseAddress(gateway ?? "");
    return own === undefined || other === undefined ? [] : { address: own, gateway: other };
  });
  return { name, ends };
}

/**
 * The links that lack an address of a gateway, with all their ends: routes went with it.
 * @param podCidrs the own ones; what lies outside of them is not ours
 */
export function lackingEnds(
  pods: readonly PodLink[],
  links: readonly Link[],
  podCidrs: readonly string[],
): PodLink[] {
  // One that is down takes no route.
  const up = links.filter((link) => link.up);
  const present = new Map(up.map((link) => [link.name, link.addresses.map(({ address }) => address)]));
  return pods.flatMap(({ name, ends: all }) => {
    const there = present.get(name);
    const ends = all.filter(({ address }) => podCidrs.some((prefix) => contains(prefix, address)));
    return there === undefined || ends.every(({ gateway }) => there.includes(gateway)) ? [] : { name, ends };
  });
}

/** Puts addresses and routes back, as ptp had them. */
export function restored({ name, ends }: PodLink): string[] {
  return ends.flatMap(({ address, gateway }) => [
    `address replace ${hostPrefix(gateway)} dev ${name}${familyOf(gateway) === "ipv6" ? " nodad" : ""}`,
    `route replace ${hostPrefix(address)} dev ${name}${familyOf(address) === "ipv4" ? " scope host" : ""}`,
  ]);
}

/** What pods' links need of the desired state. */
interface DesiredPodLinks {
  /** The own pod CIDRs, of families that pods can have. */
  podCidrs: readonly string[];
}

interface Means {
  reader: Reader;
  /** Where /proc/sys/net is. */
  root: string;
  links: Links;
  perform: Perform;
}

export class PodLinks implements Resource<DesiredPodLinks> {
  readonly #means: Means;
  readonly #results = new CniResults(parsePodLink);
  /** As they were when all had what they need. */
  #seen: readonly Link[] | undefined;

  constructor(means: Means) {
    this.#means = means;
  }

  /** What is known of links is kept there. */
  invalidate(): void {}

  async add({ podCidrs }: DesiredPodLinks): Promise<void> {
    const { reader, links, root, perform } = this.#means;
    const present = await links.observe();
    if (present === this.#seen) return;
    for (const pod of lackingEnds(await this.#results.read(), present, podCidrs)) {
      const { name } = pod;
      try {
        if (await isOff(reader, root, name)) await perform("IPv6 switched on", [switchOn(root, name)]);
        await perform("pod's link restored", batch(["ip", "-force", "-batch", "-"], restored(pod)));
      } catch (error) {
        // A pod that is being removed takes its link along.
        if ((await observeLinks(reader)).some((link) => link.name === name)) throw error;
      }
    }
    this.#seen = present;
  }
}
