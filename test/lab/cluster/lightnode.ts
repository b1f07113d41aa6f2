/**
 * A light node: network, mount and PID namespaces, a Node object, and the agent as the compiled executable. It has
 * a disk (overlays on /etc, /var and /opt) that outlives a power cut, and everything else goes with its PID 1.
 */
import { existsSync, lstatSync, mkdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Family } from "../../../src/net/address.ts";
import { gatePath } from "../../../src/plan/cni.ts";
import { tool, wireguardGo } from "../cache.ts";
import { type Addresses, type Host, Namespace } from "../kernel/namespace.ts";
import type { LinkOptions, Underlay } from "../kernel/underlay.ts";
import { Service, until } from "../process.ts";
import type { Api, Node } from "./api.ts";
import type { ControlPlane } from "./controlplane.ts";
import { initScript, systemdScript } from "./lightnode-init.ts";
import { kubeconfig } from "./pki.ts";
import { Place } from "./place.ts";
import { Pod, type PodOptions } from "./pod.ts";

/** The file that the agent writes and CNI reads. */
export const cniFile = "/etc/cni/net.d/10-wigglenet.conflist";

export interface LightNodeOptions extends Omit<LinkOptions, "addresses"> {
  name?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  /** Listed as ExternalIPs in the Node's status; see Underlay.nat for the translation. */
  external?: Addresses;
  /** Given to the Node when it is made; default: what the controller-manager allocates. [] asks for none. */
  podCIDRs?: string[];
  /** For this node's agent, over the lab's. */
  env?: Record<string, string>;
  /** Whether its PID 1 is systemd, for the agent as a service; needs cgroup v2, as the virtual machine has it. */
  systemd?: boolean;
}

/** "service" is wireguard-go run by the node, which the agent adopts; "child" one that the agent starts itself. */
export type Wireguard = "kernel" | "service" | "child";

/** What all of a lab's light nodes have in common. */
export interface LabContext {
  underlay: Underlay;
  /** Of pods. */
  families: Family[];
  wireguard: Wireguard;
  /** The agent's executable. */
  binary: string;
  env: Record<string, string>;
}

const root = (pid: number) => `/proc/${pid}/root`;
const account = "/api/v1/namespaces/kube-system/serviceaccounts/wigglenet";
const credentials = "/etc/kubernetes/wigglenet";

export class LightNode implements Host, AsyncDisposable {
  readonly name: string;
  readonly options: LightNodeOptions;
  readonly pods = new Map<string, Pod>();
  readonly #lab: LabContext;
  #addresses: Addresses;
  #joined: ControlPlane | undefined;
  #namespace: Namespace | undefined;
  #init: Service | undefined;
  #wireguard: Service | undefined;
  #agent: Service | undefined;
  #agentLogFrom = 0;

  constructor(name: string, addresses: Addresses, lab: LabContext, options: LightNodeOptions) {
    this.name = name;
    this.#addresses = addresses;
    this.#lab = lab;
    this.options = options;
  }

  get addresses(): Addresses {
    return this.#addresses;
  }

  get podFamilies(): Family[] {
    const env = this.agentEnv();
    return this.#lab.families.filter((family) => env[`POD_CIDR_SOURCE_${family.toUpperCase()}`] !== "none");
  }

  get place(): Place {
    return this.namespace.place;
  }

  get namespace(): Namespace {
    if (!this.#namespace) throw new Error(`node ${this.name} is off`);
    return this.#namespace;
  }

  get #controlPlane(): ControlPlane {
    if (!this.#joined) throw new Error(`node ${this.name} has joined no cluster`);
    return this.#joined;
  }

  get #api(): Api {
    return this.#controlPlane.api;
  }

  /** zx inside the node: ``await node.$`ip route` ``. */
  get $() {
    return this.namespace.$;
  }

  /** Switches it on: nothing runs but WireGuard, if that is a service of the node. */
  async boot(): Promise<void> {
    const { underlay } = this.#lab;
    const disk = `${underlay.dir}/nodes/${this.name}`;
    mkdirSync(disk, { recursive: true });
    const flags = "--net --mount --pid --uts --fork --kill-child --propagation private".split(" ");
    const pid1 = this.options.systemd ? systemdScript : `exec ${tool("enter")} hold`;
    const script = `${initScript}\n${pid1}`;
    const init = ["unshare", ...flags, "/bin/sh", "-ec", script, "init", this.name, disk];
    this.#init = Service.start(`node ${this.name}`, init, { log: this.#log("init"), joinsPids: true });
    const pid = await this.#init.pid();
    const ready = `${root(pid)}/run/booted`;
    await until(`node ${this.name} to boot`, () => existsSync(ready), {
      every: 5,
      why: () => this.#init!.tail(),
    });
    const place = await Place.start(this.name, [tool("enter"), "run", String(pid), tool("place")], {
      forks: true,
    });
    this.#namespace = new Namespace(this.name, place, pid, true);
    await underlay.attach(this.name, this.#namespace, { ...this.options, addresses: this.#addresses });
    if (this.#lab.wireguard === "service") await this.startWireguard();
  }

  /** Makes the Node object and the agent's credentials. */
  async join(controlPlane: ControlPlane): Promise<void> {
    const { labels = {}, annotations = {}, podCIDRs } = this.options;
    this.#joined = controlPlane;
    const spec = podCIDRs?.[0] === undefined ? {} : { podCIDR: podCIDRs[0], podCIDRs };
    await this.#api.create({
      apiVersion: "v1",
      kind: "Node",
      metadata: { name: this.name, labels, annotations },
      spec,
    });
    await this.publishAddresses();
    await this.renewToken();
  }

  /** The Node object as the API server has it. */
  object(): Promise<Node> {
    return this.#api.node(this.name);
  }

  patch(change: object): Promise<Node> {
    return this.#api.patch<Node>(`/api/v1/nodes/${this.name}`, change);
  }

  /** The Node's pod CIDRs, once they are allocated. */
  podCIDRs(timeout = 10_000): Promise<string[]> {
    return until(`pod CIDRs of ${this.name}`, async () => (await this.object()).spec.podCIDRs, { timeout });
  }

  /** Writes status.addresses: by default what the node has. */
  async publishAddresses(internal = this.#addresses, external = this.options.external ?? {}): Promise<void> {
    const typed = (type: string, { ipv4, ipv6 }: Addresses) =>
      [ipv4, ipv6].filter((address) => address !== undefined).map((address) => ({ type, address }));
    const addresses = [
      ...typed("InternalIP", internal),
      ...typed("ExternalIP", external),
      { type: "Hostname", address: this.name },
    ];
    const conditions = [
      { type: "Ready", status: "True", reason: "Light", message: "a light node of the lab" },
    ];
    await this.#api.patch(`/api/v1/nodes/${this.name}/status`, { status: { addresses, conditions } });
  }

  /** Gives the node other addresses, on its link and in its status. */
  async readdress(to: Addresses): Promise<void> {
    await this.#lab.underlay.readdress(this.namespace, this.#addresses, to);
    this.#addresses = to;
    await this.publishAddresses();
  }

  /** A new service account token, bound to this Node, where the agent's kubeconfig has it. The token. */
  async renewToken(seconds = 3600): Promise<string> {
    const { ca } = this.#controlPlane;
    const { uid } = (await this.object()).metadata;
    const boundObjectRef = { apiVersion: "v1", kind: "Node", name: this.name, uid };
    const request = {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: { boundObjectRef, expirationSeconds: seconds },
    };
    const { status } = await this.#api.request<{ status: { token: string } }>(
      "POST",
      `${account}/token`,
      request,
    );
    const server = this.#controlPlane.server(this.#addresses.ipv4 ? "ipv4" : "ipv6");
    await this.write(`${credentials}/token`, status.token);
    await this.write(
      `${credentials}/kubeconfig`,
      kubeconfig(server, { pem: ca }, { tokenFile: `${credentials}/token` }),
    );
    return status.token;
  }

  // --- files ---

  /** A file of the node, symbolic links followed as the node does; undefined if there is none. */
  read(path: string): string | undefined {
    const at = `${root(this.namespace.pid)}${path}`;
    const found = lstatSync(at, { throwIfNoEntry: false });
    if (found?.isSymbolicLink()) return this.read(resolve(dirname(path), readlinkSync(at)));
    return found?.isFile() ? readFileSync(at, "utf8") : undefined;
  }

  async write(path: string, text: string): Promise<void> {
    await Bun.write(`${root(this.namespace.pid)}${path}`, text);
  }

  // --- the agent ---

  /** Starts wireguard-go as a service of the node, before any agent. */
  async startWireguard(link = "wigglenet"): Promise<void> {
    this.#wireguard = this.#start("wireguard-go", [wireguardGo, "-f", link], { LOG_LEVEL: "error" });
    const socket = `${root(this.namespace.pid)}/run/wireguard/${link}.sock`;
    await until("wireguard-go to listen", () => existsSync(socket), {
      every: 5,
      why: () => this.#wireguard!.tail(),
    });
    // Packets wait here while wireguard-go waits for the processor.
    await this.namespace.ip(`link set ${link} txqueuelen 10000`);
    // It writes a checksum of 0 where UDP over IPv6 has to have 0xffff: one of 65,536 packets would be dropped.
    await this.namespace.run(["ethtool", "-K", link, "tx", "off"]);
  }

  async stopWireguard(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    await this.#wireguard?.stop(signal);
    this.#wireguard = undefined;
  }

  /** What the agent is started with. */
  agentEnv(env: Record<string, string> = {}): Record<string, string> {
    const wireguard = this.#lab.wireguard === "kernel" ? "kernel" : "userspace";
    return {
      PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      NODE_NAME: this.name,
      KUBECONFIG: `${credentials}/kubeconfig`,
      WIREGUARD: wireguard,
      ...this.#lab.env,
      ...this.options.env,
      ...env,
    };
  }

  /** Starts the agent, the lab's or another executable; does not wait for anything that it does. */
  startAgent(env: Record<string, string> = {}, binary = this.#lab.binary): void {
    if (this.#agent?.running) throw new Error(`the agent of ${this.name} runs already`);
    const log = this.#log("agent");
    this.#agentLogFrom = existsSync(log) ? lstatSync(log).size : 0;
    this.#agent = this.#start("agent", [binary, "agent"], this.agentEnv(env));
  }

  /** The exit code. */
  async stopAgent(signal: NodeJS.Signals = "SIGTERM"): Promise<number> {
    if (!this.#agent) throw new Error(`no agent was started on ${this.name}`);
    return await this.#agent.stop(signal);
  }

  async killAgent(): Promise<void> {
    await this.stopAgent("SIGKILL");
  }

  /** Whether the agent runs, and its process id as this process sees it. */
  get agentRuns(): boolean {
    return this.#agent?.running ?? false;
  }

  async agentPid(): Promise<number> {
    if (!this.#agent) throw new Error(`no agent was started on ${this.name}`);
    return await this.#agent.pid();
  }

  /** The exit code of an agent that ends by itself. */
  async agentExit(): Promise<number> {
    return (await this.#agent?.exited) ?? -1;
  }

  /** The lines of the agent's log since its last start (or of all its lives); what is not JSON as { text }. */
  agentLog({ all = false } = {}): Record<string, unknown>[] {
    const log = this.#log("agent");
    if (!existsSync(log)) return [];
    const text = readFileSync(log)
      .subarray(all ? 0 : this.#agentLogFrom)
      .toString();
    return text
      .split("\n")
      .filter(Boolean)
      .map((line) => {
        try {
          return JSON.parse(line) as Record<string, unknown>;
        } catch {
          return { text: line };
        }
      });
  }

  /** Waits until pods can start: for the CNI file, and the file that its pods wait for. The agent makes both. */
  async ready(timeout = 15_000): Promise<void> {
    await until(
      `the CNI file of ${this.name}`,
      () => {
        if (this.#agent && !this.#agent.running)
          throw new Error(`the agent of ${this.name} has ended:\n${this.#agent.tail()}`);
        // After a reboot the file is there from before; its pods start once what it waits for is there too.
        const content = this.read(cniFile);
        return content !== undefined && (!content.includes(gatePath) || this.read(gatePath) !== undefined);
      },
      {
        timeout,
        every: 10,
        why: () => `The agent's log ends:\n${this.#agent?.tail() ?? "(no agent was started)"}`,
      },
    );
  }

  /** Waits until the agent, as it was last started, says that it is in sync. */
  async inSync(timeout = 10_000): Promise<void> {
    await until(
      `the agent of ${this.name} to be in sync`,
      () => this.agentLog().some((line) => line.msg === "in sync"),
      { timeout, why: () => JSON.stringify(this.agentLog().slice(-5)) },
    );
  }

  // --- pods, power ---

  /** A pod by the node's CNI file, ready as soon as CNI says so. */
  async pod(name: string, options: PodOptions = {}): Promise<Pod> {
    const pod = await Pod.add(this, name, options);
    this.pods.set(name, pod);
    return pod;
  }

  /** Power cut: every process, pod, link and file under /run is gone; the disk stays. */
  async powerCut(): Promise<void> {
    await this.#lab.underlay.detach(this.name);
    await this[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.on) return;
    process.kill(this.namespace.pid, "SIGKILL");
    await this.#init!.exited;
    await Promise.all([this.#agent?.exited, this.#wireguard?.exited]);
    this.pods.clear();
    this.#namespace = this.#agent = this.#wireguard = undefined;
  }

  get on(): boolean {
    return this.#namespace !== undefined;
  }

  #log(name: string): string {
    return `${this.#lab.underlay.dir}/log/${this.name}-${name}.log`;
  }

  #start(name: string, argv: string[], env: Record<string, string>): Service {
    return this.namespace.start(`${name} of ${this.name}`, argv, this.#log(name), {
      PATH: process.env.PATH!,
      ...env,
    });
  }
}
