/**
 * The one ordered list of what is added to the node and removed from it. All is added before anything is removed, so
 * that a flow survives whatever does not concern it: guards and the tunnel first, then what leads to them, then the
 * firewall, and the reverse for what goes. The CNI file comes last, as it lets pods start.
 */
import type { Resource } from "../host/resource.ts";
import type { Failures } from "./failures.ts";
import type { Resources, Target } from "./resources.ts";

const parts = ["guard", "add", "remove"] as const;

/** One step of a pass: the parts of some resources, of which the first that fails ends the step. */
type Phase = {
  /** As failures, the log and `/readyz` name it. */
  name: string;
  /** Skipped unless these phases were done. */
  after?: readonly string[];
  /** Skipped if this phase was done. */
  unless?: string;
  /** Only where the agent connects the node's pods (not FIREWALL_ONLY), or only where it does not. */
  onlyIf?: "pods" | "no pods";
} & { [Part in (typeof parts)[number]]?: readonly (keyof Resources)[] };

export const phases: readonly Phase[] = [
  { name: "tunnel", add: ["tunnelLink", "identity"], onlyIf: "pods" },
  { name: "link", add: ["sysctls", "linkSettings"], onlyIf: "pods" },
  { name: "guard", guard: ["firewall"], onlyIf: "pods" },
  { name: "foreign rules", add: ["foreignRules"], onlyIf: "pods" },
  { name: "foreign links", add: ["foreignLinks"], onlyIf: "pods" },
  { name: "foreign routes", add: ["foreignRoutes"], onlyIf: "pods" },
  { name: "peers to add", add: ["peers"], after: ["tunnel"], onlyIf: "pods" },
  // A route to peers that are not there would lead nowhere.
  { name: "routes to add", guard: ["routes"], unless: "peers to add", onlyIf: "pods" },
  { name: "routes to add", add: ["routes"], after: ["peers to add"], onlyIf: "pods" },
  { name: "firewall", add: ["firewall"], after: ["peers to add", "routes to add"] },
  { name: "flow table", add: ["flowTable"], after: ["firewall"] },
  { name: "CNI file to remove", remove: ["cniFile"], onlyIf: "no pods" },
  { name: "routes to remove", remove: ["routes"], after: ["peers to add", "routes to add"] },
  { name: "peers to remove", remove: ["peers"], after: ["routes to remove"] },
  { name: "link to remove", remove: ["tunnelLink"], after: ["routes to remove"] },
  { name: "greeter", add: ["greeter"], after: ["peers to add", "routes to add"], onlyIf: "pods" },
  { name: "forwarding", add: ["forwarding"], onlyIf: "pods" },
  { name: "pods' links", add: ["podLinks"], onlyIf: "pods" },
  { name: "CNI folder", add: ["cniFolder"], onlyIf: "pods" },
  { name: "hostPorts", add: ["hostPorts"], onlyIf: "pods" },
  // Others send into the tunnel as soon as they read of it: before it is there that would be lost.
  { name: "annotations", add: ["annotations"], after: ["tunnel"] },
  {
    name: "CNI file",
    add: ["cniFile"],
    after: ["link", "guard", "firewall", "routes to remove", "link to remove"],
    onlyIf: "pods",
  },
];

/**
 * Brings the node to a desired state. What fails is noted, and stops only what comes after it.
 * @param pods whether the agent connects the node's pods
 * @returns the names of the phases that were done, or that do not apply
 */
export async function apply(
  resources: Resources,
  desired: Target,
  pods: boolean,
  failures: Pick<Failures, "attempt">,
): Promise<ReadonlySet<string>> {
  const done = new Set<string>();
  for (const phase of phases) {
    const { name, after = [], unless, onlyIf } = phase;
    if (onlyIf !== undefined && (onlyIf === "pods") !== pods) {
      done.add(name);
      continue;
    }
    if (!after.every((each) => done.has(each)) || (unless !== undefined && done.has(unless))) continue;
    const succeeded = await failures.attempt(name, async () => {
      for (const part of parts)
        for (const each of phase[part] ?? []) {
          const resource: Resource<Target> = resources[each];
          await resource[part]?.(desired);
        }
      return true;
    });
    if (succeeded) done.add(name);
  }
  return done;
}
