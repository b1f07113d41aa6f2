/**
 * Brings the node to a desired state, resource by resource: what is known of the kernel is kept, so that a change
 * costs its own commands and not a full look; what fails is forgotten, and observed anew at the next pass.
 */
import type { Logger } from "pino";
import type { Config } from "../config/config.ts";
import { applyCni, diffCni, observeCni } from "../host/cni.ts";
import { command, type Step, summary } from "../host/command.ts";
import {
  type Backend,
  chooseBackend,
  diffFirewall,
  elementsIn,
  type ObservedFirewall,
  observeFirewall,
  passedIn,
  settledFirewall,
} from "../host/firewall/firewall.ts";
import { diffDevices, observeDevices } from "../host/firewall/flowtable.ts";
import { reportForeign, TranslatedPackets } from "../host/firewall/foreign.ts";
import { reportForeignRules } from "../host/foreignrules.ts";
import { diffLink, type Link, observeLinks, unfit } from "../host/link.ts";
import { diffRoutes, guardsOf, type ObservedRoutes, observeRoutes, settledRoutes } from "../host/routes.ts";
import { applySysctls } from "../host/sysctls.ts";
import { Underlay } from "../host/underlay.ts";
import { diffIdentity, diffPeers, namedIn, observeTunnel, type Tunnel } from "../host/wireguard.ts";
import * as metrics from "../observe/metrics.ts";
import type { Desired } from "../plan/desired.ts";
import type { Firewall } from "../plan/firewall/firewall.ts";
import { retainElements, unknownNode } from "../plan/retained.ts";
import type { Findings } from "../report/findings.ts";
import { Failures } from "./failures.ts";
import { Greeter } from "./greeting.ts";

/** What acts on the world: for real, or on paper (`--dry-run`). */
export interface Hands {
  perform(steps: readonly Step[]): Promise<void>;
  createLink(name: string, mode: Config["wireguard"]): Promise<void>;
  annotate(annotations: Record<string, string | null>): Promise<void>;
  /** On paper a link that was created is not there to be seen. */
  readonly paper: boolean;
}

export class Host {
  readonly #config: Config;
  readonly #hands: Hands;
  readonly #publicKey: string | null;
  readonly #findings: Findings;
  readonly #translated: TranslatedPackets;
  readonly #log: Logger;

  // Undefined: to be observed.
  #links: Link[] | undefined;
  #tunnel: Tunnel | undefined;
  /** When its handshakes were as old as they say, in seconds since 1970. */
  #tunnelSeenAt = 0;
  #routes: ObservedRoutes | undefined;
  #firewall: ObservedFirewall | undefined;
  /** In the flow table. */
  #devices: string[] | undefined;
  #backend: Backend | undefined;

  /** By public key, the endpoint that we last set. */
  readonly #wantedEndpoints = new Map<string, string | undefined>();
  /**
   * What the next pass has to observe anew. The pass that is under way may still be looking, or writing down what it
   * has done: it would put back what it knew from before the change.
   */
  #forgotten = { links: false, firewall: false, rest: false, lost: false };
  readonly #failures: Failures;
  readonly underlay: Underlay;
  readonly greeter: Greeter;
  /** What the last pass brought the node to, if all of it succeeded that pods need. */
  #applied: Desired | undefined;
  /** Whether the firewall's sets keep what they have, as not all is known of the cluster. */
  keepElements = false;
  /** How often the firewall was observed. */
  firewallLooks = 0;
  /** Why the pass that is under way is made, for the log. */
  why = "start";

  constructor(options: {
    config: Config;
    hands: Hands;
    publicKey: string | null;
    newKey: boolean;
    findings: Findings;
    log: Logger;
  }) {
    this.#config = options.config;
    this.#hands = options.hands;
    this.#publicKey = options.publicKey;
    this.#findings = options.findings;
    this.#translated = new TranslatedPackets(options.findings);
    this.#log = options.log;
    this.#failures = new Failures(options.log);
    const { hands, newKey, log } = options;
    this.greeter = new Greeter({
      link: this.#config.linkName,
      perform: (commands) => this.attempt("greeting", () => hands.perform(commands)),
      paper: hands.paper,
      newKey,
      log,
    });
    this.underlay = new Underlay(options.config.linkName, options.config.families);
  }

  /** How often in a row the worst of the resources failed; 0 if all work. */
  get failures(): number {
    return this.#failures.worst;
  }

  /** What fails now, one line for each resource. */
  get failing(): string[] {
    return this.#failures.reasons;
  }

  get paper(): boolean {
    return this.#hands.paper;
  }

  /** Undefined until it is chosen. */
  get backend(): Backend | undefined {
    return this.#backend;
  }

  /** A pass begins; what the last one did not try any more has no failure left. */
  begin(why: string): void {
    this.why = why;
    this.underlay.begin(this.#forgotten);
    if (this.#forgotten.links) this.#links = undefined;
    if (this.#forgotten.firewall) this.#firewall = undefined;
    if (this.#forgotten.links || this.#forgotten.firewall) this.#devices = undefined;
    if (this.#forgotten.rest) {
      this.#tunnel = undefined;
      this.#routes = undefined;
    }
    this.#forgotten = { links: false, firewall: false, rest: false, lost: false };
    this.#failures.begin();
  }

  forgetLinks(): void {
    this.#forgotten.links = true;
  }

  forgetFirewall(): void {
    this.#forgotten.firewall = true;
  }

  /** @param lost whether something changed, or may have; else it is a resync */
  forget(lost: boolean): void {
    this.#forgotten = { links: true, firewall: true, rest: true, lost: lost || this.#forgotten.lost };
  }

  async links(): Promise<Link[]> {
    this.#links ??= await observeLinks();
    return this.#links;
  }

  async routes(): Promise<ObservedRoutes> {
    this.#routes ??= await observeRoutes(this.#config.linkName, this.#config.families);
    return this.#routes;
  }

  /** The tunnel's link, created if it is not there, with its key and port. */
  async tunnel(): Promise<Tunnel> {
    const { linkName, wireguard, port, privateKeyPath } = this.#config;
    const links = await this.links();
    const own = links.find((link) => link.name === linkName);
    const reason = own && unfit(own, wireguard);
    if (reason) throw new Error(reason);
    if (own === undefined) {
      this.#tunnel = undefined;
      this.#routes = undefined;
      await this.#hands.createLink(linkName, wireguard);
      this.#links = undefined;
      if (this.#hands.paper) {
        this.#links = [...links, { name: linkName, kind: "wireguard", mtu: 0, up: false, addresses: [] }];
        this.#tunnel = { publicKey: undefined, port: 0, marked: false, peers: new Map() };
      }
    }
    if (this.#tunnel === undefined) this.#tunnelSeenAt = Date.now() / 1000;
    const tunnel = this.#tunnel ?? (await observeTunnel(linkName));
    const publicKey = this.#publicKey ?? "";
    await this.perform(
      "WireGuard key and port",
      diffIdentity(linkName, { publicKey, privateKeyPath, port }, tunnel),
    );
    this.#tunnel = { ...tunnel, publicKey, port, marked: false };
    return this.#tunnel;
  }

  /**
   * Adds all, then removes: guards and tunnel first, then what leads to them, then the firewall; the reverse for what
   * goes. The CNI file comes after that, see `applyCni`, as it lets pods start.
   * @param tunnel undefined if there should be one and it failed
   */
  async apply(desired: Desired, tunnel: Tunnel | "none" | undefined): Promise<void> {
    const { linkName, firewallOnly } = this.#config;
    this.#applied = undefined;
    if (firewallOnly) {
      await this.attempt("firewall", () => this.#applyFirewall(desired.firewall));
      await this.attempt("flow table", () => this.#applyDevices(desired.firewall));
      await this.attempt("overlay to remove", () => this.#retireOverlay());
      return;
    }
    const linked = await this.attempt("link", () => this.#applyLink(desired));
    const guarded = await this.attempt("guard", () => this.#applyGuard(desired));
    const observed = await this.attempt("look at routes", () => this.routes());
    if (!observed) return;
    const own = (await this.links()).flatMap((link) => link.addresses.map((entry) => entry.address));
    reportForeignRules(this.#findings, observed.rules, desired, own);
    const peers =
      typeof tunnel === "object" &&
      diffPeers(linkName, desired.peers, tunnel, this.#wantedEndpoints, this.#tunnelSeenAt);
    const peered = peers
      ? await this.attempt("peers to add", async () => {
          this.#tunnel = undefined;
          await this.perform("peers added or changed", peers.add, {
            nodes: namedIn(peers.add, desired.peers),
          });
          for (const { node, publicKey, endpoint } of desired.peers)
            if (node !== unknownNode) this.#wantedEndpoints.set(publicKey, endpoint);
          return true;
        })
      : tunnel === "none";
    const changes = diffRoutes(linkName, peered ? desired : guardsOf(linkName, desired, observed), observed);
    const routed = await this.attempt("routes to add", async () => {
      this.#routes = undefined;
      await this.perform("routes added", changes.add);
      return true;
    });
    if (!peered || !routed) return;
    const filtered = await this.attempt("firewall", () => this.#applyFirewall(desired.firewall));
    await this.attempt("flow table", () => this.#applyDevices(desired.firewall));
    const unrouted = await this.attempt("routes to remove", async () => {
      await this.perform("routes removed", changes.remove);
      this.#routes = settledRoutes(desired, observed);
      return true;
    });
    if (peers && unrouted)
      await this.attempt("peers to remove", async () => {
        await this.perform("peers or prefixes removed", peers.remove);
        this.#tunnel = peers.result;
        for (const key of this.#wantedEndpoints.keys())
          if (!peers.result.peers.has(key)) this.#wantedEndpoints.delete(key);
      });
    if (peers) await this.greeter.meet(desired.peers, typeof tunnel === "object" && tunnel.peers.size === 0);
    this.#applied = linked && guarded && filtered && unrouted ? desired : undefined;
  }

  async annotate(present: Record<string, string>, wanted: Record<string, string | null>): Promise<void> {
    const differing = Object.entries(wanted).filter(([name, value]) => (present[name] ?? null) !== value);
    if (differing.length === 0) return;
    const annotations = Object.fromEntries(differing);
    await this.#hands.annotate(annotations);
    this.#log.info({ why: this.why, annotations }, "own Node annotated");
  }

  /** Runs one resource's part; a failure is told once, noted for the retry, and does not stop the others. */
  async attempt<T>(resource: string, part: () => Promise<T>): Promise<T | undefined> {
    return await this.#failures.attempt(resource, async () => {
      try {
        return await part();
      } catch (error) {
        this.#links = undefined;
        throw error;
      }
    });
  }

  async perform(what: string, steps: readonly Step[], details: object = {}): Promise<void> {
    if (steps.length === 0) return;
    await this.#hands.perform(steps);
    metrics.changes.inc({ what }, steps.length);
    this.#log.info({ why: this.why, ...details, commands: steps.map(summary) }, what);
  }

  async #applyLink(desired: Desired): Promise<true> {
    const { linkName, podIpv6Dad } = this.#config;
    const own = (await this.links()).find((link) => link.name === linkName);
    const skipDad = !podIpv6Dad;
    if (desired.link === undefined) {
      await this.#applySysctls({ skipDad });
      if (own) await this.#retireLink(own);
      return true;
    }
    await this.#applySysctls({ skipDad, link: linkName, linkToCome: this.#hands.paper });
    const steps = own ? diffLink(linkName, desired.link, own) : [];
    await this.perform("link set up", steps, desired.link);
    if (steps.length > 0 && !this.#hands.paper) this.#links = undefined;
    return true;
  }

  #applySysctls(options: Parameters<typeof applySysctls>[1]): Promise<void> {
    const perform = (steps: Step[]) => this.perform("sysctls", steps);
    return applySysctls(this.#config.procSysNet, options, this.#findings, perform);
  }

  /** Of an earlier configuration, in which this plugin connected the node's pods. */
  async #retireOverlay(): Promise<void> {
    const { linkName, cniConfigPath } = this.#config;
    const steps = diffCni(cniConfigPath, undefined, await observeCni(cniConfigPath));
    await this.perform("CNI file removed", steps);
    const nothing = { routes: [], rules: [] };
    const observed = await this.routes();
    await this.perform("routes removed", diffRoutes(linkName, nothing, observed).remove);
    this.#routes = settledRoutes(nothing, observed);
    const own = (await this.links()).find((link) => link.name === linkName);
    if (own) await this.#retireLink(own);
  }

  /** Of an earlier configuration with a tunnel. */
  async #retireLink(link: Link): Promise<void> {
    const kernel = link.kind === "wireguard";
    // One that a wireguard-go serves, which may be a service of the node, stays with that: empty.
    if (!kernel && !(link.kind === "tun" && link.addresses.some((entry) => entry.global))) return;
    // Routes go with their link or its last address.
    this.#routes = undefined;
    this.#links = undefined;
    if (kernel) return await this.perform("link removed", [command`ip link delete dev ${link.name}`]);
    const tunnel = await observeTunnel(link.name);
    await this.perform("link emptied", [
      ...diffPeers(link.name, [], tunnel, new Map(), 0).remove,
      ...diffLink(link.name, { mtu: link.mtu, addresses: [] }, link),
    ]);
  }

  /** What must hold before the tunnel does: all, but no node is reached by a tunnel that is not there yet. */
  async #applyGuard({ firewall }: Desired): Promise<true> {
    this.#backend ??= await chooseBackend(this.#config.firewallBackend);
    this.#firewall ??= await this.#observeFirewall(this.#backend);
    const standing = new Set(elementsIn(this.#backend, this.#firewall, "nodes"));
    const nodes = firewall.sets.nodes.filter((address) => standing.has(address));
    return await this.#applyFirewall({ ...firewall, sets: { ...firewall.sets, nodes } });
  }

  #observeFirewall(backend: Backend): Promise<ObservedFirewall> {
    this.firewallLooks++;
    return observeFirewall(backend);
  }

  async #applyFirewall(wanted: Firewall): Promise<true> {
    this.#backend ??= await chooseBackend(this.#config.firewallBackend);
    const backend = this.#backend;
    const observed = this.#firewall ?? (await this.#observeFirewall(backend));
    this.#firewall = undefined;
    const firewall = this.keepElements
      ? retainElements(wanted, (set) => elementsIn(backend, observed, set))
      : wanted;
    reportForeign(this.#findings, observed, this.#config.port);
    this.#translated.report(passedIn(backend, observed));
    const commands = diffFirewall(backend, firewall, observed);
    if (commands.length > 0) this.#devices = this.#hands.paper ? [] : undefined;
    if (commands.length > 0)
      await metrics.firewallSync(backend, () => this.perform("firewall", commands, { backend }));
    this.#firewall = settledFirewall(backend, firewall, observed);
    return true;
  }

  /** After the rules that need none of them: a link may go while it is put in. */
  async #applyDevices({ devices }: Firewall): Promise<void> {
    if (devices === undefined || this.#firewall === undefined) return;
    const present = this.#devices ?? (await observeDevices());
    this.#devices = undefined;
    try {
      await this.perform("flow table", diffDevices(devices, present));
    } catch (error) {
      const there = (await observeLinks()).map((link) => link.name);
      // Its going is told, and has a pass of its own.
      if (devices.some((device) => !there.includes(device))) return;
      throw error;
    }
    this.#devices = devices;
  }

  /** The CNI file, if all that pods need is applied. @param mayStart whether pods may, too */
  async applyCni(mayStart: boolean): Promise<void> {
    const cni = this.#applied?.cni;
    if (cni === undefined) return;
    const perform = (steps: Step[], details: object) => this.perform("CNI file", steps, details);
    await this.attempt("CNI file", () => applyCni(this.#config.cniConfigPath, cni, mayStart, perform));
  }
}
