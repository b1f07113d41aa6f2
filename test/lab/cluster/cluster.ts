/**
 * A cluster of whole nodes, which are not ready until a network plugin is installed:
 *
 *   await using cluster = await Cluster.start({ nodes: 3 });
 *   await cluster.kubectl`apply -f deploy/manifest.yaml`;
 *   await cluster.ready();
 */
import type { Family } from "../../../src/net/address.ts";
import { repository, tool } from "../cache.ts";
import { agentImage } from "../image/image.ts";
import { imageStore } from "../image/imagestore.ts";
import { labImages } from "../image/labimages.ts";
import { type Addresses, type Host, Namespace } from "../kernel/namespace.ts";
import { type Families, familiesOf, pick, Underlay } from "../kernel/underlay.ts";
import { byFamily } from "../probe/reachability.ts";
import { until } from "../process.ts";
import type { ApiObject, Node } from "./api.ts";
import { ControlPlane } from "./controlplane.ts";
import { Place } from "./place.ts";
import { WholeNode } from "./wholenode.ts";

export interface ClusterOptions {
  /** Default 3. */
  nodes?: number;
  /** Of nodes, pods, Services and the underlay. Default "dual". */
  families?: Families;
  /** kube-proxy's mode, node by node. Default "nftables". */
  proxyModes?: ("nftables" | "iptables")[];
  /** Whether the nodes have CNI plugins from the start. Default true. */
  plugins?: boolean;
  say?: (line: string) => void;
}

export class Cluster implements AsyncDisposable {
  readonly controlPlane: ControlPlane;
  readonly nodes: WholeNode[];
  readonly families: Family[];
  readonly #parts: AsyncDisposableStack;

  private constructor(controlPlane: ControlPlane, nodes: WholeNode[], parts: AsyncDisposableStack) {
    this.controlPlane = controlPlane;
    this.nodes = nodes;
    this.families = familiesOf(controlPlane.families);
    this.#parts = parts;
  }

  /** Returns when every kubelet has registered its Node. */
  static async start(options: ClusterOptions = {}): Promise<Cluster> {
    const { nodes: count = 3, families = "dual", proxyModes = [], plugins = true, say = () => {} } = options;
    await using parts = new AsyncDisposableStack();
    const images = async () => imageStore([...(await labImages()), await agentImage(say)]);
    say("starting etcd, API server, controller manager and scheduler; laying out images");
    const underlay = parts.use(await Underlay.start(families));
    const [controlPlane, store] = await Promise.all([
      ControlPlane.start({ families, underlay, wholeNodes: true }),
      images(),
    ]);
    parts.use(controlPlane);
    say(`booting ${count} nodes: containerd, kubelet, kube-proxy`);
    const nodes = Array.from({ length: count }, (_, index) => {
      const addresses = pick(families, { ipv4: `172.30.0.${11 + index}`, ipv6: `fd30::${11 + index}` });
      const proxyMode = proxyModes[index] ?? "nftables";
      return new WholeNode(controlPlane, { name: `n${index + 1}`, addresses, store, proxyMode, plugins });
    });
    parts.defer(async () => void (await Promise.all(nodes.map((node) => node[Symbol.asyncDispose]()))));
    await Promise.all(nodes.map((node) => node.powerOn()));
    const cluster = new Cluster(controlPlane, nodes, parts.move());
    await until("every kubelet to register", async () => (await controlPlane.api.nodes()).length === count, {
      timeout: 30_000,
    });
    return cluster;
  }

  get underlay(): Underlay {
    return this.controlPlane.underlay;
  }

  get outside(): Host {
    return this.underlay.outside;
  }

  get api() {
    return this.controlPlane.api;
  }

  /** As admin, in the repository: ``await cluster.kubectl`apply -f deploy/manifest.yaml` `` (zx). */
  get kubectl() {
    return this.controlPlane.kubectl({ cwd: repository });
  }

  node(name: string): WholeNode {
    const node = this.nodes.find((node) => node.name === name);
    if (!node) throw new Error(`no node ${name} in this cluster`);
    return node;
  }

  /** Waits until these Nodes (default: all) are Ready. One without power is called so for another 40 s. */
  async ready(names = this.nodes.map(({ name }) => name), options: Waiting = {}): Promise<void> {
    await until(
      `${names.join(", ")} to be Ready`,
      async () => {
        const nodes = await Promise.all(names.map((name) => this.api.node(name)));
        return nodes.every((node) => isReady(node));
      },
      { timeout: options.timeout ?? 30_000, every: 50, why: () => this.#overview() },
    );
  }

  /** The ready pods with a label "key=value", as places where packets can be sent from. */
  async pods(label: string, count = this.nodes.length, options: Waiting = {}): Promise<ClusterPod[]> {
    const pods = await until(
      `${count} ready pods with ${label}`,
      async () => {
        const all = await this.api.list<PodObject>(`/api/v1/pods?labelSelector=${encodeURIComponent(label)}`);
        const live = all.filter(({ metadata }) => !metadata.deletionTimestamp);
        return live.length === count && live.every((pod) => isReady(pod)) && live;
      },
      { timeout: options.timeout ?? 30_000, every: 50, why: () => this.#overview() },
    );
    return await Promise.all(pods.map((pod) => ClusterPod.enter(this.node(pod.spec.nodeName), pod)));
  }

  async #overview(): Promise<string> {
    return (await this.kubectl`get nodes,pods -A -o wide`).stdout;
  }

  /** The spec of a Service of the default namespace. */
  async service(name: string): Promise<{ clusterIPs: string[] }> {
    const object = await this.api.get<ApiObject & { spec: { clusterIPs: string[] } }>(
      `/api/v1/namespaces/default/services/${name}`,
    );
    return object.spec;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.disposeAsync();
  }
}

interface Waiting {
  /** ms */
  timeout?: number;
}

export interface Condition {
  type: string;
  status: string;
  reason?: string;
  message?: string;
  lastTransitionTime: string;
}

export interface PodObject extends ApiObject {
  metadata: ApiObject["metadata"] & { uid: string; deletionTimestamp?: string };
  spec: { nodeName: string };
  status: {
    phase: string;
    podIPs?: { ip: string }[];
    conditions?: Condition[];
    containerStatuses?: { state: { running?: { startedAt: string } } }[];
  };
}

export function isReady(object: Node | PodObject): boolean {
  return conditions(object).some(({ type, status }) => type === "Ready" && status === "True");
}

export function conditions(object: Node | PodObject): Condition[] {
  return (object.status.conditions ?? []) as Condition[];
}

/** A pod that kubelet runs; `place` sends from its network namespace. */
export class ClusterPod extends Namespace implements Host {
  readonly node: WholeNode;
  readonly addresses: Addresses;

  private constructor(node: WholeNode, place: Place, addresses: Addresses) {
    super(place.name, place, place.pid, true);
    this.node = node;
    this.addresses = addresses;
  }

  static async enter(node: WholeNode, pod: PodObject): Promise<ClusterPod> {
    const sandbox = await node.task(pod.metadata.uid);
    const { Spec } = JSON.parse(await node.$`ctr -n k8s.io containers info ${sandbox.id}`.text()) as {
      Spec: { linux: { namespaces: { type: string; path?: string }[] } };
    };
    const network = Spec.linux.namespaces.find(({ type }) => type === "network")?.path;
    if (!network) throw new Error(`pod ${pod.metadata.name} has no network namespace of its own`);
    const inside = ["nsenter", `--net=${network}`, tool("place")];
    const argv = [tool("enter"), "run", String(node.namespace.pid), ...inside];
    const place = await Place.start(`${node.name}/${pod.metadata.name}`, argv, { forks: true });
    return new ClusterPod(node, place, byFamily((pod.status.podIPs ?? []).map(({ ip }) => ip)));
  }
}
