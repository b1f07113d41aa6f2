import { expect, test } from "bun:test";
import { foreignPlaces } from "./foreignlinks.ts";
import type { Link } from "./link.ts";

const link = (name: string, ...addresses: string[]): Link => ({
  name,
  kind: "bridge",
  mtu: 1500,
  up: true,
  addresses: addresses.map((each) => {
    const [address = "", length] = each.split("/");
    return { address, length: Number(length), global: true, flaw: undefined };
  }),
});
const own = ["10.244.0.0/24", "2001:db8:1::/64"];
/** Those that have to forward: the tunnel, pods', and where the node has its addresses. */
const forwarding = ["wigglenet", "veth0a1b2c3d", "eth0"];

test.each<[title: string, links: Link[], routes: [address: string, link: string][], named: string[]]>([
  ["nothing", [], [], []],
  [
    "flannel's, antrea's or kube-router's bridge",
    [link("cni0", "10.244.0.1/24")],
    [],
    ["cni0 has 10.244.0.1/24"],
  ],
  [
    "a network that is larger than the pod CIDR",
    [link("weave", "10.244.1.1/16")],
    [],
    ["weave has 10.244.1.1/16"],
  ],
  ["one that is smaller", [link("br0", "2001:db8:1::8:1/112")], [], ["br0 has 2001:db8:1::8:1/112"]],
  [
    "pods of calico or cilium",
    [],
    [
      ["10.244.0.5", "cali123"],
      ["2001:db8:1::5", "lxc1"],
    ],
    ["10.244.0.5 is behind cali123", "2001:db8:1::5 is behind lxc1"],
  ],
  [
    "many pods",
    [],
    Array.from({ length: 30 }, (_, n): [string, string] => [`10.244.0.${n + 2}`, `cali${n}`]),
    [
      "10.244.0.2 is behind cali0",
      "10.244.0.3 is behind cali1",
      "10.244.0.4 is behind cali2",
      "10.244.0.5 is behind cali3",
      "10.244.0.6 is behind cali4",
      "and 25 more",
    ],
  ],
  // No pod of ours gets an address that is on a link.
  [
    "single addresses, as of vxlan.calico, flannel.1, cilium_host, a VIP",
    [link("vxlan.calico", "10.244.0.64/32", "2001:db8:1::40/128")],
    [],
    [],
  ],
  [
    "the node's own network around the pod CIDR, or the same",
    [link("eth0", "2001:db8:1::1/64", "10.244.9.9/8")],
    [["2001:db8:1::3", "eth0"]],
    [],
  ],
  [
    "the tunnel and pods",
    [link("wigglenet", "10.244.0.1/32"), link("veth0a1b2c3d", "10.244.0.1/32")],
    [["10.244.0.9", "veth0a1b2c3d"]],
    [],
  ],
  [
    "Docker, libvirt, NodeLocal DNS, kube-proxy's dummy",
    [
      link("docker0", "172.17.0.1/16"),
      link("virbr0", "192.168.122.1/24"),
      link("nodelocaldns", "169.254.20.10/32"),
      link("kube-ipvs0", "10.96.0.1/32"),
      link("lo", "127.0.0.1/8", "::1/128"),
    ],
    [["172.17.0.9", "docker0"]],
    [],
  ],
  ["the link-local network of each link", [link("cni0", "fe80::1/64")], [], []],
  ["pods of another network", [], [["10.9.0.5", "cali123"]], []],
])("%s", (_, links, routes, named) => {
  const hostRoutes = routes.map(([address, link]) => ({ address, link }));
  expect(foreignPlaces(own, forwarding, links, hostRoutes)).toEqual(named);
});
