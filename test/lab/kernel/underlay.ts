/**
 * The underlay of a cluster: a bridge in a namespace of its own (the router, where the control plane runs too), the
 * nodes on it, and behind it `outside`, which stands for the Internet and knows no way back to a pod.
 */
import { families } from "../../../src/net/address.ts";
import { makeScratch, removeScratch } from "../scratch.ts";
import { type Addresses, type Host, kernelHasIpv6, Namespace } from "./namespace.ts";

export type Families = "dual" | "ipv4" | "ipv6";

export const routerAddresses = { ipv4: "172.30.0.1", ipv6: "fd30::1" } as const;
export const outsideAddresses = { ipv4: "172.31.0.2", ipv6: "fd31::2" } as const;

/** The addresses of the families that there are. */
export function pick(families: Families, both: { ipv4: string; ipv6: string }): Addresses {
  return {
    ...(families !== "ipv6" && { ipv4: both.ipv4 }),
    ...(families !== "ipv4" && { ipv6: both.ipv6 }),
  };
}

export const familiesOf = (of: Families) => families.filter((each) => [each, "dual"].includes(of));

export interface LinkOptions {
  addresses: Addresses;
  /** Default 1500. */
  mtu?: number;
  /** Default "strict". */
  rpFilter?: "strict" | "off";
  /** Whether the node forwards; default true. */
  forwarding?: boolean;
}

export class Underlay implements AsyncDisposable {
  readonly router: Namespace;
  readonly outside: Host & Namespace;
  /** Everything that the lab writes is here; logs in log/. */
  readonly dir: string;

  private constructor(dir: string, router: Namespace, outside: Namespace, addresses: Addresses) {
    this.dir = dir;
    this.router = router;
    this.outside = Object.assign(outside, { addresses });
  }

  /** @param families of `outside` and of what lies between; the router itself always has both. */
  static async start(families: Families = "dual"): Promise<Underlay> {
    const dir = makeScratch();
    const [router, outside] = await Promise.all([Namespace.create("router"), Namespace.create("outside")]);
    await using parts = new AsyncDisposableStack();
    const underlay = parts.use(new Underlay(dir, router, outside, pick(families, outsideAddresses)));
    await router.sysctl({
      "net.ipv4.ip_forward": 1,
      "net.ipv6.conf.all.forwarding": 1,
      "net.ipv4.conf.all.rp_filter": 0,
    });
    // A bridge that hands its frames to the firewall would translate addresses before the router has routed.
    await router.$`for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$file" ] || echo 0 > "$file"; done`;
    await router.ip(
      // An address of its own: else it has the lowest of its ports', and the nodes' neighbour entries for the router
      // go stale when one is plugged in or out.
      "link add br0 address 02:00:5e:00:00:01 type bridge",
      "link set br0 up",
      `addr add ${routerAddresses.ipv4}/24 dev br0`,
      ...(kernelHasIpv6 ? [`addr add ${routerAddresses.ipv6}/64 dev br0 nodad`] : []),
      `link add outside type veth peer name eth0 netns ${outside.pid}`,
      "link set outside up",
      "route add 224.0.0.0/4 dev br0", // for the capture's marks
      "addr add 172.31.0.1/24 dev outside",
      ...(kernelHasIpv6 ? ["addr add fd31::1/64 dev outside nodad"] : []),
    );
    await outside.ip(
      "link set eth0 up",
      ...(families === "ipv6" ? [] : ["addr add 172.31.0.2/24 dev eth0", "route add default via 172.31.0.1"]),
      ...(families === "ipv4" ? [] : ["addr add fd31::2/64 dev eth0 nodad", "route add default via fd31::1"]),
    );
    parts.move();
    return underlay;
  }

  /** Joins a node's network namespace (any process in it) to the bridge: eth0, addresses, default routes, sysctls. */
  async attach(name: string, node: Namespace, options: LinkOptions): Promise<void> {
    const { addresses, mtu = 1500, rpFilter = "strict", forwarding = true } = options;
    const forward = Number(forwarding);
    await node.sysctl({
      "net.ipv4.conf.all.rp_filter": 0,
      "net.ipv4.conf.default.rp_filter": rpFilter === "strict" ? 1 : 0,
      // As Debian's systemd has it: an address survives the removal of the first one of its subnet.
      "net.ipv4.conf.all.promote_secondaries": 1,
      "net.ipv4.ip_forward": forward,
      "net.ipv6.conf.all.forwarding": forward,
      "net.ipv6.conf.default.forwarding": forward,
    });
    await this.router.ip(
      `link add ${port(name)} mtu ${mtu} type veth peer name eth0 mtu ${mtu} netns ${node.pid}`,
      `link set ${port(name)} master br0 up`,
    );
    // A lab may start in less time than duplicate address detection takes, and its link-local address would come in a
    // test: without probes too (dad_transmits) the kernel waits up to a second before it is done.
    await node.sysctl(
      addresses.ipv6 ? { "net.ipv6.conf.eth0.accept_dad": 0 } : { "net.ipv6.conf.eth0.disable_ipv6": 1 },
    );
    await node.ip(
      "link set lo up",
      "link set eth0 up",
      ...addressCommands("add", addresses),
      ...defaultRoutes(addresses),
    );
  }

  /** Gives an attached node other addresses, the new ones first. */
  async readdress(node: Namespace, from: Addresses, to: Addresses): Promise<void> {
    await node.ip(...addressCommands("add", to), ...addressCommands("del", from));
    // Deleting an address took the routes that had it as their source.
    await node
      .run(["ip", "-force", "-batch", "-"], { stdin: `${defaultRoutes(to).join("\n")}\n` })
      .catch(() => "");
  }

  /** Pulls the node's cable for good. */
  async detach(name: string): Promise<void> {
    await this.router.ip(`link del ${port(name)}`);
  }

  /** The node's cable, in or out. */
  async link(name: string, state: "up" | "down"): Promise<void> {
    await this.router.ip(`link set ${port(name)} ${state}`);
  }

  /** 1:1 NAT for both families: the node is reached by `external` too, and seen as that from outside. */
  async nat(node: Addresses, external: Addresses): Promise<void> {
    const rules = (["ipv4", "ipv6"] as const).flatMap((family) => {
      const [inner, outer, ip, lan] = [
        node[family],
        external[family],
        family === "ipv4" ? "ip" : "ip6",
        lans[family],
      ];
      if (!inner || !outer) return [];
      return [
        `add rule inet lab pre ${ip} daddr ${outer} dnat ${ip} to ${inner}`,
        `add rule inet lab post ${ip} saddr ${inner} oifname outside snat ${ip} to ${outer}`,
        // From one node to another's external address: the answer has to come by here again.
        `add rule inet lab post ${ip} saddr ${lan} ct status dnat masquerade`,
      ];
    });
    const chains = [
      "add table inet lab",
      "add chain inet lab pre { type nat hook prerouting priority dstnat; }",
      "add chain inet lab post { type nat hook postrouting priority srcnat; }",
    ];
    await this.router.run(["nft", "-f", "-"], { stdin: [...chains, ...rules, ""].join("\n") });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.router.place.close(), this.outside.place.close()]);
    removeScratch(this.dir);
  }
}

const lans = { ipv4: "172.30.0.0/24", ipv6: "fd30::/64" };
const port = (node: string) => `to-${node}`.slice(0, 15);

function addressCommands(verb: "add" | "del", { ipv4, ipv6 }: Addresses): string[] {
  return [
    ...(ipv4 ? [`addr ${verb} ${ipv4}/24 dev eth0`] : []),
    ...(ipv6 ? [`addr ${verb} ${ipv6}/64 dev eth0${verb === "add" ? " nodad" : ""}`] : []),
  ];
}

function defaultRoutes({ ipv4, ipv6 }: Addresses): string[] {
  return [
    ...(ipv4 ? [`route add default via ${routerAddresses.ipv4}`] : []),
    ...(ipv6 ? [`route add default via ${routerAddresses.ipv6}`] : []),
  ];
}
