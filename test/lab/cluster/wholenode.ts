/** A whole node: a real kubelet, containerd and kube-proxy in namespaces of their own, with a power switch. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Family } from "../../../src/net/address.ts";
import { kubernetesDir, wireguardGo } from "../cache.ts";
import { copyStore } from "../image/imagestore.ts";
import { makeCgroup, removeCgroup, sweepCgroups } from "../kernel/cgroup.ts";
import { type Addresses, type Host, Namespace } from "../kernel/namespace.ts";
import { familiesOf } from "../kernel/underlay.ts";
import { Service, until } from "../process.ts";
import type { ControlPlane } from "./controlplane.ts";
import { kubeconfig } from "./pki.ts";
import type { Pod } from "./pod.ts";
import { type SandboxAttempt, sandboxAttempts } from "./sandboxes.ts";
import { containerdConfig, kubeletConfig, kubeProxyConfig } from "./wholenodeconfig.ts";

export interface WholeNodeOptions {
  name: string;
  addresses: Addresses;
  /** The images that the node has from the start: an `imageStore`. */
  store: string;
  /** Default "nftables". */
  proxyMode?: "nftables" | "iptables";
  /** Whether /opt/cni/bin has the machine's plugins. Default true. */
  plugins?: boolean;
}

export class WholeNode implements Host, AsyncDisposable {
  readonly name: string;
  readonly addresses: Addresses;
  /** What survives a power cut: overlays of /etc, /opt and /var, and the container runtime's state. */
  readonly disk: string;
  /** Pods by cnitool, which kubelet knows nothing of. */
  readonly pods = new Map<string, Pod>();
  readonly podFamilies: Family[];
  readonly #controlPlane: ControlPlane;
  readonly #options: WholeNodeOptions;
  readonly #macAddress: string;
  readonly #cgroup: string;
  #running: { namespace: Namespace; boot: Service } | undefined;

  constructor(controlPlane: ControlPlane, options: WholeNodeOptions) {
    this.name = options.name;
    this.addresses = options.addresses;
    this.podFamilies = familiesOf(controlPlane.families);
    this.disk = `${controlPlane.underlay.dir}/nodes/${options.name}`;
    this.#controlPlane = controlPlane;
    this.#options = options;
    this.#macAddress = `02:${createHash("sha256").update(this.name).digest("hex").match(/../g)!.slice(0, 5).join(":")}`;
    this.#cgroup = `${basename(controlPlane.underlay.dir)}/${options.name}`;
  }

  get #on(): { namespace: Namespace; boot: Service } {
    if (!this.#running) throw new Error(`${this.name} is off`);
    return this.#running;
  }

  /** The node as a place where commands run: ``node.$`ip route` ``. Another one after each boot. */
  get namespace(): Namespace {
    return this.#on.namespace;
  }

  get place() {
    return this.namespace.place;
  }

  get $() {
    return this.namespace.$;
  }

  /**
   * Boots, the first time from an empty disk. Returns when kubelet has been started; the Node appears, not ready, a
   * second or two later.
   */
  async powerOn(): Promise<void> {
    const { underlay } = this.#controlPlane;
    if (!existsSync(this.disk)) await this.#install();
    const network = await Namespace.create(this.name);
    await underlay.attach(this.name, network, { addresses: this.addresses });
    // a machine keeps its network card over a reboot, and its neighbours remember that one
    await network.ip(`link set eth0 address ${this.#macAddress}`);
    await sweepCgroups(dirname(underlay.dir));
    await makeCgroup(this.#cgroup);
    const pidFile = `${this.disk}/pid`;
    writeFileSync(pidFile, "");
    const log = `${underlay.dir}/log/${this.name}-boot.log`;
    const boot = Service.start(`node ${this.name}`, [`${import.meta.dirname}/wholenode.sh`], {
      log,
      env: {
        PATH: process.env.PATH!,
        NODE: this.name,
        DISK: this.disk,
        NETNS: `/proc/${network.pid}/ns/net`,
        CGROUP: this.#cgroup,
        ADDRESSES: Object.values(this.addresses).join(","),
        PLUGINS: this.#options.plugins === false ? "" : "/usr/lib/cni",
        PROGRAMS: `${kubernetesDir}/bin`,
        WIREGUARD_GO: wireguardGo,
        LOGS: `${underlay.dir}/log`,
        PIDFILE: pidFile,
      },
    });
    const pid = await until(`${this.name} to boot`, () => {
      if (!boot.running) throw new Error(`${this.name} has stopped booting: ${boot.tail()}`);
      return Number(readFileSync(pidFile, "utf8")) || undefined;
    });
    this.#running = { namespace: new Namespace(this.name, network.place, pid, true), boot };
    await until(`${this.name} to start kubelet`, () => existsSync(`/proc/${pid}/root/run/booted`), {
      timeout: 60_000,
      why: () => boot.tail(),
    });
  }

  /** Stops a service until the next boot. */
  async stopService(name: string): Promise<void> {
    await this.$`mkdir -p /run/stopped && touch /run/stopped/${name} && pkill -x ${name}`;
    await until(`${name} to end`, async () => (await this.$`pgrep -x ${name}`.nothrow()).exitCode !== 0);
  }

  /** When its kubelet has tried to start a pod since a time. */
  sandboxAttempts(pod: string, since: Date): SandboxAttempt[] {
    return sandboxAttempts(`${this.#controlPlane.underlay.dir}/log/${this.name}-containerd.log`, pod, since);
  }

  /** What containerd runs: the ids of containers, and their processes as the node sees them. */
  async tasks(): Promise<Map<string, number>> {
    const lines = (await this.$`ctr -n k8s.io tasks ls`).stdout.trim().split("\n").slice(1);
    const fields = lines.map((line) => line.split(/\s+/));
    return new Map(fields.flatMap(([id, pid, status]) => (status === "RUNNING" ? [[id!, Number(pid)]] : [])));
  }

  /** The running container of a pod, by default its sandbox. */
  async task(podUid: string, container?: string): Promise<{ id: string; pid: number }> {
    const which = container
      ? `labels."io.kubernetes.container.name"==${container}`
      : 'labels."io.cri-containerd.kind"==sandbox';
    const filter = `labels."io.kubernetes.pod.uid"==${podUid},${which}`;
    const ids = (await this.$`ctr -n k8s.io containers ls -q ${filter}`).stdout.trim().split("\n");
    // those of earlier boots and of containers that ended are listed too
    const tasks = await this.tasks();
    const id = ids.find((id) => tasks.has(id));
    if (!id) throw new Error(`pod ${podUid} runs no ${container ?? "sandbox"} on ${this.name}`);
    return { id, pid: tasks.get(id)! };
  }

  /** Cuts the power: every process is gone at once, the disk stays. */
  async powerOff(): Promise<void> {
    const { namespace, boot } = this.#on;
    this.#running = undefined;
    process.kill(namespace.pid, "SIGKILL");
    await boot.exited;
    await this.#controlPlane.underlay.detach(this.name);
    await namespace.place.close();
    await removeCgroup(this.#cgroup);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#running) await this.powerOff();
  }

  async #install(): Promise<void> {
    const { pki } = this.#controlPlane;
    const { store, proxyMode = "nftables" } = this.#options;
    const server = this.#controlPlane.server(this.addresses.ipv4 ? "ipv4" : "ipv6");
    const clients = {
      kubelet: `/O=system:nodes/CN=system:node:${this.name}`,
      "kube-proxy": "/CN=system:kube-proxy",
    };
    const config = `${this.disk}/config`;
    mkdirSync(config, { recursive: true });
    for (const [program, subject] of Object.entries(clients)) {
      const credentials = await pki.issue(`${this.name}-${program}`, subject);
      writeFileSync(`${config}/${program}.kubeconfig`, kubeconfig(server, { pem: pki.ca }, credentials));
    }
    writeFileSync(`${config}/containerd.toml`, containerdConfig());
    writeFileSync(`${config}/kubelet.yaml`, kubeletConfig(`${pki.dir}/ca.crt`, this.#controlPlane.families));
    writeFileSync(
      `${config}/kube-proxy.yaml`,
      kubeProxyConfig(this.name, `${config}/kube-proxy.kubeconfig`, this.#controlPlane.families, {
        mode: proxyMode,
      }),
    );
    await copyStore(store, `${this.disk}/real/var/lib/containerd`);
  }
}
