/** The firewall as a resource of the node, by whichever backend. */
import type { Config } from "../../config/config.ts";
import { differences } from "../../net/sortedkeys.ts";
import { type Firewall, listed, type PlannedFirewall } from "../../plan/firewall/model.ts";
import { retainElements } from "../../plan/retained.ts";
import type { Findings } from "../../report/findings.ts";
import type { Executor, Perform } from "../executor.ts";
import type { Reason, Resource } from "../resource.ts";
import {
  type Backend,
  chooseBackend,
  diffFirewall,
  elementsIn,
  type ObservedFirewall,
  observeFirewall,
  passedIn,
  settledFirewall,
} from "./firewall.ts";
import { reportForeign, TranslatedPackets } from "./foreign.ts";

interface DesiredFirewall {
  firewall: PlannedFirewall;
  /** Whether all of the cluster is known; else the sets keep what they have. */
  whole: boolean;
}

interface Means {
  config: Pick<Config, "firewallBackend" | "port">;
  findings: Findings;
  executor: Executor;
  perform: Perform;
  /** Called after a change, which may have made the flow table anew. */
  written: () => void;
}

export class HostFirewall implements Resource<DesiredFirewall> {
  readonly #means: Means;
  readonly #translated: TranslatedPackets;
  #backend: Backend | undefined;
  #observed: ObservedFirewall | undefined;
  /** What the last change brought it to. */
  #settled: Firewall | undefined;
  /** What was observed last, with which the next look compares. */
  #before: ObservedFirewall | undefined;

  constructor(means: Means) {
    this.#means = means;
    this.#translated = new TranslatedPackets(means.findings);
  }

  /** Undefined until it is chosen. */
  get backend(): Backend | undefined {
    return this.#backend;
  }

  invalidate(reason: Reason): void {
    if (!["firewall", "drift", "resync"].includes(reason)) return;
    this.#before = this.#observed ?? this.#before;
    this.#observed = undefined;
    this.#settled = undefined;
  }

  /** All of it, but no node is reached by a tunnel that is not there yet. */
  async guard({ firewall, whole }: DesiredFirewall): Promise<void> {
    const wanted = listed(firewall);
    if (this.#isSettled(wanted, whole)) return;
    const added = new Set(await this.#newNodes(wanted));
    if (added.size === 0) return await this.#change(wanted, whole);
    const nodes = wanted.sets.nodes.filter((address) => !added.has(address));
    await this.#apply({ ...wanted, sets: { ...wanted.sets, nodes } }, whole);
  }

  /** Addresses of nodes that are not in there. */
  async #newNodes({ sets: { nodes } }: Firewall): Promise<string[]> {
    const { backend, observed } = await this.#look();
    if (this.#settled !== undefined) return differences(this.#settled.sets.nodes, nodes).added;
    const present = new Set(elementsIn(backend, observed, "nodes"));
    return nodes.filter((address) => !present.has(address));
  }

  async add({ firewall, whole }: DesiredFirewall): Promise<void> {
    const wanted = listed(firewall);
    if (this.#isSettled(wanted, whole)) return;
    await this.#change(wanted, whole);
  }

  async #change(wanted: Firewall, whole: boolean): Promise<void> {
    await this.#apply(wanted, whole);
    this.#settled = whole ? wanted : undefined;
  }

  /** Whether it is known to be there, from the last time: sets and chains that did not change are the same objects. */
  #isSettled({ chains, sets, maps, devices }: Firewall, whole: boolean): boolean {
    const settled = this.#settled;
    if (!whole || settled === undefined || this.#observed === undefined) return false;
    return (
      settled.chains === chains &&
      Object.entries(sets).every(([name, members]) => settled.sets[name] === members) &&
      Bun.deepEquals([settled.maps, settled.devices], [maps, devices])
    );
  }

  async #apply(firewall: Firewall, whole: boolean): Promise<void> {
    const { config, findings, perform, written } = this.#means;
    const { backend, observed } = await this.#look();
    this.#observed = undefined;
    // A guard brings it to less.
    this.#settled = undefined;
    const wanted = whole ? firewall : retainElements(firewall, (set) => elementsIn(backend, observed, set));
    reportForeign(findings, observed, config.port);
    this.#translated.report(passedIn(backend, observed));
    const commands = diffFirewall(backend, wanted, observed);
    if (commands.length > 0) written();
    await perform("firewall", commands, { backend });
    const settled = settledFirewall(backend, wanted, observed);
    const { listing } = observed;
    this.#observed = commands.length === 0 && listing ? { ...settled, listing } : settled;
  }

  async #look(): Promise<{ backend: Backend; observed: ObservedFirewall }> {
    this.#backend ??= await chooseBackend(this.#means.executor, this.#means.config.firewallBackend);
    this.#observed ??= await observeFirewall(this.#means.executor, this.#backend, this.#before);
    return { backend: this.#backend, observed: this.#observed };
  }
}
