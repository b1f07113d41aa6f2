import { describe, expect, test } from "bun:test";
import { link } from "./fixtures/links.ts";
import { nodeAddresses, underlayMtu } from "./identity.ts";
import type { NodeObject } from "./node.ts";
import type { NodeLink, OwnSettings } from "./own.ts";

const eth0 = link("eth0", "192.0.2.5/24", "2001:db8:1::5/64", "2001:db8:1::abcd/64 t", "fe80::5/64 l");
const eth1 = link("eth1", "10.3.0.7/16", "fd00:3::7/64");
const links = [
  link("lo", "127.0.0.1/8"),
  eth0,
  eth1,
  link("wigglenet", "10.1.7.1/32"),
  link("veth0a1b2c3d", "10.1.7.1/32"),
];

function node(...addresses: [type: string, address: string][]): NodeObject {
  return {
    metadata: { name: "node-7", labels: { index: "7" } },
    status: { addresses: addresses.map(([type, address]) => ({ type, address })) },
  };
}

type Settings = Pick<OwnSettings, "linkName" | "nodeIpInterfaces">;

function settings(tweak: Partial<Settings> = {}): Settings {
  return { linkName: "wigglenet", nodeIpInterfaces: [], ...tweak };
}

test("all addresses of its links, whoever else may have them and for how long", () => {
  expect(nodeAddresses(node(), [...links], settings()).onLinks).toEqual([
    ...["192.0.2.5", "2001:db8:1::5", "2001:db8:1::abcd", "fe80::5"],
    ...["10.3.0.7", "fd00:3::7"],
  ]);
});

describe("addresses", () => {
  test.each<[title: string, NodeObject, Partial<Settings>, addresses: string[], endpoints: string[]]>([
    ["an InternalIP", node(["InternalIP", "192.0.2.5"]), {}, ["192.0.2.5"], ["192.0.2.5"]],
    [
      "both families, in the Node's order",
      node(["InternalIP", "2001:db8:1::5"], ["InternalIP", "192.0.2.5"]),
      {},
      ["2001:db8:1::5", "192.0.2.5"],
      ["2001:db8:1::5", "192.0.2.5"],
    ],
    ["an InternalIP that no link has", node(["InternalIP", "198.51.100.5"]), {}, [], ["198.51.100.5"]],
    ["a temporary InternalIP", node(["InternalIP", "2001:db8:1::abcd"]), {}, [], ["2001:db8:1::abcd"]],
    [
      // 1:1 NAT, or a cloud that lists the public address: traffic to it must not enter the tunnel.
      "an ExternalIP, even on a link",
      node(["ExternalIP", "192.0.2.5"], ["InternalIP", "10.3.0.7"]),
      {},
      ["10.3.0.7"],
      ["10.3.0.7", "192.0.2.5"],
    ],
    [
      "those of NODE_IP_INTERFACES, after the InternalIPs, without temporary and link-local ones",
      node(["InternalIP", "10.3.0.7"]),
      { nodeIpInterfaces: ["eth0", "eth1", "eth9"] },
      ["10.3.0.7", "192.0.2.5", "2001:db8:1::5", "fd00:3::7"],
      ["10.3.0.7", "192.0.2.5", "2001:db8:1::5", "fd00:3::7"],
    ],
    [
      "an ExternalIP on an interface of NODE_IP_INTERFACES",
      node(["ExternalIP", "192.0.2.5"]),
      { nodeIpInterfaces: ["eth0"] },
      ["2001:db8:1::5"],
      ["2001:db8:1::5", "192.0.2.5"],
    ],
    ["the tunnel as NODE_IP_INTERFACES", node(), { nodeIpInterfaces: ["wigglenet"] }, [], []],
    ["an address of a pod's link", node(["InternalIP", "10.1.7.1"]), {}, [], ["10.1.7.1"]],
    ["none at all", node(), {}, [], []],
  ])("%s", (_, given, tweak, addresses, endpoints) => {
    expect(nodeAddresses(given, links, settings(tweak))).toMatchObject({ addresses, endpoints });
  });
});

describe("MTU of the underlay", () => {
  const at = (name: string, mtu: number, ...list: string[]) => ({ ...link(name, ...list), mtu });
  test.each<[title: string, links: NodeLink[], endpoints: string[], mtu: number]>([
    [
      "of the link with the address",
      [at("eth0", 1450, "192.0.2.5/24"), at("eth1", 1400, "10.3.0.7/16")],
      ["192.0.2.5"],
      1450,
    ],
    [
      "the smallest of several",
      [at("eth0", 9000, "192.0.2.5/24"), at("eth1", 1400, "10.3.0.7/16")],
      ["192.0.2.5", "10.3.0.7"],
      1400,
    ],
    [
      "behind 1:1 NAT: of all with a global address",
      [at("eth0", 1460, "10.3.0.7/16"), at("eth1", 1280, "fe80::1/64 l")],
      ["203.0.113.5"],
      1460,
    ],
    [
      "the tunnel's own does not count",
      [at("eth0", 1500, "192.0.2.5/24"), at("wigglenet", 1420, "192.0.2.5/32")],
      ["192.0.2.5"],
      1500,
    ],
    [
      "a pod's does not count",
      [at("eth0", 1500, "192.0.2.5/24"), at("veth01234567", 1420, "10.1.7.1/32")],
      [],
      1500,
    ],
    ["nothing known", [], [], 1500],
  ])("%s", (_, given, endpoints, mtu) => {
    expect(underlayMtu(given, { endpoints }, "wigglenet")).toBe(mtu);
  });
});
