/** A node's addresses stay as long as they are on a link and the Node lists no others in their place. */
import { describe, expect, test } from "bun:test";
import { node, none, settings } from "./fixtures/addresses.ts";
import { eth1, link, links } from "./fixtures/links.ts";
import { type NodeAddresses, nodeAddresses, publishedAddresses } from "./identity.ts";
import { annotationsOf, type NodeObject } from "./overlay/node.ts";
import type { NodeLink } from "./own.ts";

describe("sticky", () => {
  const both = ["192.0.2.5", "2001:db8:1::5"];
  const was = (addresses: string[], ...endpoints: string[]) => ({
    addresses,
    endpoints: [...addresses, ...endpoints],
    known: addresses,
  });
  const internal = (...addresses: string[]) =>
    node(...addresses.map((address): [string, string] => ["InternalIP", address]));
  const without = links.map((each) => (each.name === "eth0" ? link("eth0", "2001:db8:1::5/64") : each));
  const deprecated = [link("eth0", "192.0.2.5/24 d", "2001:db8:1::5/64 d")];
  const reversed = [...both].reverse();
  test.each<
    [
      title: string,
      node: NodeObject,
      links: NodeLink[],
      before: ReturnType<typeof was>,
      addresses: string[],
      endpoints: string[],
    ]
  >([
    ["status.addresses is empty", node(), links, was(both), both, both],
    ["and in the order that they had", node(), links, was(reversed), reversed, reversed],
    ["the Node has a name alone", node(["Hostname", "node-7"]), links, was(both), both, both],
    [
      "the InternalIP of one family is gone (kubernetes#109793)",
      internal("2001:db8:1::5"),
      links,
      was(both),
      both,
      both,
    ],
    ["of the other one", internal("192.0.2.5"), links, was(reversed), reversed, reversed],
    [
      "another of that family is listed instead",
      internal("10.3.0.7", "2001:db8:1::5"),
      links,
      was(both),
      ["10.3.0.7", "2001:db8:1::5"],
      ["10.3.0.7", "2001:db8:1::5"],
    ],
    [
      "what is listed instead is on no link, or none that a node can have: no reason to let go",
      internal("198.51.100.9", "fe80::5"),
      links,
      was(both),
      both,
      [...both, "198.51.100.9"],
    ],
    ["it is on no link any more", node(), without, was(both), ["2001:db8:1::5"], ["2001:db8:1::5"]],
    [
      "it was on no link for a moment, and is back",
      node(),
      links,
      { ...was(["2001:db8:1::5"]), known: both },
      both,
      both,
    ],
    ["it is deprecated, and listed", internal(...both), deprecated, was(both), both, both],
    ["and in the Node's order", internal(...both), deprecated, was(reversed), both, both],
    [
      "it is deprecated, and status.addresses is empty",
      node(),
      deprecated,
      was(reversed),
      reversed,
      reversed,
    ],
    [
      "it is deprecated, and another is listed beside it",
      internal(...both, "10.3.0.7"),
      [...deprecated, eth1],
      was(both),
      [...both, "10.3.0.7"],
      [...both, "10.3.0.7"],
    ],
    [
      "it is deprecated, and another is listed instead",
      internal("10.3.0.7", "2001:db8:1::5"),
      [...deprecated, eth1],
      was(both),
      ["10.3.0.7", "2001:db8:1::5"],
      ["10.3.0.7", "2001:db8:1::5"],
    ],
    ["it was deprecated before it was known", internal(both[0]!), deprecated, was([]), [], [both[0]!]],
    [
      "another host has it too (a duplicate)",
      node(),
      [link("eth0", "192.0.2.5/24", "2001:db8:1::5/64 f")],
      was(both),
      ["192.0.2.5"],
      ["192.0.2.5"],
    ],
    [
      "it is an ExternalIP now",
      node(["ExternalIP", "192.0.2.5"]),
      links,
      was(both),
      ["2001:db8:1::5"],
      ["2001:db8:1::5", "192.0.2.5"],
    ],
    [
      "what only others see stays an endpoint while nothing of its family is listed",
      node(),
      links,
      was(both, "203.0.113.5"),
      both,
      [...both, "203.0.113.5"],
    ],
    [
      "and goes once something is",
      internal("192.0.2.5"),
      links,
      was(both, "203.0.113.5", "2001:db8:9::9"),
      both,
      [...both, "2001:db8:9::9"],
    ],
    ["a pod's link has it now", node(), links, was(["10.1.7.1"]), [], []],
    ["nothing was known", node(), links, was([]), [], []],
  ])("%s", (_, given, present, before, addresses, endpoints) => {
    expect(nodeAddresses(given, present, settings(), before)).toMatchObject({ addresses, endpoints });
  });

  test("an ExternalIP on a link of NODE_IP_INTERFACES does not enter the tunnel when the status is empty", () => {
    const byInterface = settings({ nodeIpInterfaces: ["eth0"] });
    const full = nodeAddresses(
      node(["ExternalIP", "192.0.2.5"], ["InternalIP", "10.3.0.7"]),
      links,
      byInterface,
      none,
    );
    expect(full).toMatchObject({
      addresses: ["10.3.0.7", "2001:db8:1::5"],
      endpoints: ["10.3.0.7", "2001:db8:1::5", "192.0.2.5"],
    });
    expect(nodeAddresses(node(), links, byInterface, full)).toMatchObject({
      addresses: full.addresses,
      endpoints: full.endpoints,
    });
  });

  test("flapping for long changes nothing, and what replaces an address does so for good", () => {
    let last: NodeAddresses = nodeAddresses(internal(...both), links, settings(), none);
    for (const listed of [[], both, ["192.0.2.5"], [], ["2001:db8:1::5"], both, []]) {
      last = nodeAddresses(internal(...listed), links, settings(), last);
      expect(last).toMatchObject({ addresses: both, endpoints: both });
    }
    last = nodeAddresses(internal("10.3.0.7"), links, settings(), last);
    expect(last.addresses).toEqual(["2001:db8:1::5", "10.3.0.7"]);
    last = nodeAddresses(internal(), links, settings(), last);
    expect(last.addresses).toEqual(["2001:db8:1::5", "10.3.0.7"]);
  });

  test("after a restart it is what was published", () => {
    const before = was(reversed, "203.0.113.5");
    const annotations = annotationsOf({ version: "1.0.0", publicKey: null, podCidrs: [], ...before });
    const metadata = { name: "node-7", annotations: annotations as Record<string, string> };
    expect(publishedAddresses({ metadata })).toEqual(before);
    // Not by an agent of ours, or rewritten since.
    annotations["wigglenet/node-ips"] = `["192.0.2.5"]`;
    expect(publishedAddresses({ metadata })).toEqual(none);
    expect(publishedAddresses({ metadata: { name: "node-7" } })).toEqual(none);
  });
});
