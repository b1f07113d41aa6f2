import { describe, expect, test } from "bun:test";
import { type OwnClaims, settle } from "./claims.ts";
import { node, own, stands } from "./fixtures/claims.ts";
import type { NodeRecord } from "./node.ts";

/** What each node holds, in short: `a: 10.1.0.0/24 192.0.2.1`; a node without a key has `!` after its name. */
function holdings(claims: OwnClaims, nodes: NodeRecord[], standing: Record<string, string> = {}): string[] {
  return settle(claims, nodes, stands(standing)).nodes.map(
    ({ record, publicKey, podCidrs, addresses }) =>
      `${record.name}${publicKey ? "" : "!"}: ${[...podCidrs, ...addresses].join(" ")}`,
  );
}

describe("prefixes of two nodes", () => {
  test.each<[title: string, a: string[], b: string[], expected: string[]]>([
    ["apart", ["10.1.0.0/24"], ["10.1.1.0/24"], ["a: 10.1.0.0/24", "b: 10.1.1.0/24"]],
    ["equal", ["10.1.0.0/24"], ["10.1.0.0/24"], ["a: 10.1.0.0/24", "b: "]],
    ["contained in an older one's", ["10.1.0.0/16"], ["10.1.7.0/24"], ["a: 10.1.0.0/16", "b: "]],
    ["containing an older one's", ["10.1.7.0/24"], ["10.1.0.0/16"], ["a: 10.1.7.0/24", "b: "]],
    ["one of two", ["10.1.0.0/24"], ["10.1.0.0/25", "fd00::/64"], ["a: 10.1.0.0/24", "b: fd00::/64"]],
    ["IPv6", ["fd00::/64"], ["fd00::/80"], ["a: fd00::/64", "b: "]],
    ["a number in the other family", ["0.0.1.0/24"], ["::1:0/120"], ["a: 0.0.1.0/24", "b: ::1:0/120"]],
    // An address inside another's pod CIDR would take a pod's traffic away.
    ["address in an older pod CIDR", ["10.1.0.0/24"], ["10.1.0.9"], ["a: 10.1.0.0/24", "b: "]],
    ["pod CIDR around an older address", ["192.0.2.9"], ["192.0.2.0/24"], ["a: 192.0.2.9", "b: "]],
    // Either would be the gain of who claims it: traffic to it goes as to any host outside (kube-vip#1385).
    ["an address twice: neither", ["192.0.2.9", "10.1.0.0/24"], ["192.0.2.9"], ["a: 10.1.0.0/24", "b: "]],
    ["address in its own pod CIDR", ["10.1.0.0/24", "10.1.0.9"], [], ["a: 10.1.0.0/24 10.1.0.9", "b: "]],
    [
      "overlapping ones of its own",
      ["10.1.0.0/16", "10.1.7.0/24"],
      [],
      ["a: 10.1.0.0/16 10.1.7.0/24", "b: "],
    ],
    [
      "a rival of both of a node's overlapping ones",
      ["10.1.0.0/16", "10.1.7.0/24"],
      ["10.1.7.0/25"],
      ["a: 10.1.0.0/16 10.1.7.0/24", "b: "],
    ],
  ])("%s", (_, a, b, expected) => {
    expect(holdings(own(), [node("a", a), node("b", b)])).toEqual(expected);
    expect(holdings(own(), [node("b", b), node("a", a)]).reverse()).toEqual(expected);
  });

  test("a third that overlaps only what was refused holds", () => {
    const nodes = [node("a", ["10.1.0.0/25"]), node("b", ["10.1.0.0/24"]), node("c", ["10.1.0.128/25"])];
    expect(holdings(own(), nodes)).toEqual(["a: 10.1.0.0/25", "b: ", "c: 10.1.0.128/25"]);
  });
});

describe("who wins", () => {
  const cidr = "10.1.0.0/24";
  const [a, b] = [node("a", [cidr]), node("b", [cidr])];
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      ["the older Node", own(), [a, b], {}, [`a: ${cidr}`, "b: "]],
      [
        "then the name",
        own(),
        [node("b", [cidr], { created: "" }), node("a", [cidr], { created: "" })],
        {},
        ["b: ", `a: ${cidr}`],
      ],
      ["what stands over what is older", own(), [a, b], { [cidr]: "key of b" }, ["a: ", `b: ${cidr}`]],
      ["what stands for the older", own(), [a, b], { [cidr]: "key of a" }, [`a: ${cidr}`, "b: "]],
      [
        "what stands for nobody any more decides nothing",
        own(),
        [a, b],
        { [cidr]: "key of c" },
        [`a: ${cidr}`, "b: "],
      ],
      [
        "a standing smaller one over an older larger one",
        own(),
        [node("a", ["10.0.0.0/8"]), b],
        { [cidr]: "key of b" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "standing counts for the prefix that stands, not for the node",
        own(),
        [a, node("b", [cidr, "10.2.0.0/24"])],
        { "10.2.0.0/24": "key of b" },
        [`a: ${cidr}`, "b: 10.2.0.0/24"],
      ],
      ["own pod CIDR", own({ podCidrs: [cidr] }), [a, b], {}, ["a: ", "b: "]],
      ["own pod CIDR over one that stands", own({ podCidrs: [cidr] }), [a], { [cidr]: "key of a" }, ["a: "]],
      ["own pod CIDR over a larger one", own({ podCidrs: [cidr] }), [node("a", ["10.0.0.0/8"])], {}, ["a: "]],
      ["own address", own({ addresses: ["192.0.2.1"] }), [node("a", ["192.0.2.1"])], {}, ["a: "]],
      [
        "own address over a pod CIDR",
        own({ addresses: ["192.0.2.1"] }),
        [node("a", ["192.0.2.0/24"])],
        {},
        ["a: "],
      ],
      // calico#5125: a tunnel that takes the API server's address locks the node out.
      [
        "a pod CIDR around the API server's address",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.0/24"])],
        {},
        ["a: "],
      ],
      [
        "even where that is a node's",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.0/24"]), node("b", ["192.0.2.100"])],
        { "192.0.2.0/24": "key of a" },
        ["a: ", "b: 192.0.2.100"],
      ],
      [
        "a node that is the API server is reached like any other, also inside its own pod CIDR",
        own({ reserved: ["192.0.2.100"] }),
        [node("a", ["192.0.2.100", "192.0.2.0/24"])],
        {},
        ["a: 192.0.2.0/24 192.0.2.100"],
      ],
      [
        "a standing address, though another claims it too: neither",
        own(),
        [node("a", ["192.0.2.9"]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of a" },
        ["a: ", "b: "],
      ],
      [
        "a standing address over an older pod CIDR around it",
        own(),
        [node("a", ["192.0.2.0/24"]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of b" },
        ["a: ", "b: 192.0.2.9"],
      ],
      [
        "an address of a node in the tunnel over an older pod CIDR around it, also when two had claimed it until now",
        own(),
        [node("a", ["192.0.2.8/31", "2001:db8::/64"]), node("b", [cidr, "192.0.2.9", "2001:db8::9"])],
        { [cidr]: "key of b" },
        ["a: ", `b: ${cidr} 192.0.2.9 2001:db8::9`],
      ],
      [
        "an address twice, and a pod CIDR of one of the two around it: not by that way either",
        own(),
        [node("a", ["192.0.2.9", "192.0.2.8/31", "192.0.2.9/32", cidr]), node("b", ["192.0.2.9"])],
        { "192.0.2.9/32": "key of b" },
        [`a: ${cidr}`, "b: "],
      ],
      [
        "an address twice, inside of the pod CIDR in which its node stands",
        own(),
        [node("a", ["192.0.2.9"]), node("b", ["192.0.2.9", "192.0.2.0/24"])],
        { "192.0.2.0/24": "key of b" },
        ["a: ", "b: 192.0.2.0/24"],
      ],
      [
        "where a tunnel's packets go over an older pod CIDR around it",
        own(),
        [node("a", ["198.51.100.0/24"]), node("b", [cidr], { endpoints: ["198.51.100.9"] })],
        { "key of b": "198.51.100.9" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "a pod CIDR over where somebody says to be inside of it",
        own(),
        [node("a", [], { endpoints: ["10.1.0.9"] }), b],
        { [cidr]: "key of b", "key of a": "10.1.0.9" },
        ["a: ", `b: ${cidr}`],
      ],
      [
        "one way to two nodes (behind NAT) is no collision",
        own(),
        [node("a", [cidr], { endpoints: ["198.51.100.9"] }), node("b", [], { endpoints: ["198.51.100.9"] })],
        {},
        [`a: ${cidr}`, "b: "],
      ],
      [
        "no key: what can have a tunnel comes first",
        own(),
        [node("a", [cidr], { publicKey: "" }), b],
        {},
        ["a!: ", `b: ${cidr}`],
      ],
      [
        "no key, and yet its pod CIDR is its own",
        own(),
        [node("a", [cidr], { publicKey: "" })],
        {},
        [`a!: ${cidr}`],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    const given = nodes.map(({ publicKey, ...rest }) => (publicKey ? { publicKey, ...rest } : rest));
    expect(holdings(claims, given, standing)).toEqual(expected);
  });
});

describe("one key, two nodes (a cloned machine)", () => {
  const clone = { publicKey: "key of a" };
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      [
        "the older keeps it; the other's pod CIDR is nobody else's",
        own(),
        [node("b", ["10.2.0.0/24"], clone), node("a", ["10.1.0.0/24"])],
        {},
        ["b!: 10.2.0.0/24", "a: 10.1.0.0/24"],
      ],
      [
        "the one whose pod CIDR stands keeps it",
        own(),
        [node("a", ["10.1.0.0/24"]), node("b", ["10.2.0.0/24"], clone)],
        { "10.2.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24", "b: 10.2.0.0/24"],
      ],
      [
        "ours is never another's",
        own({ publicKey: "key of a" }),
        [node("a", ["10.1.0.0/24"])],
        { "10.1.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24"],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    expect(holdings(claims, nodes, standing)).toEqual(expected);
  });
});

test("each refusal says what collides with what, and what to do", () => {
  const { refused } = settle(
    own({ podCidrs: ["10.9.0.0/24"], reserved: ["192.0.2.100"] }),
    [
      node("a", ["10.1.0.0/24", "192.0.2.9"]),
      node("b", ["10.1.0.0/16", "192.0.2.9"], { publicKey: "key of a" }),
      node("c", ["10.9.0.0/25", "192.0.2.0/24"]),
    ],
    stands(),
  );
  expect(Object.fromEntries(refused)).toMatchInlineSnapshot(`
    {
      "a": [
        "address 192.0.2.9 is claimed by another node too",
      ],
      "b": [
        "its public key is that of node a: delete its private key file and restart its agent",
        "address 192.0.2.9 is claimed by node a too",
        "pod CIDR 10.1.0.0/16 overlaps pod CIDR 10.1.0.0/24 of node a",
      ],
      "c": [
        "pod CIDR 10.9.0.0/25 overlaps pod CIDR 10.9.0.0/24 of node own",
        "pod CIDR 192.0.2.0/24 overlaps endpoint 192.0.2.100 of node own",
      ],
    }
  `);
});
