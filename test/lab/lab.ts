/**
 * A cluster of light nodes on real parts, for tests about packets:
 *
 *   test("a pod reaches a pod of another node", async () => {
 *     await using lab = await Lab.start({ nodes: 2, families: "dual", underlay: "dual" });
 *     const [a, b] = await Promise.all(lab.nodes.map((node) => node.pod("p")));
 *     expect(await lab.unreached([a!, b!])).toEqual([]);            // all pairs, protocols and families
 *
 *     await using probe = await lab.probe(a!, b!, { protocol: "udp", family: "ipv6" });
 *     await using capture = await lab.capture();                    // packets with a pod's address on the underlay
 *     await lab.nodes[0]!.killAgent();
 *     lab.nodes[0]!.startAgent();
 *     expect((await probe.stop()).lost).toBe(0);
 *     expect(await capture.stop()).toEqual([]);
 *   }, 60_000);
 *
 * With LAB_CONTROL_PLANE (a file with ControlPlane.access as JSON) the control plane is one that runs already, perhaps outside
 * of this machine, used by one lab after the other; the lab gives its nodes their pod CIDRs then.
 */
import { existsSync, readFileSync } from "node:fs";
import { families as bothFamilies, type Family } from "../../src/net/address.ts";
import { repository } from "./cache.ts";
import { objectsOf } from "./cluster/api.ts";
import { ControlPlane, type ControlPlaneAccess } from "./cluster/controlplane.ts";
import { type LabContext, LightNode, type LightNodeOptions, type Wireguard } from "./cluster/lightnode.ts";
import type { PacketOptions, Protocol, Reached, Stream } from "./cluster/place.ts";
import { Pod } from "./cluster/pod.ts";
import type { Host } from "./kernel/namespace.ts";
import { type Families, familiesOf, pick, Underlay } from "./kernel/underlay.ts";
import { Capture } from "./probe/capture.ts";
import { clearTraffic, watchClear } from "./probe/clear.ts";
import { until } from "./process.ts";

export interface Allowed {
  podCidrs?: string[];
  nodeIps?: string[];
}

export interface LabOptions {
  /** How many, or one by one. Default 2. */
  nodes?: number | LightNodeOptions[];
  /** Of pods. Default "dual". */
  families?: Families;
  /** Of nodes. Default "dual". */
  underlay?: Families;
  /** Default: the kernel's if it has one, else "service". */
  wireguard?: Wireguard;
  /**
   * Whether packets between pods, or pods and nodes, may cross the underlay outside of the tunnel, as with native routing. Default
   * false: then the lab fails at its end if any did.
   */
  clear?: boolean;
  /** For every agent. */
  env?: Record<string, string>;
  /** For every node. */
  node?: LightNodeOptions;
  /** What agents may claim besides what their Nodes say: pods' prefixes, and prefixes of node addresses. */
  allowed?: Allowed;
  /** Whether to start the agents and wait for their CNI files. Default true. */
  agents?: boolean;
  /** The agent's executable. Default dist/wigglenet. */
  binary?: string;
  /** One that runs already and that no other lab uses meanwhile, see ControlPlane.access. Default: one of its own. */
  controlPlane?: ControlPlaneAccess;
}

export interface Path {
  protocol?: Protocol;
  family?: Family;
}

export type ReachOptions = Path & Omit<PacketOptions, "protocol" | "address"> & { timeout?: number };
type PathsOptions = { protocols?: Protocol[] | undefined; families?: Family[] | undefined };
export type ProbeOptions = Path & Omit<PacketOptions, "protocol" | "address"> & { rate?: number };

export class Lab implements AsyncDisposable {
  readonly underlay: Underlay;
  readonly nodes: LightNode[] = [];
  /** How long the parts took to start, ms: control plane and empty nodes, then agents to their CNI files. */
  readonly startedIn = { nodes: 0, agents: 0 };
  readonly #context: LabContext;
  readonly #options: LabOptions;
  readonly #started: Promise<ControlPlane>;
  #controlPlane: ControlPlane | undefined;
  #lastIndex = 0;

  private constructor(context: LabContext, options: LabOptions, started: Promise<ControlPlane>) {
    this.underlay = context.underlay;
    this.#context = context;
    this.#options = options;
    this.#started = started;
  }

  static async start(options: LabOptions = {}): Promise<Lab> {
    await using parts = new AsyncDisposableStack();
    const begin = performance.now();
    const { nodes = 2, families = "dual", agents = true, env = {} } = options;
    const binary = options.binary ?? `${repository}/dist/wigglenet`;
    if (agents && !existsSync(binary)) throw new Error(`no ${binary}: run \`npm run build\` first`);
    const access = options.controlPlane ?? outsideAccess();
    const underlay = parts.use(await Underlay.start(options.underlay));
    await watchClear(underlay.router);
    const wireguard = options.wireguard ?? ((await kernelHasWireguard(underlay)) ? "kernel" : "service");
    const started = startControlPlane(families, underlay, access, options.allowed);
    const lab = parts.use(
      new Lab(
        { underlay, families: familiesOf(families), wireguard, binary, env },
        { ...options, ...(access && { controlPlane: access }) },
        started,
      ),
    );
    const specs = typeof nodes === "number" ? Array.from({ length: nodes }, () => ({})) : nodes;
    for (const spec of specs) lab.#make(spec);
    const [controlPlane] = await Promise.all([started, ...lab.nodes.map((node) => node.boot())]);
    lab.#controlPlane = controlPlane;
    await Promise.all(lab.nodes.map((node) => node.join(controlPlane)));
    lab.startedIn.nodes = performance.now() - begin;
    if (agents) await lab.startAgents();
    lab.startedIn.agents = performance.now() - begin - lab.startedIn.nodes;
    parts.move();
    return lab;
  }

  get controlPlane(): ControlPlane {
    if (!this.#controlPlane) throw new Error("the control plane did not start");
    return this.#controlPlane;
  }

  get outside(): Host {
    return this.underlay.outside;
  }

  /** Starts every agent and waits for the CNI files. */
  async startAgents(env: Record<string, string> = {}): Promise<void> {
    for (const node of this.nodes) node.startAgent(env);
    await Promise.all(this.nodes.map((node) => node.ready()));
  }

  /** One more node, up and joined; its agent runs, unless told otherwise, though it need not be ready. */
  async addNode(
    spec: LightNodeOptions = {},
    { agent = this.#options.agents ?? true } = {},
  ): Promise<LightNode> {
    const node = this.#make(spec);
    await node.boot();
    await node.join(this.controlPlane);
    if (agent) node.startAgent();
    return node;
  }

  /** The Node object is deleted and the machine gone. */
  async removeNode(node: LightNode): Promise<void> {
    this.nodes.splice(this.nodes.indexOf(node), 1);
    if (node.on) await node.powerCut();
    await this.controlPlane.api.remove(`/api/v1/nodes/${node.name}`);
  }

  /** One packet there and back. Default: udp, by whatever family both have, IPv4 first. */
  reach(from: Host, to: Host, options: ReachOptions = {}): Promise<Reached> {
    return from.place.reach({
      protocol: "udp",
      ...options,
      address: addressOf(to, options.family ?? commonFamilies(from, to)[0]),
    });
  }

  /**
   * One packet between each two of the hosts, by default one of each node. When both ends of a peer send their first handshake in
   * the same instant, each drops its own for the other's, and WireGuard tries again only after 5 s: a test that sends
   * from everywhere at once would meet that, and not the overlay.
   */
  async shakeHands(
    hosts = this.nodes.map((node): Host => [...node.pods.values()][0] ?? node),
  ): Promise<void> {
    for (const [index, from] of hosts.entries())
      for (const to of hosts.slice(index + 1))
        await until(
          `${from.name} and ${to.name} to shake hands`,
          async () => (await this.reach(from, to, { timeout: 6000 })).ok,
          // An agent that missed the API server for long asks for it again within 15 s.
          { timeout: 45_000 },
        );
  }

  /** Waits until the agents have greeted the peers of their new tunnels: until then those get a keepalive. None does with a new key. */
  async greeted(): Promise<void> {
    for (const node of this.nodes)
      await until(`${node.name} to have greeted its peers`, () =>
        node.agentLog().some(({ msg }) => msg === "peers greeted" || msg === "private key created"),
      );
  }

  /** A steady stream of numbered packets there and back, 50 a second. It flows when this returns. */
  async probe(from: Host, to: Host, options: ProbeOptions = {}): Promise<Stream> {
    const address = addressOf(to, options.family ?? commonFamilies(from, to)[0]);
    const stream = await from.place.stream({ protocol: "udp", ...options, address });
    await stream.flowing(1);
    return stream;
  }

  /** All ordered pairs of different hosts (or the pairs given) by all families that they should have, and all protocols. */
  paths(
    hosts: Host[] | [Host, Host][],
    { protocols = ["tcp", "udp", "icmp"], families = [...bothFamilies] }: PathsOptions = {},
  ): Required<Path & { from: Host; to: Host }>[] {
    const pairs = hosts.flatMap((a) =>
      Array.isArray(a) ? [a] : (hosts as Host[]).filter((b) => b !== a).map((b): [Host, Host] => [a, b]),
    );
    return pairs.flatMap(([from, to]) => {
      const common = commonFamilies(from, to).filter((family) => families.includes(family));
      if (common.length === 0) throw new Error(`nothing to try from ${from.name} to ${to.name}`);
      return common.flatMap((family) => protocols.map((protocol) => ({ from, to, family, protocol })));
    });
  }

  /** Tries `paths`. What did not come back, one line each: "n1/p -> n2/p tcp ipv6: no answer". */
  async unreached(
    hosts: Host[] | [Host, Host][],
    { protocols, families, ...options }: PathsOptions & Omit<ReachOptions, keyof Path> = {},
  ): Promise<string[]> {
    const lines = this.paths(hosts, { protocols, families }).map(async ({ from, to, family, protocol }) => {
      const lacking = [from, to].find((host) => host instanceof Pod && !host.addresses[family]);
      const reached: Reached = lacking
        ? { ok: false, reason: `${lacking.name} has no address` }
        : await this.reach(from, to, { ...options, family, protocol });
      return reached.ok ? undefined : `${from.name} -> ${to.name} ${protocol} ${family}: ${reached.reason}`;
    });
    return (await Promise.all(lines)).filter((line) => line !== undefined);
  }

  /** Packets on the underlay that match: by default those that have a pod's address on them. */
  capture(filter?: string): Promise<Capture> {
    return Capture.start(this.underlay, filter);
  }

  #make(spec: LightNodeOptions): LightNode {
    const index = ++this.#lastIndex;
    const both = { ipv4: `172.30.0.${10 + index}`, ipv6: `fd30::${10 + index}` };
    const { controlPlane, families = "dual" } = this.#options;
    // One that other labs used before may have allocated for other families, and goes on where it was.
    const podCIDRs = controlPlane && Object.values(pick(families, podCIDRsOf(index - 1)));
    const options = { ...(podCIDRs && { podCIDRs }), ...this.#options.node, ...spec };
    const addresses = pick(this.#options.underlay ?? "dual", both);
    const node = new LightNode(spec.name ?? `n${index}`, addresses, this.#context, options);
    this.nodes.push(node);
    return node;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const clear = this.#options.clear ? [] : await clearTraffic(this.underlay.router);
    await Promise.all(this.nodes.map((node) => node[Symbol.asyncDispose]()));
    const controlPlane = await this.#started.catch(() => undefined);
    await controlPlane?.[Symbol.asyncDispose]();
    await this.underlay[Symbol.asyncDispose]();
    if (clear.length > 0)
      throw new Error(`outside of the tunnel, over this lab's life:\n${clear.join("\n")}`);
  }
}

/**
 * The families that two hosts should be able to talk by, IPv4 first: of a pod those of its node's pods, whether it got
 * an address or not. To a pod a node sends from its link of the tunnel what the underlay has no address for.
 */
function commonFamilies(from: Host, to: Host): Family[] {
  const has = (host: Host, family: Family) =>
    host instanceof Pod ? host.node.podFamilies.includes(family) : host.addresses[family] !== undefined;
  const tunnel = from instanceof LightNode && to instanceof Pod;
  return bothFamilies.filter((family) => (tunnel || has(from, family)) && has(to, family));
}

function addressOf(host: Host, family: Family | undefined): string {
  const address = family && host.addresses[family];
  if (!address) throw new Error(`${host.name} has no address of family ${family}`);
  return address;
}

const podCIDRsOf = (index: number) => ({
  ipv4: `10.244.${index}.0/24`,
  ipv6: `fd00:10:244${index === 0 ? "" : `:${index.toString(16)}`}::/64`,
});

function outsideAccess(): ControlPlaneAccess | undefined {
  const file = process.env.LAB_CONTROL_PLANE;
  return file ? (JSON.parse(readFileSync(file, "utf8")) as ControlPlaneAccess) : undefined;
}

/** What an earlier lab that used the same control plane has left: Nodes, and Services with their node ports. */
async function removeEarlier({ api }: ControlPlane): Promise<void> {
  const folders = [
    "/api/v1/nodes",
    "/api/v1/namespaces/default/services",
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
  ];
  const removals = folders.map(async (folder) => {
    const names = (await api.list(folder)).map(({ metadata }) => metadata.name);
    // The API server's own Service stays.
    const stale = names.filter((name) => name !== "kubernetes");
    await Promise.all(stale.map((name) => api.remove(`${folder}/${name}`)));
  });
  await Promise.all(removals);
}

/** A control plane with the agent's service account and rights, as the manifest grants them. */
async function startControlPlane(
  families: Families,
  underlay: Underlay,
  access: ControlPlaneAccess | undefined,
  { podCidrs = [], nodeIps = [] }: Allowed = {},
): Promise<ControlPlane> {
  const controlPlane = access
    ? await ControlPlane.attach(access, underlay)
    : await ControlPlane.start({ families, underlay });
  if (access) await removeEarlier(controlPlane);
  const manifest = readFileSync(`${repository}/deploy/manifest.yaml`, "utf8");
  const allowed: Record<string, string> = {
    allowedPodCIDRs: JSON.stringify(podCidrs),
    allowedNodeIPs: JSON.stringify(nodeIps),
  };
  for (const object of objectsOf(manifest)) {
    if (object.kind === "DaemonSet") continue;
    const { variables = [] } = (object.spec ?? {}) as { variables?: { name: string; expression: string }[] };
    for (const variable of variables) variable.expression = allowed[variable.name] ?? variable.expression;
    await controlPlane.api.apply(object);
  }
  return controlPlane;
}

async function kernelHasWireguard({ router }: Underlay): Promise<boolean> {
  return await router.ip("link add wgtest type wireguard", "link del wgtest").then(
    () => true,
    () => false,
  );
}
