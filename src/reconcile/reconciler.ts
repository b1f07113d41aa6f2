/** One pass: looks at the node and at what the cluster says, plans, and has the plan applied. What is right stays as it is. */
import type { Logger } from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import type { Config } from "../config/config.ts";
import { type Step, summary } from "../host/command.ts";
import { classify, concerned, type Expectation, expectation } from "../host/events/monitor.ts";
import type { Executor } from "../host/executor.ts";
import type { Link } from "../host/link.ts";
import type { Reason } from "../host/resource.ts";
import type { UnderlayRoutes } from "../host/underlay.ts";
import { standing } from "../host/wireguard.ts";
import { type Family, familyOf } from "../net/address.ts";
import type { ReadonlyTable } from "../net/table.ts";
import { Plan, type PlanInput, type OwnNode as PlannedNode } from "../plan/desired.ts";
import { leavingFamilies, withoutIpv6 } from "../plan/ipv6.ts";
import { Departed } from "../plan/overlay/departed.ts";
import { annotationsOf, type NodeObject } from "../plan/overlay/node.ts";
import { type Route, routeTable } from "../plan/overlay/routes.ts";
import { forwardingLinks } from "../plan/own.ts";
import { retain } from "../plan/retained.ts";
import { Findings } from "../report/findings.ts";
import { Failures } from "./failures.ts";
import type { Timer } from "./loop.ts";
import type { Observer } from "./observer.ts";
import { OwnNode } from "./ownnode.ts";
import { apply } from "./phases.ts";
import { NodeProblems } from "./problems.ts";
import { invalidate, type Resources, resourcesOf, type Target } from "./resources.ts";

interface Means {
  config: Config;
  nodes: ClusterNodes;
  executor: Executor;
  /** Of the tunnel; null if there is none. */
  publicKey: string | null;
  /** Whether the key was made just now, so that no other node knows it. */
  newKey?: boolean;
  version: string;
  /** Addresses that no pod CIDR may cover. */
  reserved: string[];
  observer: Observer;
  /** A pass is due, for this reason. */
  wake: (reason: string) => void;
  log: Logger;
}

/** A tunnel without peers. */
const nothing = { peers: new Map() };

export class Reconciler {
  readonly #means: Means;
  readonly findings: Findings;
  readonly failures: Failures;
  readonly #resources: Resources;
  readonly #ownNode: OwnNode;
  readonly #problems: NodeProblems;
  readonly #departed = new Departed();
  /** The address that this agent talks to, and where else API servers are. */
  #reserved: { used: readonly string[]; others: readonly string[] };
  /**
   * Which of two claims counts is decided by what was in the tunnel when this process began, then by what it put there.
   * Not by what it sees: in a link that was deleted, or edited by somebody, nothing of it is there any more.
   */
  #plan: Plan | undefined;
  #expected: Expectation | undefined;
  /**
   * Why the next pass has to look anew. The pass that is under way may still be looking, or writing down what it has
   * done: it would put back what it knew from before the change.
   */
  #outdated = new Set<Reason>();
  #synced = false;
  /** Why the pass that is under way is made, for the log. */
  #why = "start";

  constructor(means: Means) {
    const { config, nodes, executor, publicKey, observer, log } = means;
    this.#means = means;
    this.findings = new Findings(log);
    this.failures = new Failures(log, observer, () => invalidate(this.#resources, "failure"));
    this.#problems = new NodeProblems(log);
    this.#reserved = { used: means.reserved, others: [] };
    const { failures, findings } = this;
    this.#ownNode = new OwnNode({
      config,
      reader: executor,
      publicKey,
      failures,
      findings,
      addressLeft: () => nodes.reconnect(),
      log,
    });
    this.#resources = resourcesOf({
      ...{ config, nodes, executor, publicKey, failures, findings, log },
      newKey: means.newKey ?? false,
      perform: (what, steps, details) => this.#perform(what, steps, details),
      annotate: async (annotations) => {
        await executor.annotate(annotations);
        log.info({ why: this.#why, annotations }, "own Node annotated");
      },
    });
  }

  /** What is not as it should be on this node. */
  unready(): string | undefined {
    if (!this.#means.nodes.complete) return "the Nodes of the cluster have not been read yet";
    const wrong = [...this.failures.reasons, ...this.findings.lines("unready")];
    if (wrong.length > 0) return wrong.join("\n");
    return this.#synced ? undefined : ["not in sync yet", ...this.warnings()].join("\n");
  }

  /** What may break this node though it works now, one line each. */
  warnings(): string[] {
    return this.findings.lines("warning");
  }

  /** Peers that are greeted beside the passes, which a large cluster would keep waiting. */
  get greeter(): Timer {
    const { greeter } = this.#resources;
    return { nextAt: () => greeter.nextAt, fire: () => greeter.greet() };
  }

  /** Pods start in a pass of its own, once others know whose they are. */
  get publication(): Timer {
    return {
      nextAt: () => this.#resources.annotations.dueAt,
      fire: async () => this.#means.wake(this.#resources.annotations.due()),
    };
  }

  /** API servers are at these addresses too: no pod CIDR of another node may take them. */
  reserve(addresses: readonly string[]): void {
    if (Bun.deepEquals(addresses, this.#reserved.others)) return;
    this.#reserved = { ...this.#reserved, others: addresses };
    this.#means.wake("API servers");
  }

  /** What is known of the node may not hold any more: the next pass looks anew. */
  outdated(reason: Reason): void {
    this.#outdated.add(reason);
  }

  /** A line of `ip monitor`. */
  noticed(line: string): void {
    if (this.#expected === undefined) return;
    const signal = classify(line, this.#expected);
    if (signal === "none") return;
    const { log, wake } = this.#means;
    log.debug({ line, signal }, "the kernel tells of a change");
    this.outdated(signal === "everything" ? "drift" : "links");
    if (signal === "everything") wake("drift");
    if (signal === "links") wake("links changed");
  }

  /** @param why for the log */
  async pass(why: string): Promise<void> {
    const { config, nodes, version, log } = this.#means;
    const { failures } = this;
    const { links: allLinks, ipv6: ipv6Sysctls, underlay, annotations, firewall } = this.#resources;
    this.#why = why;
    for (const reason of this.#outdated) invalidate(this.#resources, reason);
    this.#outdated.clear();
    failures.begin();

    const links = await failures.attempt("links", () => allLinks.observe());
    if (links === undefined) return;
    const ipv6 = await failures.attempt("IPv6", () => ipv6Sysctls.observe());
    if (ipv6 === undefined) return;
    const main = await failures.attempt("look at the main table", () => underlay.observe());
    if (main === undefined) return;
    const reserved = [...new Set([...this.#reserved.used, ...this.#reserved.others])];
    const own = await this.#ownNode.look(nodes.own as NodeObject, links, ipv6, main.gateways, reserved);
    if (own === undefined) return;
    // What fails here fails when the tunnel is set up, too, and is told there.
    const tunnel = this.#hasTunnel ? await this.#resources.peers.observe().catch(() => undefined) : undefined;
    if (tunnel !== undefined || !this.#hasTunnel) this.#plan ??= new Plan(standing(tunnel ?? nothing));
    const present = await failures.attempt("look at routes", () => this.#resources.routes.observe());
    if (present === undefined) return;
    const leaving = leavingFamilies(links, config.linkName, config.tunnelFamilies);
    const mtu = await failures.attempt("look at the underlay", () => this.#underlayMtu(own, links, leaving));
    if (mtu === undefined) return;

    // Without a look at the tunnel, nothing is known of what it had: that is not to be remembered.
    const plan = this.#plan ?? new Plan(standing(nothing));
    const input = this.#input({ own, links, leaving, main, mtu, reserved, routes: present.own });
    const planned = withoutIpv6(plan.update(input), ipv6, own.podRanges);
    const whole = nodes.whole;
    const desired = whole
      ? planned
      : retain(planned, {
          routes: [...present.own.values()],
          rules: present.rules.filter((rule) => rule.ours),
          peers: tunnel?.peers ?? new Map(),
        });
    this.#problems.report(desired.problems);
    this.#means.observer.planned(desired, nodes.others, own.podRanges.length);
    this.#expected = expectation(
      config.linkName,
      desired,
      main.gateways,
      config.flowtable?.devices,
      concerned(config, nodes.own, own, this.#ownNode.addresses),
    );
    const podCidrs = own.podRanges.map((range) => range.subnet);
    const target: Target = {
      ...desired,
      // Of an earlier configuration, in which this plugin connected the node's pods.
      ...(config.firewallOnly ? { routes: routeTable([]), rules: [], cni: undefined } : {}),
      whole,
      leaving,
      annotations: annotationsOf({ ...own, version, podCidrs }),
      podCidrs: podCidrs.filter((prefix) => familyOf(prefix) === "ipv4" || ipv6.newLinks),
      podFamilies: new Set(podCidrs.map(familyOf)),
      forwarding: forwardingLinks(links, config.linkName, own.endpoints, main.defaultLinks),
    };
    await apply(this.#resources, target, !config.firewallOnly, failures);
    if (firewall.backend) this.#means.observer.choseBackend(firewall.backend);

    if (this.#synced || !annotations.mayStart || failures.reasons.length > 0 || !nodes.ownIsThere) return;
    this.#synced = true;
    log.info({ nodes: nodes.others.size, podCidrs, addresses: own.endpoints }, "in sync");
  }

  get #nativeRouting(): Config["nativeRouting"] {
    const { firewallOnly, nativeRouting } = this.#means.config;
    return firewallOnly ? { ipv4: true, ipv6: true } : nativeRouting;
  }

  get #hasTunnel(): boolean {
    return Object.values(this.#nativeRouting).includes(false);
  }

  #underlayMtu(own: PlannedNode, links: readonly Link[], families: readonly Family[]): Promise<number> {
    const { config, nodes } = this.#means;
    return this.#resources.underlay.mtu({
      links,
      tunnel: config.linkName,
      endpoints: own.endpoints,
      nodes: nodes.others,
      families,
    });
  }

  #input(looked: {
    own: PlannedNode;
    links: readonly Link[];
    /** Families that the tunnel's packets can have. */
    leaving: readonly Family[];
    main: UnderlayRoutes;
    mtu: number;
    reserved: readonly string[];
    routes: ReadonlyTable<Route>;
  }): PlanInput {
    const { config, nodes } = this.#means;
    const { own, links, leaving, main, mtu, reserved, routes } = looked;
    const podCidrs = own.podRanges.map((range) => range.subnet);
    return {
      own,
      nodes: nodes.others,
      settings: {
        ...config,
        tunnelFamilies: leaving,
        nativeRouting: this.#nativeRouting,
        flowtable: this.#ownNode.flowtable(links),
      },
      underlayMtu: mtu,
      underlay: main,
      departed: this.#departed.claims(podCidrs, nodes.others, routes, performance.now()),
      reserved,
      whole: nodes.whole,
    };
  }

  async #perform(what: string, steps: readonly Step[], details: object = {}): Promise<void> {
    if (steps.length === 0) return;
    const { executor, observer, log } = this.#means;
    const begin = performance.now();
    let succeeded = false;
    try {
      await executor.perform(steps);
      succeeded = true;
    } finally {
      const seconds = (performance.now() - begin) / 1000;
      observer.changed({ what, commands: steps.length, seconds, succeeded, details });
    }
    log.info({ why: this.#why, ...details, commands: steps.map(summary) }, what);
  }
}
