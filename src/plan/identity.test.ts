import { describe, expect, test } from "bun:test";
import { type AddressSettings, node, none, settings } from "./fixtures/addresses.ts";
import { link, links } from "./fixtures/links.ts";
import { nodeAddresses, underlayMtu } from "./identity.ts";
import type { NodeObject } from "./overlay/node.ts";
import type { NodeLink } from "./own.ts";

test("all addresses of its links, whoever else may have them and for how long", () => {
  expect(nodeAddresses(node(), [...links], settings(), none).onLinks).toEqual([
    "127.0.0.1",
    ...["192.0.2.5", "2001:db8:1::5", "2001:db8:1::abcd", "fe80::5"],
    ...["10.3.0.7", "fd00:3::7"],
  ]);
});

describe("addresses", () => {
  test.each<[title: string, NodeObject, Partial<AddressSettings>, addresses: string[], endpoints: string[]]>([
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
    expect(nodeAddresses(given, links, settings(tweak), none)).toMatchObject({ addresses, endpoints });
  });
});

describe("what is listed and left out of the tunnel, with its reason", () => {
  const lo = link("lo", "127.0.0.1/8", "198.51.100.1/32", "::1/128 l");
  const dummy = link("dummy0", "198.51.100.2/32", "169.254.20.10/32");
  const odd = link("eth2", "192.0.2.7/24 d", "2001:db8:1::9/64 f", "2001:db8:1::8/64 d");
  test.each<
    [title: string, listed: string, addresses: string[], endpoints: string[], reason: string | undefined]
  >([
    ["an address of lo (BGP to the node)", "198.51.100.1", ["198.51.100.1"], ["198.51.100.1"], undefined],
    ["an address of a dummy link", "198.51.100.2", ["198.51.100.2"], ["198.51.100.2"], undefined],
    ["link-local, IPv4 (kubernetes#44075)", "169.254.20.10", [], [], "link-local"],
    ["link-local, IPv6 (kubernetes#83584)", "fe80::5", [], [], "link-local"],
    ["loopback", "127.0.0.1", [], [], "loopback"],
    ["loopback, IPv6", "::1", [], [], "loopback"],
    ["multicast", "224.0.0.1", [], [], "multicast"],
    ["multicast, IPv6", "ff02::1", [], [], "multicast"],
    ["unspecified", "0.0.0.0", [], [], "not unicast"],
    ["unspecified, IPv6", "::", [], [], "not unicast"],
    ["temporary", "2001:db8:1::abcd", [], ["2001:db8:1::abcd"], "temporary"],
    ["deprecated", "192.0.2.7", [], ["192.0.2.7"], "deprecated"],
    ["a duplicate", "2001:db8:1::9", [], ["2001:db8:1::9"], "duplicate"],
    ["on no link", "198.51.100.5", [], ["198.51.100.5"], "on no link"],
    ["with a zone", "fe80::5%eth0", [], [], "zone"],
    ["with a zone, of an address that a link has", "2001:db8:1::5%eth0", [], [], "zone"],
    ["IPv4-mapped", "::ffff:192.0.2.5", [], [], "IPv4-mapped"],
    ["IPv4-mapped, in hexadecimal", "::FFFF:c000:205", [], [], "IPv4-mapped"],
    ["a prefix", "198.51.100.2/32", [], [], "not an address"],
    ["a name", "node-7.example.org", [], [], "not an address"],
    ["ambiguous: octal, or with zeros in front", "198.051.100.002", [], [], "not an address"],
    ["nothing", "", [], [], "not an address"],
  ])("%s", (_, listed, addresses, endpoints, reason) => {
    const given = nodeAddresses(
      node(["InternalIP", listed]),
      [lo, dummy, odd, ...links.slice(1)],
      settings(),
      none,
    );
    expect(given).toMatchObject({ addresses, endpoints });
    expect([...given.leftOut]).toEqual(reason ? [[listed, expect.stringContaining(reason)]] : []);
  });

  test("an ExternalIP that is no address, and one of another type, which need not be one", () => {
    const given = nodeAddresses(
      node(["ExternalIP", "pending"], ["Hostname", "node-7"], ["InternalDNS", "node-7.internal"]),
      links,
      settings(),
      none,
    );
    expect([...given.leftOut]).toEqual([["pending", expect.stringContaining("not an address")]]);
  });

  test("an ExternalIP is an endpoint, as is meant: no reason to tell", () => {
    const given = nodeAddresses(node(["ExternalIP", "203.0.113.5"]), links, settings(), none);
    expect(given).toMatchObject({ endpoints: ["203.0.113.5"], leftOut: new Map() });
  });

  test("no more than 16 are published, those of the node's own links first", () => {
    const many = Array.from({ length: 12 }, (_, n) => `192.0.3.${n + 1}`);
    const others = Array.from({ length: 12 }, (_, n) => `203.0.113.${n + 1}`);
    const given = nodeAddresses(
      node(
        ...others.map((address): [string, string] => ["ExternalIP", address]),
        ...many.map((address): [string, string] => ["InternalIP", address]),
      ),
      [link("eth0", ...many.map((address) => `${address}/24`))],
      settings(),
      none,
    );
    expect(given).toMatchObject({ addresses: many, endpoints: [...many, ...others.slice(0, 4)] });
    expect([...given.leftOut.keys()]).toEqual(others.slice(4));
  });
});

describe("MTU of the underlay", () => {
  const sized = (name: string, mtu: number, ...list: string[]) => ({ ...link(name, ...list), mtu });
  const wan = sized("eth0", 1500, "198.51.100.5/24");
  const lan = sized("eth1", 9000, "10.3.0.7/16");
  const lo = { ...sized("lo", 65_536, "127.0.0.1/8", "192.0.2.5/32"), kind: undefined };
  const dummy = { ...sized("dummy0", 1400, "192.0.2.6/32"), kind: "dummy" };
  const defaultLinks = ["eth0"];
  const linkOf = new Map([
    ["10.3.0.8", "eth1"],
    ["203.0.113.1", "eth0"],
  ]);
  test.each<
    [
      title: string,
      links: NodeLink[],
      endpoints: string[],
      defaultLinks: string[],
      peers: string[],
      mtu: number,
    ]
  >([
    ["of the link with the address", [wan, lan], ["198.51.100.5"], [], [], 1500],
    [
      "the smallest of several, as long as there is no peer",
      [wan, lan],
      ["198.51.100.5", "10.3.0.7"],
      defaultLinks,
      [],
      1500,
    ],
    [
      "of the link that leads to the peers",
      [wan, lan],
      ["198.51.100.5", "10.3.0.7"],
      defaultLinks,
      ["10.3.0.8"],
      9000,
    ],
    ["of both, if both do", [wan, lan], ["10.3.0.7"], defaultLinks, ["10.3.0.8", "203.0.113.1"], 1500],
    ["whatever link has the address", [wan, lan], ["10.3.0.7"], defaultLinks, ["203.0.113.1"], 1500],
    [
      "an address on lo: of the link that leads to the peers",
      [lo, wan, lan],
      ["192.0.2.5"],
      defaultLinks,
      ["10.3.0.8"],
      9000,
    ],
    [
      "an address on lo, no peer: of the default route's",
      [lo, wan, lan],
      ["192.0.2.5"],
      defaultLinks,
      [],
      1500,
    ],
    ["an address on a dummy link, no peer", [dummy, wan, lan], ["192.0.2.6"], defaultLinks, [], 1500],
    [
      "behind 1:1 NAT: of all with a global address",
      [sized("eth0", 1460, "10.3.0.7/16"), sized("eth1", 1280, "fe80::1/64 l")],
      ["203.0.113.5"],
      [],
      [],
      1460,
    ],
    [
      "the tunnel's own does not count",
      [wan, sized("wigglenet", 1420, "192.0.2.5/32")],
      ["192.0.2.5"],
      defaultLinks,
      [],
      1500,
    ],
    ["a pod's does not count", [wan, sized("veth01234567", 1420, "10.1.7.1/32")], [], [], [], 1500],
    ["a route by a link that is gone", [lan], ["10.3.0.7"], defaultLinks, ["203.0.113.1"], 9000],
    ["nothing known", [], [], [], [], 1500],
  ])("%s", (_, given, endpoints, table, peers, mtu) => {
    const nodes = peers.map((address) => ({ endpoints: ["2001:db8:9::9", address] }));
    const own = { links: given, tunnel: "wigglenet", endpoints, linkOf, defaultLinks: table };
    expect(underlayMtu({ ...own, nodes, families: ["ipv4", "ipv6"] })).toBe(mtu);
  });
});
