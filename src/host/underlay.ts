/** What the node's other routes say: its gateways, and by which links packets leave it. */
import { compareAddresses, type Family, familyOf, parseAddress, parsePrefix } from "../net/address.ts";
import type { Underlay as Neighbourhood } from "../net/lookup.ts";
import { peerEndpoints, type UnderlayInput, underlayMtu } from "../plan/identity.ts";
import { isPodLink } from "../plan/own.ts";
import { CommandError } from "./command.ts";
import type { Reader } from "./executor.ts";
import type { Reason, Resource } from "./resource.ts";
import { familyFlag, protocol } from "./rules.ts";

/** More routes than these are read again at a resync only after `rereadAfter` ms: a full BGP table takes 0.3 s. */
const many = 10_000;
const rereadAfter = 600_000;

/** What the main table says; addresses and prefixes are canonical and sorted. */
export interface UnderlayRoutes extends Neighbourhood {
  /** Names of the links of the default routes. */
  defaultLinks: readonly string[];
  /** To single addresses on links, as other plugins have them for their pods; a thousand at most. */
  hostRoutes: readonly HostRoute[];
}

export interface HostRoute {
  address: string;
  link: string;
}

const mostHostRoutes = 1_000;

export class Underlay implements Resource<unknown> {
  readonly #reader: Reader;
  readonly #link: string;
  readonly #families: readonly Family[];
  #main: UnderlayRoutes | undefined;
  #routes = 0;
  #readAt = Number.NEGATIVE_INFINITY;
  readonly #links = new Map<string, string | undefined>();

  /**
   * @param link of the tunnel
   * @param families that the kernel has
   */
  constructor(reader: Reader, link: string, families: readonly Family[]) {
    this.#reader = reader;
    this.#link = link;
    this.#families = families;
  }

  /** A change is told of, or events may have been missed; at a resync a huge table is not read again each time. */
  invalidate(reason: Reason): void {
    if (["links", "drift", "resync"].includes(reason)) this.#links.clear();
    const due = this.#routes <= many || performance.now() >= this.#readAt + rereadAfter;
    if (reason === "drift" || (reason === "resync" && due)) this.#main = undefined;
  }

  /** The main table. */
  observe(): Promise<UnderlayRoutes> {
    return this.main();
  }

  /** Of the main table, which is read line by line, as it may be huge. */
  async main(): Promise<UnderlayRoutes> {
    if (this.#main !== undefined) return this.#main;
    const reader = mainReader(this.#link);
    this.#routes = 0;
    this.#readAt = performance.now();
    for (const family of this.#families)
      await this.#reader.eachLine(
        ["ip", familyFlag[family], "-N", "-o", "route", "show", "table", "main"],
        (line) => {
          this.#routes++;
          reader.read(line);
        },
      );
    this.#main = reader.result();
    return this.#main;
  }

  /** Smallest MTU, in bytes, of the links that lead to the peers. */
  async mtu(input: UnderlayInput): Promise<number> {
    const { defaultLinks } = await this.main();
    const linkOf = await this.#linksTo(peerEndpoints(input));
    return underlayMtu({ ...input, linkOf, defaultLinks });
  }

  /** The kernel says by which link a packet to an address would leave; it knows all tables and rules. */
  async #linksTo(addresses: readonly string[]): Promise<ReadonlyMap<string, string | undefined>> {
    const unknown = [...new Set(addresses)].filter(
      (address) => !this.#links.has(address) && this.#families.includes(familyOf(address)),
    );
    if (unknown.length === 0) return this.#links;
    const stdin = `${unknown.map((address) => `route get ${address}`).join("\n")}\n`;
    await this.#reader
      .eachLine(
        ["ip", "-N", "-o", "-force", "-batch", "-"],
        (line) => {
          const address = parseAddress(line.split(" ", 1)[0] ?? "");
          if (address !== undefined) this.#links.set(address, linksIn(line)[0]);
        },
        stdin,
      )
      .catch((error: unknown) => {
        // It has told of all but those that the kernel has no way to, for one reason or another: no route, a blackhole, a prohibition.
        // What other nodes call their addresses must not stop this one.
        if (!(error instanceof CommandError && error.stderr.includes("Command failed -:"))) throw error;
      });
    for (const address of unknown) if (!this.#links.has(address)) this.#links.set(address, undefined);
    return this.#links;
  }
}

/** Reads the lines of `ip -N -o route show table main`, one route each. */
export function mainReader(link: string): { read(line: string): void; result(): UnderlayRoutes } {
  const found = {
    gateways: new Set<string>(),
    defaultGateways: new Set<string>(),
    onLink: new Set<string>(),
    defaultLinks: new Set<string>(),
  };
  const hostRoutes: HostRoute[] = [];
  return {
    read(line) {
      const [destination = ""] = line.split(" ", 1);
      // One of another type than unicast begins with its number.
      if (/^\d+$/.test(destination) || line.includes(` proto ${protocol} `)) return;
      // What leads into the tunnel is ours, or was left by the Go implementation.
      if (line.includes(` dev ${link} `)) return;
      const gateways = gatewaysIn(line);
      for (const address of gateways) found.gateways.add(address);
      if (destination === "default") {
        for (const address of gateways) found.defaultGateways.add(address);
        for (const name of linksIn(line)) found.defaultLinks.add(name);
      } else if (gateways.length > 0) return;
      else if (destination.includes("/")) found.onLink.add(destination);
      else if (hostRoutes.length < mostHostRoutes) {
        const [link = ""] = linksIn(line);
        if (destination !== "" && !isPodLink(link)) hostRoutes.push({ address: destination, link });
      }
    },
    result: () => ({
      gateways: canonical(found.gateways),
      defaultGateways: canonical(found.defaultGateways),
      onLink: [...found.onLink].flatMap((text) => parsePrefix(text) ?? []).sort(compareAddresses),
      defaultLinks: [...found.defaultLinks].sort(),
      hostRoutes,
    }),
  };
}

function canonical(addresses: ReadonlySet<string>): string[] {
  return [...addresses].flatMap((text) => parseAddress(text) ?? []).sort(compareAddresses);
}

/** The gateways of a route as `ip` prints it, several where it has several next hops, an IPv6 one of an IPv4 route too. */
export function gatewaysIn(line: string): string[] {
  return Array.from(line.matchAll(/ via (?:inet6? )?(\S+)/g), ([, address = ""]) => address);
}

/** The links of a route as `ip` prints it. */
export function linksIn(line: string): string[] {
  return Array.from(line.matchAll(/ dev (\S+)/g), ([, name = ""]) => name);
}
