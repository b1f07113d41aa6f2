/** Where the node has IPv6: a sysctl switches it off on single links or on all, and a kernel may be booted without it. */
import { join } from "node:path";
import type { Family } from "../net/address.ts";
import type { Ipv6 } from "../plan/ipv6.ts";
import type { Perform, Reader } from "./executor.ts";
import type { Resource } from "./resource.ts";
import type { SysctlStep } from "./sysctls.ts";

/** The sysctl that switches it off on `place`: a link, or `default` for links to come. */
function pathOf(root: string, place: string): string {
  return join(root, "ipv6/conf", place, "disable_ipv6");
}

/** Whether it is switched off there; undefined if there is no such link. */
export async function isOff(reader: Reader, root: string, place: string): Promise<boolean | undefined> {
  const value = await reader.readFile(pathOf(root, place));
  return value === undefined ? undefined : value.trim() === "1";
}

/** @returns what switches it on */
export function switchOn(root: string, place: string): SysctlStep {
  return { kind: "sysctl", path: pathOf(root, place), value: "0" };
}

interface Means {
  reader: Reader;
  /** Where /proc/sys/net is. */
  root: string;
  /** That the kernel has. */
  families: readonly Family[];
  /** Of the tunnel, if IPv6 is in it; it need not be there yet. */
  link: string | undefined;
  perform: Perform;
}

export class Ipv6Sysctls implements Resource<unknown> {
  readonly #means: Means;

  constructor(means: Means) {
    this.#means = means;
  }

  /** Nothing is kept here: to read them costs next to nothing. */
  invalidate(): void {}

  /**
   * Where there is IPv6. If it is off on the tunnel's link alone, it is switched on at once: that link is ours, and what
   * can be planned depends on it.
   */
  async observe(): Promise<Ipv6> {
    const { reader, root, families, link, perform } = this.#means;
    if (!families.includes("ipv6")) return { present: false, newLinks: false, tunnel: false };
    const newLinks = (await isOff(reader, root, "default")) !== true;
    if (link === undefined) return { present: true, newLinks, tunnel: true };
    // A link that is to come gets what new links get.
    const off = (await isOff(reader, root, link)) ?? !newLinks;
    if (!off || !newLinks) return { present: true, newLinks, tunnel: !off };
    const tunnel = await perform("IPv6 switched on", [switchOn(root, link)]).then(
      () => true,
      () => false,
    );
    return { present: true, newLinks, tunnel };
  }
}
