/** Rules of others that are looked at before ours, and may take pods' packets from us. */

import { overlaps } from "../net/address.ts";
import { lastPriority, podTable } from "../plan/overlay/routes.ts";
import type { Findings } from "../report/findings.ts";
import type { DesiredRoutes } from "./routes.ts";
import { type ObservedRule, settledRules } from "./rules.ts";

/** The table of this node's own addresses. */
const local = "255";

/**
 * @param rules all of the kernel's, in its order
 * @param desired of the plan
 * @param own addresses of this node, from which its programs answer pods
 */
export function reportForeignRules(
  findings: Findings,
  rules: readonly ObservedRule[],
  desired: DesiredRoutes,
  own: readonly string[],
): void {
  const names = catchingRules(settledRules(desired.rules, rules), desired, own);
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

/** Those that match packets to or from pods by addresses alone, as `ip -N rule` shows them. */
export function catchingRules(
  rules: readonly ObservedRule[],
  { routes, rules: wanted }: DesiredRoutes,
  own: readonly string[],
): string[] {
  const podCidrs = routes.flatMap(({ type, prefix, table }) =>
    type === "unreachable" && (table === podTable || table === "main") ? prefix : [],
  );
  const meets = (prefix: string | undefined, others: readonly string[]) =>
    prefix === undefined || others.some((each) => overlaps(prefix, each));
  return rules
    .filter((rule, index) => {
      const ahead = rules.slice(index).some(({ ours, family }) => ours && family === rule.family);
      if (rule.ours || !ahead || !wanted.some(({ family }) => family === rule.family)) return false;
      if (rule.table === local) return false;
      // "Not this mark", as wg-quick has it, is all of ours.
      if (rule.inverted) return true;
      if (rule.narrowed) return false;
      if (rule.goto !== undefined && rule.goto <= lastPriority - 2) return false;
      return meets(rule.to, podCidrs) && meets(rule.from, [...podCidrs, ...own]);
    })
    .map(({ priority, text }) => `${priority}: ${text}`);
}
