/**
 * A stand-in for the agent of the Go implementation (tibordp/wigglenet 0.7), whose module the Go module proxy does not
 * serve: what the original, by its public source, leaves on a node and in the cluster. Peers that are right are left alone, which the original does only between its own restarts.
 */
import { contains, lengthOf, parsePrefix } from "../../../src/net/address.ts";
import type { Node } from "./api.ts";
import { cniFile, type LightNode } from "./lightnode.ts";

const keyFile = "/etc/wigglenet/private.key";
const isIpv6 = (address: string) => address.includes(":");
const host = (address: string) => `${address}/${isIpv6(address) ? 128 : 32}`;
/** The first usable address of a prefix that ends in zeros. */
const first = (prefix: string) =>
  prefix.replace(/(0|::)\/\d+$/, (_, end: string) => (end === "0" ? "1" : "::1"));

export class GoAgent {
  readonly #node: LightNode;
  readonly #nodes: () => Promise<Node[]>;

  /** @param nodes of the cluster, its own among them */
  constructor(node: LightNode, nodes: () => Promise<Node[]>) {
    this.#node = node;
    this.#nodes = nodes;
  }

  /** What it does at its start, and again whenever a Node changed. */
  async sync(): Promise<void> {
    const { $ } = this.#node;
    await $`test -s ${keyFile} || (umask 077; wg genkey | tr -d '\n' > ${keyFile})`;
    await $`ip link show wigglenet > /dev/null 2>&1 || ip link add wigglenet type wireguard; ip link set wigglenet up`;
    const publicKey = (await $`wg pubkey < ${keyFile}`).stdout.trim();
    const podCidrs = (await this.#node.podCIDRs()).toSorted((a, b) => Number(isIpv6(b)) - Number(isIpv6(a)));
    await this.#node.patch({
      metadata: {
        annotations: {
          "wigglenet/public-key": publicKey,
          "wigglenet/node-ips": "[]",
          "wigglenet/pod-cidrs": JSON.stringify(podCidrs),
        },
      },
    });
    const peers = (await this.#nodes()).flatMap((node) => peerOf(node, this.#node.name));
    const settings = peers.flatMap(({ key, endpoint, allowed }) => [
      "peer",
      key,
      ...["endpoint", `${isIpv6(endpoint) ? `[${endpoint}]` : endpoint}:24601`],
      ...["allowed-ips", allowed.join(",")],
    ]);
    // Its wg may be one that empties a peer's AllowedIPs before it fills them: only what differs.
    const present = (await $`wg show wigglenet allowed-ips`.nothrow()).stdout;
    const same = peers.every(({ key, allowed }) => {
      const line = present.split("\n").find((line) => line.startsWith(key)) ?? "";
      return line.split(/\s+/).slice(1).sort().join() === allowed.toSorted().join();
    });
    // The same port once more would have wireguard-go open its socket anew, which the kernel does not do.
    const port =
      (await $`wg show wigglenet listen-port`).stdout.trim() === "24601" ? [] : ["listen-port", "24601"];
    await $`wg set wigglenet private-key ${keyFile} ${[...port, ...(same ? [] : settings)]}`;
    await this.#addressesAndRoutes(
      podCidrs,
      peers.flatMap(({ podCidrs }) => podCidrs),
    );
    const all = [...podCidrs, ...peers.flatMap(({ podCidrs }) => podCidrs)];
    await this.#firewall(all);
    await this.#cni(podCidrs);
  }

  /** Adds what is missing on the link, then removes all else of it. */
  async #addressesAndRoutes(own: string[], remote: string[]): Promise<void> {
    const { $ } = this.#node;
    const addresses = own.map((prefix) => host(first(prefix)));
    const shown = (await $`ip -o address show dev wigglenet`).stdout;
    const present = [...shown.matchAll(/inet6? (\S+)/g)].map(([, address]) => address!);
    await this.#node.namespace.ip(
      ...addresses.map((address) => `address replace ${address} dev wigglenet`),
      ...present
        .filter((address) => !addresses.includes(address))
        .map((address) => `address delete ${address} dev wigglenet`),
    );
    // It compares destinations alone, so that a route with another protocol number is as good to it.
    const { stdout } = await $`ip -4 route show dev wigglenet; ip -6 route show dev wigglenet`;
    const routes = stdout.split("\n").flatMap((line) => line.split(" ")[0] || []);
    const standing = new Set(routes.map((route) => (route.includes("/") ? route : host(route))));
    const ways = summary(remote);
    const missing = [
      ...ways.map((prefix) => [prefix, ""]),
      ...addresses.map((address) => [address, "scope host"]),
    ].filter(([prefix]) => !standing.has(prefix!));
    const stale = [...standing].filter((prefix) => ![...ways, ...addresses].includes(prefix));
    await this.#node.namespace.ip(
      ...missing.map(([prefix, more]) => `route add ${prefix} dev wigglenet ${more} protocol boot`),
      ...stale.map((prefix) => `route delete ${prefix} dev wigglenet`),
    );
  }

  /** By nftables, as it is set up by default, and what is left of its time with iptables. */
  async #firewall(podCidrs: string[]): Promise<void> {
    const of = (ipv6: boolean) => podCidrs.filter((prefix) => isIpv6(prefix) === ipv6);
    const lines = ['add table inet wigglenet { comment "wigglenet firewall rules" ; }'];
    for (const [suffix, type, ipv6] of [
      ["v4", "ipv4_addr", false],
      ["v6", "ipv6_addr", true],
    ] as const) {
      lines.push(`add set inet wigglenet pod-cidrs-${suffix} { type ${type} ; flags interval ; }`);
      lines.push(`flush set inet wigglenet pod-cidrs-${suffix}`);
      lines.push(`add element inet wigglenet pod-cidrs-${suffix} { ${of(ipv6).join(", ")} }`);
    }
    lines.push(
      "add chain inet wigglenet masq",
      "add chain inet wigglenet postrouting { type nat hook postrouting priority 100 ; }",
      "flush chain inet wigglenet postrouting",
      "add rule inet wigglenet postrouting jump masq",
      "flush chain inet wigglenet masq",
      "add rule inet wigglenet masq fib daddr type local accept",
      "add rule inet wigglenet masq ip daddr @pod-cidrs-v4 accept",
      "add rule inet wigglenet masq ip6 daddr @pod-cidrs-v6 accept",
      "add rule inet wigglenet masq masquerade",
    );
    await this.#node.namespace.run(["nft", "-f", "-"], { stdin: `${lines.join("\n")}\n` });
    for (const [program, ipv6] of [
      ["iptables-nft", false],
      ["ip6tables-nft", true],
    ] as const) {
      const jump = "-m addrtype ! --dst-type LOCAL -j WIGGLENET-MASQ";
      await this.#node.namespace.run([`${program}-restore`, "--noflush"], {
        stdin: [
          "*nat",
          ":WIGGLENET-MASQ - [0:0]",
          ...of(ipv6).map((prefix) => `-A WIGGLENET-MASQ -d ${prefix} -j RETURN`),
          "-A WIGGLENET-MASQ -j MASQUERADE",
          "COMMIT",
          "",
        ].join("\n"),
      });
      const words = jump.split(" ");
      await this.#node
        .$`${program} -t nat -C POSTROUTING ${words} 2> /dev/null || ${program} -t nat -A POSTROUTING ${words}`;
    }
  }

  /** A plain file, renamed into place. */
  async #cni(podCidrs: string[]): Promise<void> {
    const routes = podCidrs.map((prefix) => ({ dst: isIpv6(prefix) ? "::/0" : "0.0.0.0/0" }));
    const ranges = podCidrs.map((subnet) => [{ subnet }]);
    const ipam = { type: "host-local", routes, dataDir: "/run/cni-ipam-state", resolvConf: "", ranges };
    const plugins = [
      { type: "ptp", ipam, dns: {} },
      { type: "portmap", capabilities: { portMappings: true } },
    ];
    const list = { cniVersion: "0.3.1", name: "wigglenet", plugins };
    await this.#node.write(`${cniFile}.temp`, `${JSON.stringify(list, undefined, 2)}\n`);
    await this.#node.$`mv ${cniFile}.temp ${cniFile}`;
  }
}

/** The fewest prefixes that have the same addresses: neighbours become one. */
function summary(prefixes: string[]): string[] {
  const all = new Set(
    prefixes.filter((prefix) => !prefixes.some((other) => other !== prefix && contains(other, prefix))),
  );
  // Those that are added meanwhile, too.
  for (const prefix of all) {
    const length = lengthOf(prefix);
    const parent = parsePrefix(`${prefix.split("/")[0]}/${length - 1}`)!;
    const halves = [...all].filter((each) => lengthOf(each) === length && contains(parent, each));
    if (halves.length < 2) continue;
    for (const half of halves) all.delete(half);
    all.add(parent);
  }
  return [...all];
}

interface GoPeer {
  key: string;
  endpoint: string;
  allowed: string[];
  podCidrs: string[];
}

function peerOf(node: Node, own: string): GoPeer[] {
  const { name, annotations = {} } = node.metadata;
  const key = annotations["wigglenet/public-key"];
  const podCidrs = JSON.parse(annotations["wigglenet/pod-cidrs"] ?? "[]") as string[];
  if (name === own || !key || podCidrs.length === 0) return [];
  const status = (node.status.addresses ?? [])
    .filter(({ type }) => type !== "Hostname")
    .map(({ address }) => address);
  const said = (JSON.parse(annotations["wigglenet/node-ips"] ?? "[]") ?? []) as string[];
  const addresses = [...new Set([...status, ...said])];
  return [{ key, endpoint: addresses[0]!, allowed: [...podCidrs, ...addresses.map(host)], podCidrs }];
}
