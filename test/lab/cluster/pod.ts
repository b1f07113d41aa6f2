/** A pod without a kubelet: a network namespace that libcni and the real plugins set up. */
import type { Family } from "../../../src/net/address.ts";
import { kubernetes, tool } from "../cache.ts";
import { type Addresses, type Host, Namespace } from "../kernel/namespace.ts";
import { Place } from "./place.ts";

export interface PodOptions {
  /** hostPorts. */
  ports?: { hostPort: number; containerPort: number; protocol?: "tcp" | "udp"; hostIP?: string }[];
  /** Name of the network. Default "wigglenet". */
  network?: string;
  /**
   * Whether the pod's own address goes through duplicate address detection, for which ADD waits 1 to 2 s as on any
   * cluster. Default false: faster, and harder on the host's side, which has to be ready at once.
   */
  duplicateAddressDetection?: boolean;
}

/** What sets pods up: a light node, or a whole one beside its kubelet. */
export interface PodNode {
  readonly name: string;
  readonly namespace: Namespace;
  readonly pods: Map<string, Pod>;
  /** Those that its pods have to have an address of. */
  readonly podFamilies: readonly Family[];
}

interface CniResult {
  ips: { address: string; gateway?: string }[];
}

export class Pod extends Namespace implements Host {
  readonly node: PodNode;
  readonly addresses: Addresses;
  /** How long CNI's ADD took, ms. */
  readonly addedIn: number;
  readonly #cni: (verb: "add" | "del" | "check") => Promise<string>;

  private constructor(
    node: PodNode,
    place: Place,
    addresses: Addresses,
    addedIn: number,
    cni: (verb: "add" | "del" | "check") => Promise<string>,
  ) {
    super(place.name, place, place.pid, true);
    this.node = node;
    this.addresses = addresses;
    this.addedIn = addedIn;
    this.#cni = cni;
  }

  static async add(node: PodNode, name: string, options: PodOptions): Promise<Pod> {
    const { ports = [], network = "wigglenet", duplicateAddressDetection = false } = options;
    const argv = [tool("enter"), "run", String(node.namespace.pid), tool("enter"), "net", tool("place")];
    const place = await Place.start(`${node.name}/${name}`, argv, { forks: true });
    const namespace = new Namespace(place.name, place, place.pid, true);
    const env = {
      CNI_PATH: "/opt/cni/bin:/usr/lib/cni",
      NETCONFPATH: "/etc/cni/net.d",
      ...(ports.length > 0 && {
        CAP_ARGS: JSON.stringify({ portMappings: ports.map((port) => ({ protocol: "tcp", ...port })) }),
      }),
    };
    const cni = (verb: "add" | "del" | "check") =>
      node.namespace.run([kubernetes("cnitool"), verb, network, `/proc/${place.innerPid}/ns/net`], { env });
    try {
      if (!duplicateAddressDetection) await namespace.sysctl({ "net.ipv6.conf.default.accept_dad": 0 });
      const start = performance.now();
      const { ips } = JSON.parse(await cni("add")) as CniResult;
      const addedIn = performance.now() - start;
      const addresses: Addresses = {};
      for (const { address } of ips)
        addresses[address.includes(":") ? "ipv6" : "ipv4"] = address.split("/")[0]!;
      return new Pod(node, place, addresses, addedIn, cni);
    } catch (error) {
      await place.close();
      throw error;
    }
  }

  /** CNI's CHECK; throws if something that ADD made is missing. */
  async check(): Promise<void> {
    await this.#cni("check");
  }

  async remove(): Promise<void> {
    await this.#cni("del");
    await this.place.close();
    this.node.pods.delete(this.name.slice(this.node.name.length + 1));
  }
}
