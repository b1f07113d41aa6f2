/**
 * The loop: events mark what is to be looked at, and one pass at a time makes a plan of what the cluster says and
 * has it applied. A pass changes nothing that is right.
 */
import type { Logger } from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import { backoff } from "../cluster/reflector.ts";
import type { Config } from "../config/config.ts";
import { classify, concerned, type Expectation, expectation } from "../host/events/monitor.ts";
import { readIfThere } from "../host/files.ts";
import type { Link } from "../host/link.ts";
import type { ObservedRoutes } from "../host/routes.ts";
import type { UnderlayRoutes } from "../host/underlay.ts";
import { standing, type Tunnel } from "../host/wireguard.ts";
import * as metrics from "../observe/metrics.ts";
import { plan } from "../plan/desired.ts";
import { type KnownAddresses, nodeAddresses, publishedAddresses } from "../plan/identity.ts";
import type { Standing } from "../plan/overlay/claims.ts";
import { Departed } from "../plan/overlay/departed.ts";
import { annotationsOf, mostClaims, type NodeObject } from "../plan/overlay/node.ts";
import { forwardingLinks, matchingLinks, nodeLinks, ownPodRanges } from "../plan/own.ts";
import type { PodRange } from "../plan/podcidr/ranges.ts";
import { retain } from "../plan/retained.ts";
import { Findings } from "../report/findings.ts";
import { type Hands, Host } from "./apply.ts";
import { leftOutAddresses, missingLinks, noPodCidrsYet, surplusPodCidrs } from "./inputs.ts";
import { NodeProblems } from "./problems.ts";
import { Publication } from "./publication.ts";
import { Surroundings } from "./surroundings.ts";

/** Milliseconds in which a burst of events becomes one pass. */
const coalesce = 25;
/** Milliseconds after which a pass hangs: no command runs for longer than a minute, and few may. */
const passLimit = 180_000;

export class Agent {
  readonly #config: Config;
  readonly #nodes: ClusterNodes;
  readonly #host: Host;
  readonly #log: Logger;
  readonly #publicKey: string | null;
  readonly #version: string;
  /** The address that this agent talks to, and where else API servers are. */
  #reserved: { used: readonly string[]; others: readonly string[] };

  #podRanges: PodRange[] | undefined;
  /** Undefined before the first pass. */
  #known: KnownAddresses | undefined;
  /**
   * What decides which of two claims stands: what was in the tunnel when this process began, then what it put there.
   * Not what it sees: in a link that was deleted, or edited by somebody, nothing of it stands any more.
   */
  #standing: Standing | undefined;
  readonly #departed = new Departed();
  #expected: Expectation | undefined;
  readonly #problems: NodeProblems;
  #synced = false;
  /** When the loop should have come round at the latest, in milliseconds of performance.now(). */
  #dueBy = Number.POSITIVE_INFINITY;
  /** The node's own that its links have, and those that it has no more in its Node but its links still have. */
  #addresses: ReadonlySet<string> = new Set();
  readonly #findings: Findings;
  readonly #surroundings: Surroundings;

  readonly #publication = new Publication();

  readonly #reasons = new Set<string>(["start"]);
  #wake: () => void = () => undefined;

  constructor(options: {
    config: Config;
    nodes: ClusterNodes;
    hands: Hands;
    /** Of the tunnel; null if there is none. */
    publicKey: string | null;
    /** Whether the key was made just now, so that no other node knows it. */
    newKey?: boolean;
    version: string;
    /** Addresses that no pod CIDR may cover. */
    reserved: string[];
    log: Logger;
  }) {
    const { config, hands, publicKey, log } = options;
    this.#config = config;
    this.#nodes = options.nodes;
    this.#findings = new Findings(log);
    this.#surroundings = new Surroundings(config, this.#findings);
    this.#host = new Host({
      config,
      hands,
      publicKey,
      newKey: options.newKey ?? false,
      findings: this.#findings,
      log,
    });
    this.#problems = new NodeProblems(log);
    this.#publicKey = publicKey;
    this.#version = options.version;
    this.#reserved = { used: options.reserved, others: [] };
    this.#log = log;
  }

  /** Runs passes until `signal` aborts. Throws if it cannot be told at the start what this node is. */
  async run(signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => this.#wake());
    let resyncAt = this.#nextResync();
    let retryAt = Number.POSITIVE_INFINITY;
    while (!signal.aborted) {
      // Until all nodes are known only a change of the cluster can help: reasons are kept for the first pass.
      const ready = this.#nodes.complete;
      const until = ready
        ? Math.min(resyncAt, retryAt, this.#host.greeter.nextAt, this.#publication.dueAt)
        : Number.POSITIVE_INFINITY;
      this.#dueBy = until + passLimit;
      if (!ready || this.#reasons.size === 0) await this.#sleep(until);
      await Bun.sleep(coalesce);
      if (signal.aborted || !this.#nodes.complete) continue;
      const now = performance.now();
      if (now >= resyncAt) {
        resyncAt = this.#nextResync();
        this.#nodes.refresh(signal);
        this.forget("resync");
      }
      if (now >= retryAt) this.#reasons.add("retry");
      if (now >= this.#publication.dueAt) this.#reasons.add("published");
      if (now >= this.#host.greeter.nextAt) {
        await this.#host.greeter.greet();
        if (this.#reasons.size === 0) continue;
      }
      this.#dueBy = now + passLimit;
      await this.pass();
      metrics.passDuration.observe((performance.now() - now) / 1000);
      const { failures } = this.#host;
      retryAt =
        failures > 0 ? performance.now() + backoff(failures, Math.random()) : Number.POSITIVE_INFINITY;
    }
  }

  /** What keeps the loop from going on, if anything does; a new process may help. */
  stuck(now = performance.now()): string | undefined {
    return now > this.#dueBy
      ? `the loop has hung for ${passLimit / 60_000} minutes in a pass (${this.#host.why})`
      : undefined;
  }

  /** What is not as it should be on this node. */
  unready(): string | undefined {
    if (!this.#nodes.complete) return "the Nodes of the cluster have not been read yet";
    const { failing } = this.#host;
    const wrong = [...failing, ...this.#findings.lines("unready")];
    if (wrong.length > 0) return wrong.join("\n");
    return this.#synced ? undefined : ["not in sync yet", ...this.warnings()].join("\n");
  }

  /** What failed in the last pass, `RESOURCE: REASON` each. */
  get failing(): string[] {
    return this.#host.failing;
  }

  /** What may break this node though it works now, one line each. */
  warnings(): string[] {
    return this.#findings.lines("warning");
  }

  report(...finding: Parameters<Findings["report"]>): void {
    this.#findings.report(...finding);
  }

  /** API servers are at these addresses too: no pod CIDR of another node may take them. */
  reserve(addresses: readonly string[]): void {
    if (Bun.deepEquals(addresses, this.#reserved.others)) return;
    this.#reserved = { ...this.#reserved, others: addresses };
    this.mark("API servers");
  }

  /** Something changed that is known already; a pass is due. */
  mark(reason: string): void {
    this.#reasons.add(reason);
    this.#wake();
  }

  /** What is known of the node may be wrong: the next pass observes everything. */
  forget(reason: string): void {
    this.#host.forget(reason !== "resync");
    this.mark(reason);
  }

  /** A line of `ip monitor`. */
  noticed(line: string): void {
    if (this.#expected === undefined) return;
    const signal = classify(line, this.#expected);
    if (signal === "none") return;
    this.#log.debug({ line, signal }, "the kernel tells of a change");
    if (signal === "everything") this.forget("drift");
    else {
      this.#host.forgetLinks();
      if (signal === "links") this.mark("links changed");
    }
  }

  /** Somebody else changed something of ours in the firewall, or may have. */
  forgetFirewall(): void {
    this.#host.forgetFirewall();
    this.mark("firewall drift");
  }

  /** One pass over all resources. */
  async pass(): Promise<void> {
    const host = this.#host;
    const config = this.#config;
    host.begin([...this.#reasons].join(", "));
    this.#reasons.clear();
    const node = this.#nodes.own as NodeObject;

    const links = await host.attempt("links", () => host.links());
    if (links === undefined) return;
    const underlay = await host.attempt("look at the main table", () => host.underlay.main());
    if (underlay === undefined) return;
    const podRanges = await this.#ownPodRanges(node, links, underlay.gateways);
    if (podRanges === undefined) return;
    const own = {
      name: config.nodeName,
      publicKey: this.#publicKey,
      podRanges,
      ...nodeAddresses(node, links, config, this.#known ?? publishedAddresses(node)),
    };
    this.#known = own;
    this.#findings.report("addresses", leftOutAddresses(own.leftOut));
    this.#followAddresses(links, own.addresses);

    // Only then, as the others begin to send as soon as they read it: into a tunnel that is not there, they would lose
    // what reaches this node without one.
    if (!(await this.#sync(own, links, underlay))) return;
    const podCidrs = podRanges.map((range) => range.subnet);
    const wanted = annotationsOf({ ...own, version: this.#version, podCidrs });
    const before = node.metadata.annotations ?? {};
    const published =
      this.#nodes.ownIsThere &&
      (await host.attempt("annotations", async () => {
        await host.annotate(before, wanted);
        return true;
      }));
    const mayStart =
      config.firewallOnly ||
      host.paper ||
      this.#publication.mayStart(before, wanted, published === true, performance.now());
    await host.applyCni(mayStart);
    if (!mayStart) return;

    if (this.#synced || host.failures > 0 || !this.#nodes.ownIsThere) return;
    this.#synced = true;
    this.#log.info({ nodes: this.#nodes.others.size, podCidrs, addresses: own.endpoints }, "in sync");
  }

  /** @returns whether the tunnel stands, if there should be one */
  async #sync(
    own: Parameters<typeof plan>[0]["own"],
    links: readonly Link[],
    underlay: UnderlayRoutes,
  ): Promise<boolean> {
    const host = this.#host;
    const config = this.#config;
    const nativeRouting = config.firewallOnly ? { ipv4: true, ipv6: true } : config.nativeRouting;
    const overlay = Object.values(nativeRouting).includes(false);
    const tunnel: Tunnel | "none" | undefined = overlay
      ? await host.attempt("tunnel", () => host.tunnel())
      : "none";
    if (typeof tunnel === "object") this.#standing ??= standing(tunnel);
    const routes = await host.attempt("look at routes", () => host.routes());
    if (routes === undefined) return false;
    const flowtable = this.#flowtable(links);
    const nodes = [...this.#nodes.others.values()];
    const input = {
      links,
      tunnel: config.linkName,
      endpoints: own.endpoints,
      nodes,
      families: config.tunnelFamilies,
    };
    const mtu = await host.attempt("look at the underlay", () => host.underlay.mtu(input));
    if (mtu === undefined) return false;
    const planned = plan({
      own,
      nodes,
      settings: { ...config, nativeRouting, flowtable },
      underlayMtu: mtu,
      standing: this.#standing ?? standing({ peers: new Map() }),
      underlay,
      departed: this.#departedClaims(routes, own.podRanges),
      reserved: [...new Set([...this.#reserved.used, ...this.#reserved.others])],
      whole: this.#nodes.whole,
    });
    host.keepElements = !this.#nodes.whole;
    const present = typeof tunnel === "object" ? tunnel.peers : new Map();
    const desired = this.#nodes.whole
      ? planned
      : retain(planned, {
          routes: routes.own,
          rules: routes.rules.filter((rule) => rule.ours),
          peers: present,
        });
    if (tunnel !== undefined) this.#standing = desired.standing;
    this.#problems.report(desired.problems);
    metrics.count(desired, [...this.#nodes.others.values()], own.podRanges.length);
    this.#expected = expectation(
      config.linkName,
      desired,
      underlay.gateways,
      config.flowtable?.devices,
      concerned(config, this.#nodes.own, own, this.#addresses),
    );
    await host.apply(desired, tunnel);
    if (host.backend) metrics.setBuildInfo(this.#version, host.backend);
    const forwarding = forwardingLinks(links, config.linkName, own.endpoints, underlay.defaultLinks);
    await this.#surroundings.look(host, { ...own, cni: desired.cni, forwarding });
    return tunnel !== undefined;
  }

  /** What the configuration says of flows to offload, with the links that are there. */
  #flowtable(links: readonly Link[]): Config["flowtable"] {
    const { flowtable } = this.#config;
    if (flowtable === undefined) return undefined;
    const { linkName } = this.#config;
    const named = flowtable.devices.filter((name) => !name.endsWith("*") && name !== linkName);
    this.#findings.report("FLOWTABLE_DEVICES", missingLinks("FLOWTABLE_DEVICES", named, links));
    const devices = matchingLinks(links, flowtable.devices);
    return { ...flowtable, devices };
  }

  /** Connections to the API server die silently with the address that they come from. */
  #followAddresses(links: readonly Link[], addresses: readonly string[]): void {
    const own = nodeLinks(links, this.#config.linkName);
    const present = new Set(own.flatMap((link) => link.addresses.map((entry) => entry.address)));
    if ([...this.#addresses].some((address) => !present.has(address))) this.#nodes.reconnect();
    this.#addresses = new Set([...this.#addresses, ...addresses].filter((address) => present.has(address)));
    this.#findings.report(
      "NODE_IP_INTERFACES",
      missingLinks("NODE_IP_INTERFACES", this.#config.nodeIpInterfaces, own),
    );
  }

  /** @returns undefined while nothing is known; a source that fails later leaves what it gave before */
  async #ownPodRanges(
    node: NodeObject,
    links: readonly Link[],
    gateways: readonly string[],
  ): Promise<PodRange[] | undefined> {
    const { podCidrSourcePath: path, podCidrSource } = this.#config;
    const taken = [...gateways, ...this.#reserved.used, ...this.#reserved.others];
    const fromFile = path !== undefined && Object.values(podCidrSource).includes("file");
    const compute = async () => {
      const podCidrFile = fromFile ? { path, content: await readIfThere(path) } : undefined;
      return ownPodRanges(node, links, { ...this.#config, podCidrFile }, taken);
    };
    const computed = await (this.#podRanges === undefined
      ? compute()
      : this.#host.attempt("pod CIDRs", compute));
    if (computed !== undefined && (computed.length > 0 || this.#config.firewallOnly)) {
      if (!Bun.deepEquals(computed.slice(0, mostClaims), this.#podRanges))
        this.#log.info({ podCidrs: computed.map((range) => range.subnet) }, "own pod CIDRs");
      this.#podRanges = computed.slice(0, mostClaims);
      this.#findings.report("pod CIDRs", undefined);
      const surplus = computed.slice(mostClaims).map((range) => range.subnet);
      this.#findings.report("surplus pod CIDRs", surplusPodCidrs(surplus));
    } else if (this.#podRanges === undefined)
      this.#findings.report("pod CIDRs", noPodCidrsYet(this.#config.nodeName));
    return this.#podRanges;
  }

  #departedClaims(routes: ObservedRoutes, own: readonly PodRange[]): string[] {
    const claimed = [
      ...own.map((range) => range.subnet),
      ...[...this.#nodes.others.values()].flatMap((node) => node.podCidrs),
    ];
    return this.#departed.claims(claimed, routes.own, performance.now());
  }

  /** Until it is woken or the time has come; `until` in milliseconds of performance.now(). */
  async #sleep(until: number): Promise<void> {
    // A timer's limit is 2^31 ms; to wake early is harmless.
    const timer = setTimeout(
      () => this.#wake(),
      Math.min(Math.max(0, until - performance.now()), 2 ** 31 - 1),
    );
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    clearTimeout(timer);
  }

  #nextResync(): number {
    return performance.now() + this.#config.resyncPeriod * 1_000 * (0.9 + 0.2 * Math.random());
  }
}
