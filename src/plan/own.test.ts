import { describe, expect, test } from "bun:test";
import { link, links } from "./fixtures/links.ts";
import type { NodeObject } from "./overlay/node.ts";
import { forwardingLinks, nodeLinks, type OwnSettings, ownPodRanges } from "./own.ts";
import { compileExpression } from "./podcidr/expression.ts";

test("pods' packets come by the links of pods, of the tunnel, of the node's addresses and of the default route", () => {
  const all = [...links, link("eth2"), link("docker0", "172.17.0.1/16")];
  expect(forwardingLinks(all, "wigglenet", ["192.0.2.5"], ["eth2"])).toEqual([
    "eth0",
    "wigglenet",
    "veth0a1b2c3d",
    "eth2",
  ]);
});

function node(...addresses: [type: string, address: string][]): NodeObject {
  return {
    metadata: { name: "node-7", labels: { index: "7" } },
    spec: { podCIDRs: ["10.1.7.0/24", "fd00:1:0:7::/64"] },
    status: { addresses: addresses.map(([type, address]) => ({ type, address })) },
  };
}

function settings(tweak: Partial<OwnSettings> = {}): OwnSettings {
  return {
    linkName: "wigglenet",
    nodeIpInterfaces: [],
    families: ["ipv4", "ipv6"],
    allowedPodCidrs: [],
    podCidrSource: { ipv4: "spec", ipv6: "spec" },
    podCidrExpression: undefined,
    podCidrFile: undefined,
    ...tweak,
  };
}

test("the tunnel and pods' links are not the node's own", () => {
  const own = nodeLinks([...links, link("veth1"), link("vethWEB"), link("docker0")], "wigglenet");
  expect(own.map(({ name }) => name)).toEqual(["lo", "eth0", "eth1", "veth1", "vethWEB", "docker0"]);
});

describe("own pod CIDRs", () => {
  const subnets = (tweak: Partial<OwnSettings>, given = node()) =>
    ownPodRanges(given, links, settings(tweak)).map((range) => range.subnet);
  const file = (content: string | undefined, ipv4: "file" | "none" = "file"): Partial<OwnSettings> => ({
    podCidrSource: { ipv4, ipv6: "file" },
    podCidrFile: { path: "/etc/pod-cidrs", content },
  });
  const expression = (source: string): Partial<OwnSettings> => ({
    podCidrSource: { ipv4: "expression", ipv6: "expression" },
    podCidrExpression: compileExpression(source),
  });

  test.each<[title: string, Partial<OwnSettings>, expected: string[]]>([
    ["of the spec", {}, ["10.1.7.0/24", "fd00:1:0:7::/64"]],
    ["of one family", { podCidrSource: { ipv4: "none", ipv6: "spec" } }, ["fd00:1:0:7::/64"]],
    ["of none (FIREWALL_ONLY)", { podCidrSource: { ipv4: "none", ipv6: "none" } }, []],
    ["of a file", file("10.9.0.0/24\nfd00:9::/64\n"), ["10.9.0.0/24", "fd00:9::/64"]],
    [
      "with comments, blank lines, CRLF, host bits",
      file("# ours\r\n\r\n 10.9.0.7/24 # v4\r\nfd00:9::/64"),
      ["10.9.0.0/24", "fd00:9::/64"],
    ],
    ["of the wanted family only", file("10.9.0.0/24\nfd00:9::/64\n", "none"), ["fd00:9::/64"]],
    ["the same one twice", file("10.9.0.0/24\n10.9.0.1/24\nfd00:9::/64\n"), ["10.9.0.0/24", "fd00:9::/64"]],
    [
      "of an expression, from an interface's prefix and a label",
      expression(
        `[interfaces["eth0"].filter(p, p.prefixLength() == 64)[0].subnet(80, 1), cidr("10.9.0.0/16").subnet(24, int(node.labels["index"]))]`,
      ),
      ["10.9.7.0/24", "2001:db8:1:0:1::/80"],
    ],
    [
      "of spec and file",
      { ...file("fd00:9::/64"), podCidrSource: { ipv4: "spec", ipv6: "file" } },
      ["10.1.7.0/24", "fd00:9::/64"],
    ],
  ])("%s", (_, tweak, expected) => {
    expect(subnets(tweak)).toEqual(expected);
  });

  test("interfaces are sorted, IPv4 before IPv6, and have what others can reach alone (as in 0.7)", () => {
    // The kernel's own order changes from boot to boot.
    const given = [
      link("lo", "127.0.0.1/8", "::1/128 l"),
      link("eth0", "fe80::5/64 l", "2001:db8:2::5/64", "2001:db8:1::5/64", "192.0.2.9/24", "192.0.2.5/24"),
      link("eth1", "169.254.0.7/16", "2001:db8:3::7/64 t", "2001:db8:3::8/64 d"),
    ];
    const seen = (interfaces: string) =>
      ownPodRanges(node(), given, {
        ...settings(expression(`${interfaces}.map(p, p.masked())`)),
        podCidrSource: { ipv4: "none", ipv6: "expression" },
      }).map((range) => range.subnet);
    expect(seen(`[interfaces["eth0"][2]]`)).toEqual(["2001:db8:1::/64"]);
    expect(seen(`interfaces["eth0"].size() == 4 ? [interfaces["eth0"][3]] : []`)).toEqual([
      "2001:db8:2::/64",
    ]);
    expect(seen(`interfaces.size() == 1 ? [interfaces["eth0"][2]] : []`)).toEqual(["2001:db8:1::/64"]);
    expect(seen(`string(interfaces["eth0"][0]) == "192.0.2.5/24" ? [interfaces["eth0"][2]] : []`)).toEqual([
      "2001:db8:1::/64",
    ]);
  });

  test("a kernel without IPv6: its own Node's prefixes are its own all the same, so that no others send there in the clear", () => {
    expect(subnets({ families: ["ipv4"] })).toEqual(["10.1.7.0/24", "fd00:1:0:7::/64"]);
  });

  test.each<[title: string, Partial<OwnSettings>, before: string[], expected: string[]]>([
    [
      "an interface has lost its prefix",
      expression(`cidr("10.9.0.0/24")`),
      ["fd00:9::/64"],
      ["10.9.0.0/24", "fd00:9::/64"],
    ],
    ["and there was none before", expression(`cidr("10.9.0.0/24")`), [], ["10.9.0.0/24"]],
    [
      "its source gives one",
      file("10.9.0.0/24\nfd00:9::/64"),
      ["fd00:8::/64"],
      ["10.9.0.0/24", "fd00:9::/64"],
    ],
    [
      "the expression fails for want of it",
      {
        ...expression(`[interfaces["eth9"][0].masked()]`),
        podCidrSource: { ipv4: "spec", ipv6: "expression" },
      },
      ["fd00:9::/64"],
      ["10.1.7.0/24", "fd00:9::/64"],
    ],
  ])("IPv6 is switched off: %s", (_, tweak, before, expected) => {
    expect(subnets({ ...tweak, before: new Map([["ipv6", before]]) })).toEqual(expected);
  });

  test("an address that the Node lists is not given to a pod, nor to the gateway, while no link has it", () => {
    const given = { ...node(["InternalIP", "10.9.0.1"], ["InternalIP", "fd00:9::1"]) };
    const ranges = ownPodRanges(given, links, settings(file("10.9.0.0/24\nfd00:9::/64")));
    expect(ranges.map((range) => range.gateway)).toEqual(["10.9.0.2", "fd00:9::2"]);
  });

  test("none in the spec yet", () => {
    expect(subnets({}, { metadata: { name: "node-7" } })).toEqual([]);
  });

  test("none in the spec yet, and another source for the other family: both or neither", () => {
    const mixed = { ...file("fd00:9::/64"), podCidrSource: { ipv4: "spec", ipv6: "file" } } as const;
    expect(subnets(mixed, { metadata: { name: "node-7" } })).toEqual([]);
    expect(subnets(mixed)).toEqual(["10.1.7.0/24", "fd00:9::/64"]);
  });

  test("the whole on-link /64: the node's addresses in it are left out, temporary ones too", () => {
    const [range] = ownPodRanges(node(), links, settings(file("2001:db8:1::/64", "none")));
    expect(range).toEqual({
      subnet: "2001:db8:1::/64",
      gateway: "2001:db8:1::1",
      stretches: [
        ["2001:db8:1::1", "2001:db8:1::4"],
        ["2001:db8:1::6", "2001:db8:1::abcc"],
        ["2001:db8:1::abce", "2001:db8:1:0:ffff:ffff:ffff:ffff"],
      ],
    });
  });

  test("the provider's router inside the prefix is left out", () => {
    const file64 = settings(file("2001:db8:9::/64", "none"));
    expect(ownPodRanges(node(), links, file64, ["192.0.2.254", "2001:db8:9::1", "fe80::1"])[0]).toMatchObject(
      {
        gateway: "2001:db8:9::2",
        stretches: [["2001:db8:9::2", "2001:db8:9:0:ffff:ffff:ffff:ffff"]],
      },
    );
  });

  test("the gateway on the tunnel's link and on pods' links is no address to leave out", () => {
    expect(ownPodRanges(node(), links, settings())[0]?.gateway).toBe("10.1.7.1");
  });

  test.each<[title: string, Partial<OwnSettings>, says: string]>([
    ["no file", file(undefined), "pod CIDR file /etc/pod-cidrs is not there: write it, one prefix a line"],
    [
      "not a prefix",
      file("10.9.0.0/24\n10.9.0/24"),
      `pod CIDR file /etc/pod-cidrs, line 2: "10.9.0/24" is not a prefix such as`,
    ],
    [
      "a family without any",
      file("fd00:9::/64"),
      "POD_CIDR_SOURCE_IPV4=file gave no prefix of this family, but fd00:9::/64: correct it, or set the source to none",
    ],
    ["an empty file", file(""), "POD_CIDR_SOURCE_IPV4=file gave no prefix of this family, but nothing"],
    ["link-local", file("fe80::/64", "none"), "pod CIDR fe80::/64: it is link-local, and the other nodes"],
    ["everything", file("::/0", "none"), "pod CIDR ::/0: it is partly loopback, and the other nodes"],
    ["too much", file("10.0.0.0/7\nfd00:9::/64"), "pod CIDR 10.0.0.0/7: it is shorter than /8"],
    ["too much, IPv6", file("fd00::/19", "none"), "pod CIDR fd00::/19: it is shorter than /20"],
    [
      "outside of what is allowed",
      { ...file("10.9.0.0/24\nfd00:9::/64"), allowedPodCidrs: ["10.9.0.0/16", "fd00:8::/32"] },
      "pod CIDR fd00:9::/64: it is not inside of ALLOWED_POD_CIDRS (10.9.0.0/16, fd00:8::/32), and the other nodes would refuse it: correct its source",
    ],
    [
      "of a family that the kernel does not have alone",
      { families: ["ipv4"], podCidrSource: { ipv4: "none", ipv6: "spec" } },
      "pod CIDR fd00:1:0:7::/64: this node's kernel has no IPv6 (ipv6.disable=1); boot it without that, or set POD_CIDR_SOURCE_IPV6=none",
    ],
    [
      "one inside another",
      file("10.9.0.0/16\n10.9.7.0/24\nfd00:9::/64"),
      "pod CIDRs 10.9.0.0/16 and 10.9.7.0/24 overlap, and pods would get the same address twice",
    ],
    [
      "no room",
      file("192.0.2.4/30\nfd00:9::/64"),
      "pod CIDR 192.0.2.4/30 has no room for a gateway and a pod besides the node's own 192.0.2.5",
    ],
    ["an expression that fails", expression(`interfaces["eth9"]`), "eth9"],
  ])("stops: %s", (_, tweak, says) => {
    expect(() => subnets(tweak)).toThrow(says);
  });
});
