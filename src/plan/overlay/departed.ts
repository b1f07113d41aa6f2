/** What a node that left claimed: it stays unreachable for a while, as others may still send to its pods. */
import { contains } from "../../net/address.ts";
import type { Route } from "./routes.ts";

/** Milliseconds for which the pod CIDRs of a node that left stay unreachable. */
const departure = 600_000;

export class Departed {
  /** By prefix, when it may be forgotten. */
  readonly #until = new Map<string, number>();

  /**
   * Unreachable prefixes of ours that nobody claims any more, not yet to be forgotten, and what we except from them.
   * @param podCidrs what is claimed, by this node too
   * @param routes ours that are there
   * @param now in milliseconds
   */
  claims(podCidrs: readonly string[], routes: readonly Route[], now: number): string[] {
    const claimed = new Set(podCidrs);
    const present = new Set(
      routes.filter((route) => route.type === "unreachable").map((route) => route.prefix),
    );
    for (const [prefix, until] of this.#until)
      if (claimed.has(prefix) || (until <= now && !present.has(prefix))) this.#until.delete(prefix);
    for (const prefix of present)
      if (!claimed.has(prefix) && !this.#until.has(prefix)) this.#until.set(prefix, now + departure);
    const left = [...this.#until].filter(([, until]) => until > now).map(([prefix]) => prefix);
    const excepted = routes.filter(
      (route) => route.type === "throw" && left.some((prefix) => contains(prefix, route.prefix)),
    );
    return [...left, ...excepted.map((route) => route.prefix.replace(/\/.*/, ""))];
  }
}
