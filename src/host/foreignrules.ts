/** Rules of others that are looked at before ours, and may take pods' packets from us. */

import { overlaps } from "../net/address.ts";
import { lastPriority, podTable, type Route, type Rule, ruleKey } from "../plan/overlay/routes.ts";
import { isPodLink } from "../plan/own.ts";
import type { Findings } from "../report/findings.ts";
import type { Links } from "./link.ts";
import type { Resource } from "./resource.ts";
import type { Routes } from "./routes.ts";
import { type ObservedRule, settledRules } from "./rules.ts";

interface WantedRoutes {
  routes: { values(): Iterable<Route> };
  rules: readonly Rule[];
}

/** The table of this node's own addresses. */
const local = "255";

/**
 * @param rules all of the kernel's, in its order
 * @param desired of the plan
 * @param own addresses of this node, from which its programs answer pods
 * @param tunnel the tunnel's link
 */
function reportForeignRules(
  findings: Findings,
  rules: readonly ObservedRule[],
  desired: WantedRoutes,
  own: readonly string[],
  tunnel: string,
): void {
  const names = catchingRules(settledRules(desired.rules, rules), desired, own, tunnel);
  findings.report(
    "foreign rules",
    names.length > 0
      ? {
          severity: "warning",
          message: `rules of others come before ours and may catch pods' packets, which then miss the tunnel: give them a priority above ${lastPriority}`,
          rules: names,
        }
      : undefined,
  );
}

/** Those that match all packets to or from pods, or all of a kind, as `ip -N rule` shows them. */
export function catchingRules(
  rules: readonly ObservedRule[],
  { routes, rules: wanted }: WantedRoutes,
  own: readonly string[],
  tunnel: string,
): string[] {
  let found: string[] | undefined;
  const podCidrs = () => {
    found ??= [...routes.values()].flatMap(({ type, prefix, table }) =>
      type === "unreachable" && (table === podTable || table === "main") ? prefix : [],
    );
    return found;
  };
  const meets = (prefix: string | undefined, others: () => readonly string[]) =>
    prefix === undefined || others().some((each) => overlaps(prefix, each));
  return rules
    .filter((rule, index) => {
      const ahead = rules.slice(index).some(({ ours, family }) => ours && family === rule.family);
      if (rule.ours || !ahead || !wanted.some(({ family }) => family === rule.family)) return false;
      if (rule.table === local) return false;
      // Who adds and deletes one like ours deletes ours: theirs does the same.
      if (wanted.some((each) => ruleKey(each) === ruleKey(rule))) return false;
      // "Not this mark", as wg-quick has it, is all of ours.
      if (rule.inverted) return true;
      if (rule.narrowed) return false;
      // `lo`: of what this node itself sends.
      if (rule.iif !== undefined && !isPodLink(rule.iif) && !["lo", tunnel].includes(rule.iif)) return false;
      if (rule.goto !== undefined && rule.goto <= lastPriority - 2) return false;
      return meets(rule.to, podCidrs) && (meets(rule.from, podCidrs) || meets(rule.from, () => own));
    })
    .map(({ priority, text }) => `${priority}: ${text}`);
}

/** Rules of others that come before ours: none of ours to change, they are named. */
export class ForeignRules implements Resource<WantedRoutes> {
  readonly #tunnel: string;
  readonly #routes: Routes;
  readonly #links: Links;
  readonly #findings: Findings;

  constructor(tunnel: string, routes: Routes, links: Links, findings: Findings) {
    this.#tunnel = tunnel;
    this.#routes = routes;
    this.#links = links;
    this.#findings = findings;
  }

  /** Nothing is kept here. */
  invalidate(): void {}

  async add(desired: WantedRoutes): Promise<void> {
    const { rules } = await this.#routes.observe();
    const own = (await this.#links.observe()).flatMap((link) => link.addresses.map((each) => each.address));
    reportForeignRules(this.#findings, rules, desired, own, this.#tunnel);
  }
}
