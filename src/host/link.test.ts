import { describe, expect, test } from "bun:test";
import { diffLink, type Link, parseLinks, unfit, type WireGuardMode } from "./link.ts";
import recorded from "./recorded/ip-address.txt";

describe("what a real kernel listed", () => {
  const links = parseLinks(recorded);

  test("links", () => {
    expect(links.map(({ name, kind, mtu, up }) => `${name} ${kind} ${mtu} ${up ? "up" : "down"}`)).toEqual([
      "lo undefined 65536 up",
      "eth0 veth 1450 up",
      "eth1 veth 1500 up",
      "veth0a1b2c3d veth 1500 up",
      "wigglenet tun 1370 up",
    ]);
  });

  test.each<[name: string, global: string[], lasting: string[]]>([
    ["lo", [], ["127.0.0.1/8", "::1/128"]],
    [
      // A secondary address lasts; a deprecated one, and one that failed duplicate address detection, do not.
      "eth0",
      ["192.0.2.5/24", "192.0.2.6/24", "2001:db8:1::7777/64", "2001:db8:1::dead/64", "2001:db8:1::5/64"],
      ["192.0.2.5/24", "192.0.2.6/24", "2001:db8:1::5/64", "fe80::1888:bff:feb1:f8d7/64"],
    ],
    [
      // The temporary one of RFC 8981 does not; one of limited lifetime (SLAAC, DHCP) does.
      "eth1",
      ["10.3.0.7/16", "fd00:3::b960:4739:84f:68f6/64", "fd00:3::7/64"],
      ["10.3.0.7/16", "fd00:3::7/64", "fe80::4434:55ff:feb1:9451/64"],
    ],
    [
      "wigglenet",
      ["10.1.0.1/32", "fd00:1::1/128"],
      ["10.1.0.1/32", "fd00:1::1/128", "fe80::dc70:292:290f:534d/64"],
    ],
  ])("addresses of %s", (name, global, lasting) => {
    const { addresses = [] } = links.find((link) => link.name === name) ?? {};
    const text = (entry: (typeof addresses)[number]) => `${entry.address}/${entry.length}`;
    expect(addresses.filter((entry) => entry.global).map(text)).toEqual(global);
    expect(addresses.filter((entry) => !entry.flaw).map(text)).toEqual(lasting);
  });

  test.each<[title: string, output: string, expected: Link[]]>([
    ["no links", "[]", []],
    ["an empty entry, as older versions of ip print for links that were filtered", "[{},{}]", []],
    [
      "a link without anything",
      `[{"ifname":"x"}]`,
      [{ name: "x", kind: undefined, mtu: 0, up: false, addresses: [] }],
    ],
    [
      "a link of kernel WireGuard that is down",
      `[{"ifname":"wigglenet","flags":["POINTOPOINT","NOARP"],"mtu":1420,"linkinfo":{"info_kind":"wireguard"},"addr_info":[]}]`,
      [{ name: "wigglenet", kind: "wireguard", mtu: 1420, up: false, addresses: [] }],
    ],
    [
      // lldpd, for one, writes what a neighbour says of itself, and `ip` escapes not all of it.
      "control characters in the alias of a link",
      `[{"ifname":"x","mtu":1500,"ifalias":"a\u0001\u001b[31m\u007f"}]`,
      [{ name: "x", kind: undefined, mtu: 1500, up: false, addresses: [] }],
    ],
  ])("%s", (_, output, expected) => {
    expect(parseLinks(output)).toEqual(expected);
  });
});

/** The tunnel's link as it should be, but for what a case says. */
function link(tweak: Partial<Link> = {}, addresses = ["10.1.0.1/32", "fd00:1::1/128"]): Link {
  return {
    name: "wigglenet",
    kind: "wireguard",
    mtu: 1420,
    up: true,
    addresses: addresses.map((text) => {
      const [address = "", length] = text.split("/");
      return { address, length: Number(length), flaw: undefined, global: !address.startsWith("fe80") };
    }),
    ...tweak,
  };
}

describe("desired and observed → commands", () => {
  test.each<[title: string, observed: Link, commands: string[]]>([
    ["as it should be", link(), []],
    [
      "its own link-local address is nobody's business",
      link({}, ["10.1.0.1/32", "fd00:1::1/128", "fe80::5/64"]),
      [],
    ],
    [
      "just made",
      link({ up: false }, []),
      [
        "ip link set dev wigglenet up",
        "address add 10.1.0.1/32 dev wigglenet",
        "address add fd00:1::1/128 dev wigglenet nodad",
      ],
    ],
    ["set down", link({ up: false }), ["ip link set dev wigglenet up"]],
    ["another MTU", link({ mtu: 1500 }), ["ip link set dev wigglenet mtu 1420"]],
    ["both", link({ mtu: 1500, up: false }), ["ip link set dev wigglenet mtu 1420 up"]],
    ["an address was deleted", link({}, ["fd00:1::1/128"]), ["address add 10.1.0.1/32 dev wigglenet"]],
    [
      "an address was added",
      link({}, ["10.1.0.1/32", "fd00:1::1/128", "10.9.0.1/32"]),
      ["address delete 10.9.0.1/32 dev wigglenet"],
    ],
    [
      "another pod CIDR: the new address before the old one goes",
      link({}, ["10.9.0.1/32", "fd00:9::1/128"]),
      [
        "address add 10.1.0.1/32 dev wigglenet",
        "address add fd00:1::1/128 dev wigglenet nodad",
        "address delete 10.9.0.1/32 dev wigglenet",
        "address delete fd00:9::1/128 dev wigglenet",
      ],
    ],
    [
      "the address with another length",
      link({}, ["10.1.0.1/24", "fd00:1::1/128"]),
      ["address add 10.1.0.1/32 dev wigglenet", "address delete 10.1.0.1/24 dev wigglenet"],
    ],
  ])("%s", (_, observed, commands) => {
    const desired = { mtu: 1420, addresses: ["10.1.0.1/32", "fd00:1::1/128"] };
    const given = diffLink("wigglenet", desired, observed);
    expect(given.flatMap(({ argv, stdin }) => stdin?.trimEnd().split("\n") ?? [argv.join(" ")])).toEqual(
      commands,
    );
  });
});

test.each<[kind: string | undefined, mode: WireGuardMode, says: string | undefined]>([
  ["wireguard", "auto", undefined],
  ["wireguard", "kernel", undefined],
  [
    "wireguard",
    "userspace",
    'is the kernel\'s and WIREGUARD=userspace: remove it with "ip link delete wigglenet"',
  ],
  ["tun", "auto", undefined],
  ["tun", "userspace", undefined],
  ["tun", "kernel", "is served by a wireguard-go and WIREGUARD=kernel: stop that program"],
  ["bridge", "auto", "exists and is of kind bridge, not wireguard: remove it, or set WIGGLENET_IFACE_NAME"],
  [undefined, "auto", "exists and is of kind device, not wireguard"],
])("a link of kind %p with WIREGUARD=%s", (kind, mode, says) => {
  const reason = unfit(link({ kind }), mode);
  if (says === undefined) expect(reason).toBeUndefined();
  else expect(reason).toContain(says);
});
