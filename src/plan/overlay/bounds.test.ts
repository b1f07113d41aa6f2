import { describe, expect, test } from "bun:test";
import { node, own, stands } from "../fixtures/claims.ts";
import { settle } from "./claims.ts";

describe("out of bounds, whoever held it", () => {
  const bounds = {
    ownAddresses: ["192.0.2.1", "10.7.0.1"],
    gateways: ["192.0.2.254", "10.7.0.254"],
    defaultGateways: ["192.0.2.254"],
    apiServer: ["192.0.2.100", "203.0.113.100"],
    onLink: ["192.0.2.0/24", "10.7.0.0/16", "2001:db8:1::/64"],
  };
  test.each<[claim: string, reason: string | undefined]>([
    ["128.0.0.0/3", "it is shorter than /8"],
    ["10.0.0.0/7", "it is shorter than /8"],
    ["11.0.0.0/8", undefined],
    ["2001::/19", "it is shorter than /20"],
    ["2002::/20", undefined],
    ["0.0.0.0/0", "it is partly not unicast"],
    ["127.0.0.0/8", "it is loopback"],
    ["169.254.0.0/16", "it is link-local"],
    ["fe80::/64", "it is link-local"],
    ["ff02::/16", "it is multicast"],
    ["224.0.0.0/8", "it is multicast"],
    ["240.0.0.0/8", "it is not unicast"],
    ["169.254.1.1", "it is link-local"],
    ["192.0.2.1/32", "it is this node's own address"],
    ["192.0.2.1", "it is this node's own"],
    ["192.0.2.254/32", "it is a gateway of this node"],
    ["192.0.2.254", "it is this node's default gateway"],
    ["10.7.0.254/32", "it is a gateway of this node"],
    // Another node that leads somewhere.
    ["10.7.0.254", undefined],
    ["192.0.2.100/32", "it is an address of the API server"],
    // A control-plane node.
    ["192.0.2.100", undefined],
    ["192.0.2.0/24", "covers 192.0.2.0/24, which is on a link of this node"],
    ["192.0.0.0/16", "covers 192.0.2.0/24, which is on a link of this node"],
    ["10.0.0.0/8", "covers 10.7.0.0/16, which is on a link of this node"],
    ["2001:db8::/32", "covers 2001:db8:1::/64, which is on a link of this node"],
    // Inside of what is on a link its routers and the API server have routes of their own.
    ["192.0.2.96/29", undefined],
    ["192.0.2.252/30", undefined],
    ["2001:db8:1:0:1::/80", undefined],
    ["203.0.113.0/24", "overlaps API server's address 203.0.113.100 of node own"],
  ])("%s: %s", (claim, reason) => {
    const prefix = claim.includes("/") ? claim : `${claim}/32`;
    for (const standing of [stands(), stands({ [prefix]: "key of a" })]) {
      const { nodes, refused, contested } = settle(own({ bounds }), [node("a", [claim])], standing);
      expect(refused.get("a") ?? []).toEqual(reason ? [expect.stringContaining(reason)] : []);
      expect([nodes[0]?.podCidrs, nodes[0]?.addresses].flat()).toEqual(reason ? [] : [claim]);
      expect(contested).toEqual({ podCidrs: [], addresses: [] });
    }
  });

  test("only what is allowed, where that is set", () => {
    const allowed = ["10.1.0.0/16", "fd00::/48"];
    const claims = [
      "10.1.0.0/16",
      "10.1.7.0/24",
      "10.0.0.0/8",
      "10.2.0.0/24",
      "fd00:0:0:7::/64",
      "fd01::/64",
    ];
    const { nodes } = settle(own({ bounds: { allowed } }), [node("a", [...claims, "192.0.2.9"])], stands());
    expect(nodes[0]).toMatchObject({
      podCidrs: ["10.1.0.0/16", "10.1.7.0/24", "fd00:0:0:7::/64"],
      addresses: ["192.0.2.9"],
    });
  });

  test("what is out of bounds contests nothing", () => {
    const nodes = [node("a", ["10.0.0.0/7"]), node("b", ["10.1.0.0/24"])];
    const settled = settle(own(), nodes, stands());
    expect(settled.nodes.map(({ podCidrs }) => podCidrs)).toEqual([[], ["10.1.0.0/24"]]);
  });
});
