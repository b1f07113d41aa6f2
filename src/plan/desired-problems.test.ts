/** What a plan says of nodes whose claims or endpoints do not do. */
import { describe, expect, test } from "bun:test";
import { input, keyless, native, node, plan, type Tweak } from "./fixtures/input.ts";

describe("problems", () => {
  const problemsOf = (tweak: Tweak) => Object.fromEntries(plan(input(tweak)).problems);
  test.each<[title: string, Tweak, expected: Record<string, string[]>]>([
    ["none", {}, {}],
    ["of the annotations", { nodes: [keyless(1, { problems: ["bad"] })] }, { n1: ["bad"] }],
    [
      "of a claim, after those",
      { nodes: [keyless(1, { problems: ["bad"], podCidrs: ["10.1.0.0/25"] })] },
      { n1: ["bad", "pod CIDR 10.1.0.0/25 overlaps pod CIDR 10.1.0.0/24 of node n0, which had it first"] },
    ],
    [
      "no endpoint",
      { own: { endpoints: ["192.0.2.200"] }, nodes: [node(1, { endpoints: ["2001:db8::1"] })] },
      {
        n1: [
          "none of its addresses has a family that this node has too (ipv4) and WG_IP_FAMILY allows (ipv4, ipv6)",
        ],
      },
    ],
    [
      "we have no address",
      { own: { endpoints: [] }, settings: { tunnelFamilies: ["ipv6"] } },
      {
        n1: [
          "none of its addresses has a family that this node has too (no address) and WG_IP_FAMILY allows (ipv6)",
        ],
      },
    ],
    ["without a tunnel no endpoint is missed", { ...native("ipv4", "ipv6"), own: { endpoints: [] } }, {}],
  ])("%s", (_, tweak, expected) => {
    expect(problemsOf(tweak)).toEqual(expected);
  });
});
