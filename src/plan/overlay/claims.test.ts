import { describe, expect, test } from "bun:test";
import { node, own, stands } from "../fixtures/claims.ts";
import { type OwnClaims, type Standing, settle } from "./claims.ts";
import type { NodeRecord } from "./node.ts";

/** What each node holds, in short: `a: 10.1.0.0/24 192.0.2.1`; a node without a key has `!` after its name. */
function holdings(
  claims: OwnClaims,
  nodes: NodeRecord[],
  standing: Record<string, string> | Standing = {},
): string[] {
  const given = "owners" in standing ? (standing as Standing) : stands(standing as Record<string, string>);
  return settle(claims, nodes, given).nodes.map(
    ({ record, publicKey, podCidrs, addresses }) =>
      `${record.name}${publicKey ? "" : "!"}: ${[...podCidrs, ...addresses].join(" ")}`,
  );
}

describe("what two nodes claim and nobody held is nobody's", () => {
  test.each<[title: string, a: string[], b: string[], expected: string[]]>([
    ["apart", ["10.1.0.0/24"], ["10.1.1.0/24"], ["a: 10.1.0.0/24", "b: 10.1.1.0/24"]],
    ["equal", ["10.1.0.0/24"], ["10.1.0.0/24"], ["a: ", "b: "]],
    ["contained in the other's", ["10.1.0.0/16"], ["10.1.7.0/24"], ["a: ", "b: "]],
    ["one of two", ["10.1.0.0/24"], ["10.1.0.0/25", "fd00::/64"], ["a: ", "b: fd00::/64"]],
    ["IPv6", ["fd00::/64"], ["fd00::/80"], ["a: ", "b: "]],
    [
      "a number in the other family",
      ["10.1.1.0/24"],
      ["a01:100::/24"],
      ["a: 10.1.1.0/24", "b: a01:100::/24"],
    ],
    ["an address in a pod CIDR", ["10.1.0.0/24"], ["10.1.0.9"], ["a: ", "b: "]],
    ["an address twice", ["192.0.2.9", "10.1.0.0/24"], ["192.0.2.9"], ["a: 10.1.0.0/24", "b: "]],
    ["an address, and it as a pod CIDR", ["192.0.2.9"], ["192.0.2.9/32"], ["a: ", "b: "]],
    ["its address in its own pod CIDR", ["10.1.0.0/24", "10.1.0.9"], [], ["a: 10.1.0.0/24 10.1.0.9", "b: "]],
    [
      "overlapping ones of its own",
      ["10.1.0.0/16", "10.1.7.0/24"],
      [],
      ["a: 10.1.0.0/16 10.1.7.0/24", "b: "],
    ],
    [
      "a rival of both of its overlapping ones",
      ["10.1.0.0/16", "10.1.7.0/24"],
      ["10.1.7.0/25"],
      ["a: ", "b: "],
    ],
    ["a rival of one of them", ["10.1.0.0/16", "10.1.7.0/24"], ["10.1.8.0/25"], ["a: 10.1.7.0/24", "b: "]],
  ])("%s", (_, a, b, expected) => {
    expect(holdings(own(), [node("a", a), node("b", b)])).toEqual(expected);
    expect(holdings(own(), [node("b", b), node("a", a)]).reverse()).toEqual(expected);
  });

  test("it is told, so that it is sent to nobody", () => {
    const nodes = [
      node("a", ["10.1.0.0/24", "192.0.2.9"]),
      node("b", ["10.1.0.0/16", "192.0.2.9"]),
      node("c", ["10.2.0.0/24", "10.9.0.0/16"], { publicKey: "" }),
      node("d", ["10.2.0.0/24"]),
    ];
    const { contested } = settle(own(), nodes, stands({ "10.2.0.0/24": "key of d" }));
    expect(contested).toEqual({ podCidrs: ["10.1.0.0/16", "10.1.0.0/24"], addresses: ["192.0.2.9"] });
  });

  test("all of a chain, whoever is between", () => {
    const nodes = [node("a", ["10.1.0.0/25"]), node("b", ["10.1.0.0/24"]), node("c", ["10.1.0.128/25"])];
    expect(holdings(own(), nodes)).toEqual(["a: ", "b: ", "c: "]);
    // What one of them held before stays with it, and leaves the rest to the third.
    expect(holdings(own(), nodes, { "10.1.0.0/25": "key of a" })).toEqual([
      "a: 10.1.0.0/25",
      "b: ",
      "c: 10.1.0.128/25",
    ]);
  });
});

describe("who keeps what", () => {
  const cidr = "10.1.0.0/24";
  const [a, b] = [node("a", [cidr, "192.0.2.9"]), node("b", [cidr, "192.0.2.9"])];
  const both = `${cidr} 192.0.2.9`;
  const known = (names: Record<string, string>, keys: Record<string, string> = {}): Standing => ({
    ...stands(keys),
    nodes: new Map(Object.entries(names)),
  });
  test.each<
    [title: string, nodes: NodeRecord[], standing: Record<string, string> | Standing, expected: string[]]
  >([
    [
      "the tunnel has it for one of the two",
      [a, b],
      { [cidr]: "key of b", "192.0.2.9/32": "key of b" },
      ["a: ", `b: ${both}`],
    ],
    [
      "each by itself",
      [a, b],
      { [cidr]: "key of b", "192.0.2.9/32": "key of a" },
      ["a: 192.0.2.9", `b: ${cidr}`],
    ],
    ["the tunnel has it for a key that nobody has any more", [a, b], { [cidr]: "key of c" }, ["a: ", "b: "]],
    ["by its name", [a, b], known({ [cidr]: "b", "192.0.2.9/32": "b" }), ["a: ", `b: ${both}`]],
    [
      "by its name, with another key (its file was lost)",
      [a, { ...b, publicKey: "new key of b" }],
      known({ [cidr]: "b", "192.0.2.9/32": "b" }, { [cidr]: "key of b" }),
      ["a: ", `b: ${both}`],
    ],
    [
      "not who has its key now",
      [
        { ...a, publicKey: "key of b" },
        { ...b, publicKey: "new key of b" },
      ],
      known({ [cidr]: "b", "192.0.2.9/32": "b" }, { [cidr]: "key of b" }),
      ["a: ", `b: ${both}`],
    ],
    [
      "its Node was deleted, and it is back under another name with its key",
      [a, node("c", [cidr], { publicKey: "key of b" })],
      known({ [cidr]: "b" }, { [cidr]: "key of b" }),
      ["a: 192.0.2.9", `c: ${cidr}`],
    ],
    ["its Node was deleted", [a], known({ [cidr]: "b" }, { [cidr]: "key of b" }), [`a: ${both}`]],
    [
      "it gave it up",
      [a, node("b", ["10.2.0.0/24"])],
      known({ [cidr]: "b", "192.0.2.9/32": "b" }, { [cidr]: "key of b" }),
      [`a: ${both}`, "b: 10.2.0.0/24"],
    ],
    [
      "it has no key any more: only a node with a key contests",
      [a, node("b", [cidr, "192.0.2.9"], { publicKey: "" })],
      known({ [cidr]: "b", "192.0.2.9/32": "b" }),
      [`a: ${both}`, "b!: "],
    ],
    [
      "a smaller one over a larger one of another",
      [node("a", ["10.0.0.0/8"]), b],
      { [cidr]: "key of b" },
      ["a: ", `b: ${both}`],
    ],
    [
      "a larger one over a smaller one of another",
      [node("a", ["10.0.0.0/8"]), b],
      { "10.0.0.0/8": "key of a" },
      ["a: 10.0.0.0/8", "b: 192.0.2.9"],
    ],
    [
      "it counts for the prefix, not for its node",
      [a, node("b", [cidr, "10.2.0.0/24"])],
      { "10.2.0.0/24": "key of b" },
      ["a: 192.0.2.9", "b: 10.2.0.0/24"],
    ],
    [
      "an address over a pod CIDR around it",
      [node("a", ["192.0.2.0/24"]), node("b", ["192.0.2.9"])],
      { "192.0.2.9/32": "key of b" },
      ["a: ", "b: 192.0.2.9"],
    ],
    [
      "a pod CIDR over an address in it",
      [node("a", ["192.0.2.0/24"]), node("b", ["192.0.2.9"])],
      { "192.0.2.0/24": "key of a" },
      ["a: 192.0.2.0/24", "b: "],
    ],
    [
      "where a tunnel's packets go over a new pod CIDR around it",
      [node("a", ["198.51.100.0/24"]), node("b", [cidr], { endpoints: ["198.51.100.9"] })],
      { "key of b": "198.51.100.9" },
      ["a: ", `b: ${cidr}`],
    ],
    [
      "a pod CIDR over where somebody says to be inside of it",
      [node("a", [], { endpoints: ["10.1.0.9"] }), b],
      { [cidr]: "key of b", "key of a": "10.1.0.9" },
      ["a: ", `b: ${both}`],
    ],
    [
      "one way to two nodes (behind NAT) is no collision",
      [node("a", [cidr], { endpoints: ["198.51.100.9"] }), node("b", [], { endpoints: ["198.51.100.9"] })],
      {},
      [`a: ${cidr}`, "b: "],
    ],
    ["no key, and yet its pod CIDR is its own", [node("a", [cidr], { publicKey: "" })], {}, [`a!: ${cidr}`]],
    [
      "one with a key over one without",
      [node("a", [cidr], { publicKey: "" }), b],
      {},
      ["a!: ", `b: ${both}`],
    ],
  ])("%s", (_, nodes, standing, expected) => {
    const given = nodes.map(({ publicKey, ...rest }) => (publicKey ? { publicKey, ...rest } : rest));
    expect(holdings(own(), given, standing)).toEqual(expected);
    expect(holdings(own(), [...given].reverse(), standing).reverse()).toEqual(expected);
  });

  test("without a tunnel no node needs a key: the same rules", () => {
    const keyless = [a, b].map(({ publicKey: _, ...rest }) => rest);
    const native = own({ publicKey: null });
    expect(holdings(native, keyless)).toEqual(["a!: ", "b!: "]);
    expect(holdings(native, keyless, known({ [cidr]: "b" }))).toEqual(["a!: ", `b!: ${cidr}`]);
  });

  test("what nodes hold that are not read yet is nobody else's, nor a part of it", () => {
    const standing = known({ "10.3.0.0/24": "c" }, { "10.1.0.0/16": "key of x", "10.2.0.0/24": "key of b" });
    const nodes = [a, node("b", ["10.1.0.0/8", "10.3.0.0/25", "10.4.0.0/24"]), node("d", ["10.2.0.0/24"])];
    const partial = settle(own({ whole: false }), nodes, standing);
    expect(partial.nodes.map(({ podCidrs }) => podCidrs)).toEqual([[], ["10.4.0.0/24"], ["10.2.0.0/24"]]);
    expect(partial.standing.owners.get("10.1.0.0/16")).toBe("key of x");
    expect(partial.standing.nodes.get("10.3.0.0/24")).toBe("c");
    // What b, which is known, gave up is free.
    expect(partial.standing.owners.get("10.2.0.0/24")).toBe("key of d");
    const whole = settle(own(), nodes.slice(1), partial.standing as Standing);
    expect(whole.nodes.map(({ podCidrs }) => podCidrs)).toEqual([
      ["10.3.0.0/25", "10.4.0.0/24"],
      ["10.2.0.0/24"],
    ]);
  });

  test("what was settled stands in the next pass, whatever comes", () => {
    const first = settle(own(), [b], stands());
    const second = settle(own(), [a, b], { ...first.standing, endpoints: new Map() });
    expect(second.nodes.map(({ podCidrs, addresses }) => [...podCidrs, ...addresses])).toEqual([
      [],
      [cidr, "192.0.2.9"],
    ]);
    expect([second.standing.owners, second.standing.nodes]).toEqual([
      first.standing.owners,
      first.standing.nodes,
    ]);
  });
});

describe("this node's own, and the API server's", () => {
  const cidr = "10.1.0.0/24";
  const a = node("a", [cidr]);
  const apiServer = ["198.51.100.1"];
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      ["own pod CIDR", own({ podCidrs: [cidr] }), [a], {}, ["a: "]],
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
        "a pod CIDR around the API server's address, even where that is a node's",
        own({ bounds: { apiServer } }),
        [node("a", ["198.51.100.0/24"]), node("b", ["198.51.100.1"])],
        { "198.51.100.0/24": "key of a" },
        ["a: ", "b: 198.51.100.1"],
      ],
      [
        "a node that is the API server is reached like any other, also inside of its own pod CIDR",
        own({ bounds: { apiServer } }),
        [node("a", ["198.51.100.1", "198.51.100.0/24"])],
        {},
        ["a: 198.51.100.0/24 198.51.100.1"],
      ],
      [
        "but who held its address keeps it",
        own({ bounds: { apiServer } }),
        [node("a", ["198.51.100.1"]), node("b", ["198.51.100.1"])],
        { "198.51.100.1/32": "key of b" },
        ["a: ", "b: 198.51.100.1"],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    expect(holdings(claims, nodes, standing)).toEqual(expected);
  });
});

describe("one key, two nodes (a cloned machine)", () => {
  const clone = { publicKey: "key of a" };
  const a = node("a", ["10.1.0.0/24"]);
  test.each<[title: string, own: OwnClaims, nodes: NodeRecord[], standing: Record<string, string>, string[]]>(
    [
      [
        "nothing is known: the older has it; the other's pod CIDR is nobody else's",
        own(),
        [node("b", ["10.2.0.0/24"], clone), a],
        {},
        ["b!: 10.2.0.0/24", "a: 10.1.0.0/24"],
      ],
      [
        "who has most of what is in the tunnel has it",
        own(),
        [a, node("b", ["10.2.0.0/24"], clone)],
        { "10.2.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24", "b: 10.2.0.0/24"],
      ],
      [
        "the prefixes count for more than the way (a peer that roamed)",
        own(),
        [node("a", [], { endpoints: ["198.51.100.9"] }), node("b", ["10.2.0.0/24"], clone)],
        { "10.2.0.0/24": "key of a", "key of a": "198.51.100.9" },
        ["a!: ", "b: 10.2.0.0/24"],
      ],
      ...[
        ["10.1.0.0/24", "192.0.2.1", "/32"],
        ["fd00:1::/64", "2001:db8::1", "/128"],
      ].map(
        ([cidr = "", address = "", bits]): [
          string,
          OwnClaims,
          NodeRecord[],
          Record<string, string>,
          string[],
        ] => [
          `what is in the tunnel counts once, also for who claims ${address} and ${address}${bits}`,
          own(),
          [node("a", [cidr, address]), node("b", [cidr, address, `${address}${bits}`], clone)],
          { [cidr]: "key of a", [`${address}${bits}`]: "key of a", "key of a": address },
          [`a: ${cidr} ${address}`, "b!: "],
        ],
      ),
      [
        "ours is never another's",
        own({ publicKey: "key of a" }),
        [a],
        { "10.1.0.0/24": "key of a" },
        ["a!: 10.1.0.0/24"],
      ],
    ],
  )("%s", (_, claims, nodes, standing, expected) => {
    expect(holdings(claims, nodes, standing)).toEqual(expected);
  });

  test("after a restart a copy of all that a node says gets nothing, and can take nothing away later", () => {
    const elder = node("0", ["10.1.0.0/24"], { ...clone, created: "2001-01-01T00:00:00Z" });
    const kernel = stands({ "10.1.0.0/24": "key of a" });
    const first = settle(own(), [elder, a], kernel);
    expect(first.standing.owners).toEqual(new Map([["10.1.0.0/24", "key of a"]]));
    const later = settle(own(), [node("0", ["10.3.0.0/24"], clone), a], {
      ...first.standing,
      endpoints: new Map(),
    });
    expect(later.standing.owners).toEqual(new Map([["10.1.0.0/24", "key of a"]]));
  });
});

test("each refusal says what collides with what, and what to do", () => {
  const { refused } = settle(
    own({ podCidrs: ["10.9.0.0/24"], bounds: { apiServer: ["192.0.2.100"] } }),
    [
      node("a", ["10.1.0.0/24", "192.0.2.9"]),
      node("b", ["10.1.0.0/16", "192.0.2.9"], { publicKey: "key of a" }),
      node("c", ["10.9.0.0/25", "192.0.2.0/24", "10.4.0.0/24"]),
      node("d", ["10.4.0.0/24"]),
    ],
    stands({ "10.4.0.0/24": "key of c" }),
  );
  expect(Object.fromEntries(refused)).toMatchInlineSnapshot(`
    {
      "a": [
        "pod CIDR 10.1.0.0/24 overlaps pod CIDR 10.1.0.0/16 of node b: neither has it until one gives it up or its Node is deleted",
        "address 192.0.2.9 is claimed by node b too: neither has it until one gives it up or its Node is deleted",
      ],
      "b": [
        "its public key is that of node a: delete its private key file and restart its agent",
        "pod CIDR 10.1.0.0/16 overlaps pod CIDR 10.1.0.0/24 of node a: neither has it until one gives it up or its Node is deleted",
        "address 192.0.2.9 is claimed by node a too: neither has it until one gives it up or its Node is deleted",
      ],
      "c": [
        "pod CIDR 10.9.0.0/25 overlaps pod CIDR 10.9.0.0/24 of node own, which had it first",
        "pod CIDR 192.0.2.0/24 overlaps API server's address 192.0.2.100 of node own, which had it first",
      ],
      "d": [
        "pod CIDR 10.4.0.0/24 is claimed by node c too, which had it first",
      ],
    }
  `);
});
