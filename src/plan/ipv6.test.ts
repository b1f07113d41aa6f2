import { describe, expect, test } from "bun:test";
import type { Family } from "../net/address.ts";
import { input, line, lists, planned } from "./fixtures/input.ts";
import { link } from "./fixtures/links.ts";
import { type Ipv6, leavingFamilies, prefixesBefore, withoutIpv6 } from "./ipv6.ts";
import { podRange } from "./podcidr/ranges.ts";

const whole = input();
const plan = planned(whole);
const desired = lists(plan);
const { podRanges } = whole.own;
const everywhere: Ipv6 = { present: true, newLinks: true, tunnel: true };
const nowhere: Ipv6 = { present: false, newLinks: false, tunnel: false };
const without = (state: Partial<Ipv6>, ranges = podRanges) =>
  lists(withoutIpv6(plan, { ...everywhere, ...state }, ranges));
const isIpv6 = (text: string) => text.includes(":");
/** What there is of IPv6 that the kernel may refuse. */
const left = ({ link, routes, rules, cni }: typeof desired) => ({
  addresses: link?.addresses.filter(isIpv6),
  routes: routes.map(line).filter(isIpv6),
  rules: rules.filter(({ family }) => family === "ipv6").length,
  pods: JSON.stringify(cni).includes("fd00:"),
});

describe("a plan without IPv6", () => {
  const tunnelled = ["24600 fd00:1:0:1::/64 tunnel", "24601 2001:db8::1/128 tunnel"];
  const guards = ["main fd00:1::/64 unreachable", "24600 fd00:1:0:1::/64 unreachable"];
  const all = {
    addresses: ["fd00:1::1/128"],
    routes: [...tunnelled, ...guards].sort(),
    rules: 3,
    pods: true,
  };
  test.each<[title: string, Partial<Ipv6>, kept: Partial<typeof all>]>([
    ["nowhere off", {}, {}],
    [
      "off on the tunnel's link: guards stay",
      { tunnel: false },
      { addresses: [], routes: [...guards].sort() },
    ],
    ["off on new links: pods alone", { newLinks: false }, { pods: false }],
    [
      "off on all links",
      { tunnel: false, newLinks: false },
      { addresses: [], routes: [...guards].sort(), pods: false },
    ],
    ["a kernel without", nowhere, { addresses: [], routes: [], rules: 0, pods: false }],
  ])("%s", (_, state, kept) => {
    const found = left(without(state));
    expect({ ...found, routes: found.routes.sort() }).toEqual({ ...all, ...kept });
  });

  test("IPv4, peers and firewall are as they were", () => {
    const reduced = without(nowhere);
    const ipv4 = ({ routes, rules, link }: typeof desired) => ({
      addresses: link?.addresses.filter((each) => !isIpv6(each)),
      routes: routes.filter(({ prefix }) => !isIpv6(prefix)),
      rules: rules.filter(({ family }) => family === "ipv4"),
    });
    expect(ipv4(reduced)).toEqual(ipv4(desired));
    expect(reduced.link?.mtu).toBe(desired.link?.mtu);
    expect(reduced.cni?.plugins.map(({ type, mtu }) => [type, mtu])).toEqual(
      desired.cni?.plugins.map(({ type, mtu }) => [type, mtu]),
    );
    const { peers, firewall, problems } = desired;
    expect(reduced).toMatchObject({ peers, firewall, problems });
  });

  test("nothing off: the same plan, at no cost", () => {
    expect(withoutIpv6(plan, everywhere, podRanges)).toBe(plan);
  });

  test("pods that have IPv6 alone: no CNI file is written", () => {
    expect(without({ newLinks: false }, [podRange("fd00:1::/64", [])]).cni).toBeUndefined();
  });
});

test("the prefixes that a source may have lost are those of before, while pods cannot have IPv6", () => {
  expect(prefixesBefore(nowhere, podRanges)).toEqual(new Map([["ipv6", ["fd00:1::/64"]]]));
  expect(prefixesBefore(nowhere)).toEqual(new Map([["ipv6", []]]));
  expect(prefixesBefore({ ...everywhere, tunnel: false }, podRanges)).toEqual(new Map());
});

describe("families by which the tunnel's packets can leave", () => {
  const lo = link("lo", "127.0.0.1/8", "::1/128 l");
  const tunnel = link("wigglenet", "10.1.0.1/32", "fd00:1::1/128");
  const pod = link("veth01234567", "10.1.0.1/32", "fd00:1::1/128");
  test.each<[title: string, addresses: string[], of: Family[], expected: Family[]]>([
    ["both", ["192.0.2.5/24", "2001:db8::5/64"], ["ipv4", "ipv6"], ["ipv4", "ipv6"]],
    ["IPv6 is switched off", ["192.0.2.5/24"], ["ipv4", "ipv6"], ["ipv4"]],
    ["it has a link-local address", ["192.0.2.5/24", "fe80::5/64 l"], ["ipv4", "ipv6"], ["ipv4"]],
    ["IPv4 is gone", ["2001:db8::5/64"], ["ipv4", "ipv6"], ["ipv6"]],
    [
      "one that is temporary will do",
      ["192.0.2.5/24", "2001:db8::5/64 t"],
      ["ipv4", "ipv6"],
      ["ipv4", "ipv6"],
    ],
    ["none has any, for a moment", [], ["ipv4", "ipv6"], ["ipv4", "ipv6"]],
    ["WG_IP_FAMILY=ipv4", ["192.0.2.5/24", "2001:db8::5/64"], ["ipv4"], ["ipv4"]],
    ["WG_IP_FAMILY=ipv6, and it is gone", ["192.0.2.5/24"], ["ipv6"], ["ipv6"]],
  ])("%s", (_, addresses, of, expected) => {
    const links = [lo, tunnel, pod, link("eth0", ...addresses)];
    expect(leavingFamilies(links, "wigglenet", of)).toEqual(expected);
  });
});
