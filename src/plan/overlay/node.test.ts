import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  annotationsOf,
  fromAnnotations,
  fromNode,
  type NodeObject,
  parseKey,
  saysAll,
  specPodCidrs,
  statusAddresses,
} from "./node.ts";

setDefaultTimeout(60_000);

const key = Buffer.alloc(32, 7).toString("base64");

/** What our agent writes for a node with one pod CIDR a family and an ExternalIP behind 1:1 NAT. */
const ours = annotationsOf({
  version: "1.0.0",
  publicKey: key,
  podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"],
  addresses: ["192.0.2.7", "2001:db8::7"],
  endpoints: ["192.0.2.7", "2001:db8::7", "203.0.113.7"],
}) as Record<string, string>;

type Tweak = Record<string, string | undefined>;

function metadata(tweak: Tweak = {}, from: Record<string, string> = ours): NodeObject["metadata"] {
  const entries = Object.entries({ ...from, ...tweak }).filter(([, value]) => value !== undefined);
  return {
    name: "node-7",
    creationTimestamp: "2024-01-01T00:00:00Z",
    annotations: Object.fromEntries(entries) as Record<string, string>,
  };
}

/** A Node whose agent is the Go implementation: its node-ips are those of NODE_IP_INTERFACES alone. */
function goNode(tweak: Tweak = {}, status?: [type: string, address: string][]): NodeObject {
  const annotations = { "wigglenet/public-key": key, "wigglenet/pod-cidrs": `["10.1.7.0/24"]` };
  return {
    metadata: metadata({ "wigglenet/node-ips": "null", ...tweak }, annotations),
    spec: { podCIDR: "10.1.7.0/24", podCIDRs: ["10.1.7.0/24", "fd00:1:0:7::/64"] },
    status: {
      addresses: (status ?? [["InternalIP", "192.0.2.7"]]).map(([type, address]) => ({ type, address })),
    },
  };
}

describe("a node of our kind, by its annotations alone", () => {
  test("the record that is kept", () => {
    expect(fromAnnotations({ metadata: metadata() })).toEqual({
      name: "node-7",
      created: "2024-01-01T00:00:00Z",
      publicKey: key,
      podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"],
      addresses: ["192.0.2.7", "2001:db8::7"],
      endpoints: ["192.0.2.7", "2001:db8::7", "203.0.113.7"],
      clearToNodes: false,
      problems: [],
    });
  });

  test("the text of the four annotations, which other agents parse", () => {
    expect(ours).toMatchInlineSnapshot(`
      {
        "wigglenet/agent": "{"version":"1.0.0","nodeIps":"f896c49ac9171bdd","tunnelled":2}",
        "wigglenet/node-ips": "["192.0.2.7","2001:db8::7","203.0.113.7"]",
        "wigglenet/pod-cidrs": "["10.1.7.0/24","fd00:1:0:7::/64"]",
        "wigglenet/public-key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
      }
    `);
  });

  test.each<[title: string, tweak: Tweak, expected: object]>([
    ["no key yet", { "wigglenet/public-key": undefined }, { podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"] }],
    ["a newline after the key", { "wigglenet/public-key": `${key}\n` }, { publicKey: key }],
    ["null for an empty list, as Go writes it", { "wigglenet/pod-cidrs": "null" }, { podCidrs: [] }],
    ["an empty list", { "wigglenet/pod-cidrs": "[]" }, { podCidrs: [] }],
    ["no pod-cidrs at all", { "wigglenet/pod-cidrs": undefined }, { podCidrs: [] }],
    ["an empty text", { "wigglenet/pod-cidrs": "" }, { podCidrs: [] }],
    [
      "host bits and the same prefix twice",
      { "wigglenet/pod-cidrs": `["10.1.7.9/24","10.1.7.0/24"]` },
      { podCidrs: ["10.1.7.0/24"] },
    ],
    [
      "a text that is not canonical",
      { "wigglenet/node-ips": `["2001:DB8::0007"]` },
      { endpoints: ["2001:db8::7"] },
    ],
  ])("holds: %s", (_, tweak, expected) => {
    expect(fromAnnotations({ metadata: metadata(tweak) })).toMatchObject({ ...expected, problems: [] });
  });

  const cidrs = "wigglenet/pod-cidrs";
  const ips = "wigglenet/node-ips";
  const publicKey = "wigglenet/public-key";
  test.each<[name: string, value: string]>([
    [publicKey, "no key"],
    [publicKey, key.slice(0, -1)],
    [publicKey, Buffer.alloc(31, 7).toString("base64")],
    [publicKey, Buffer.alloc(33, 7).toString("base64")],
    [publicKey, Buffer.alloc(32, 0).toString("base64")],
    [publicKey, `${key.slice(0, -2)}d=`],
    [publicKey, `${key}\n[Peer]`],
    [cidrs, "10.1.7.0/24"],
    [cidrs, `"10.1.7.0/24"`],
    [cidrs, `{"0":"10.1.7.0/24"}`],
    [cidrs, `["10.1.7.0/24"`],
    [cidrs, `["10.1.7.0/24",7]`],
    [cidrs, `["10.1.7.0/24",null]`],
    [cidrs, `["10.1.7.0/24",["fd00::/64"]]`],
    [cidrs, `["10.1.7.0/24","10.1.7.0/33"]`],
    [cidrs, `["10.1.7.0"]`],
    [cidrs, "true"],
    [cidrs, "7"],
    [ips, `["192.0.2.7/32"]`],
    [ips, `["node-7.example.com"]`],
    [ips, `["fe80::1%eth0"]`],
    [ips, `["::ffff:192.0.2.7"]`],
  ])("malformed, and costs the node its key: %s = %s", (name, value) => {
    const record = fromAnnotations({ metadata: metadata({ [name]: value }) });
    expect(record.publicKey).toBeUndefined();
    expect(record.problems).toEqual([expect.stringContaining(`${name}: ${JSON.stringify(value)} is not `)]);
  });

  test.each<[name: string, value: string, told: string, podCidrs: number, endpoints: string[]]>([
    [cidrs, `["0.0.0.0/0","10.1.7.0/24"]`, "0.0.0.0/0 is partly not unicast", 1, ["192.0.2.7"]],
    [cidrs, `["::/0"]`, "::/0 is partly loopback", 0, ["192.0.2.7"]],
    [cidrs, `["127.0.0.0/8"]`, "127.0.0.0/8 is loopback", 0, ["192.0.2.7"]],
    [cidrs, `["fe80::/64"]`, "fe80::/64 is link-local", 0, ["192.0.2.7"]],
    [ips, `["169.254.169.254","192.0.2.7"]`, "169.254.169.254 is link-local", 2, []],
    [ips, `["192.0.2.7","fe80::7"]`, "fe80::7 is link-local", 2, ["192.0.2.7"]],
    [ips, `["::1"]`, "::1 is loopback", 2, []],
  ])("left out, and costs the node nothing more: %s = %s", (name, value, told, podCidrs, addresses) => {
    const tweak = { [ips]: `["192.0.2.7"]`, [name]: value };
    const agent = JSON.stringify({ version: "1.0.0", nodeIps: "", tunnelled: 1 });
    const record = fromAnnotations({ metadata: metadata({ ...tweak, "wigglenet/agent": agent }) });
    expect(record).toMatchObject({ publicKey: key, addresses, problems: [`${name}: ${told}`] });
    expect(record.podCidrs).toHaveLength(podCidrs);
  });

  test.each<[count: number, told: string[]]>([
    [16, []],
    [17, ["17 entries, of which the first 16 count"]],
    [600, ["600 entries, of which the first 16 count"]],
  ])("of %p pod CIDRs and addresses 16 are taken", (count, told) => {
    const each = (entry: (n: number) => string) =>
      JSON.stringify(Array.from({ length: count }, (_, n) => entry(n)));
    const record = fromAnnotations({
      metadata: metadata({
        [cidrs]: each((n) => `10.${n % 256}.${n >> 8}.0/24`),
        [ips]: each((n) => `192.0.${n >> 8}.${n % 256}`),
        "wigglenet/agent": JSON.stringify({ version: "1.0.0", nodeIps: "", tunnelled: 600 }),
      }),
    });
    expect(record.publicKey).toBe(key);
    expect([record.podCidrs, record.addresses, record.endpoints].map((list) => list.length)).toEqual([
      16, 16, 16,
    ]);
    expect(record.problems).toEqual([cidrs, ips].flatMap((name) => told.map((text) => `${name}: ${text}`)));
  });

  test("what is larger than any list of 16 is not parsed", () => {
    const { publicKey: held, problems } = fromAnnotations({
      metadata: metadata({ [cidrs]: `["10.1.7.0/24"${" ".repeat(20_000)}]` }),
    });
    expect([held, problems]).toEqual([
      undefined,
      [expect.stringContaining("is not a JSON list of prefixes")],
    ]);
  });

  test("all that is malformed is told at once, each cut to what a log line bears", () => {
    const long = "x".repeat(100_000);
    const { problems } = fromAnnotations({
      metadata: metadata({ [publicKey]: long, [cidrs]: long, [ips]: long }),
    });
    expect(problems).toHaveLength(3);
    for (const problem of problems) expect(problem.length).toBeLessThan(200);
  });

  test.each<[title: string, annotations: Record<string, string> | undefined]>([
    ["no annotations", undefined],
    ["none of ours", {}],
    ["names of JavaScript's own", { constructor: "x", __proto__: "y" }],
  ])("nothing to tell: %s", (_, annotations) => {
    const { podCidrs, addresses, endpoints, problems } = fromAnnotations({
      metadata: { name: "node-7", ...(annotations ? { annotations } : {}) },
    });
    expect({ podCidrs, addresses, endpoints, problems }).toEqual({
      podCidrs: [],
      addresses: [],
      endpoints: [],
      problems: [],
    });
  });
});

describe("of which kind a node's agent is", () => {
  const agent = (value: object) =>
    JSON.stringify({ ...JSON.parse(ours["wigglenet/agent"] as string), ...value });
  test.each<[title: string, tweak: Tweak, expected: boolean]>([
    ["ours", {}, true],
    // Moved back to the Go implementation: it rewrites node-ips and leaves wigglenet/agent as it is.
    ["node-ips rewritten by another", { "wigglenet/node-ips": "[]" }, false],
    ["node-ips gone", { "wigglenet/node-ips": undefined }, false],
    ["no agent", { "wigglenet/agent": undefined }, false],
    ["an empty agent", { "wigglenet/agent": "" }, false],
    ["not JSON", { "wigglenet/agent": "1.0.0" }, false],
    ["JSON, not an object", { "wigglenet/agent": "null" }, false],
    ["a number as checksum", { "wigglenet/agent": agent({ nodeIps: 7 }) }, false],
    ["a negative count", { "wigglenet/agent": agent({ tunnelled: -1 }) }, false],
    ["a count that is a fraction", { "wigglenet/agent": agent({ tunnelled: 1.5 }) }, false],
    ["another version", { "wigglenet/agent": agent({ version: "9.9.9" }) }, true],
    ["a field that a later version added", { "wigglenet/agent": agent({ mtu: 1420 }) }, true],
  ])("%s", (_, tweak, expected) => {
    expect(saysAll(metadata(tweak).annotations)).toBe(expected);
  });

  test("no annotations at all", () => {
    expect(saysAll(undefined)).toBe(false);
  });

  test.each<[tunnelled: number, addresses: string[]]>([
    [0, []],
    [1, ["192.0.2.7"]],
    [99, ["192.0.2.7", "203.0.113.7", "2001:db8::7"]],
  ])("the first %p of node-ips go through the tunnel", (tunnelled, addresses) => {
    const record = fromAnnotations({ metadata: metadata({ "wigglenet/agent": agent({ tunnelled }) }) });
    expect(record.addresses).toEqual(addresses);
  });
});

describe("a node of the other kind, by its whole Node", () => {
  test.each<[title: string, node: NodeObject, expected: object]>([
    [
      "InternalIP from the status; pod CIDRs from the annotation, not the spec",
      goNode(),
      { publicKey: key, podCidrs: ["10.1.7.0/24"], addresses: ["192.0.2.7"], endpoints: ["192.0.2.7"] },
    ],
    [
      "null for its pod CIDRs: the spec's",
      goNode({ "wigglenet/pod-cidrs": "null" }),
      { podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"] },
    ],
    [
      "no agent at all yet: no key, the spec's pod CIDRs",
      { ...goNode(), metadata: { name: "node-7" } },
      { podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"], addresses: ["192.0.2.7"], endpoints: ["192.0.2.7"] },
    ],
    [
      "node-ips besides the status",
      goNode({ "wigglenet/node-ips": `["2001:db8::7"]` }),
      { addresses: ["192.0.2.7", "2001:db8::7"], endpoints: ["192.0.2.7", "2001:db8::7"] },
    ],
    [
      // Traffic to an address behind 1:1 NAT is for the NAT to deliver: in the tunnel it would arrive nowhere.
      "an ExternalIP is an endpoint, the last, and never among its addresses",
      goNode({}, [
        ["ExternalIP", "203.0.113.7"],
        ["InternalIP", "192.0.2.7"],
      ]),
      { addresses: ["192.0.2.7"], endpoints: ["192.0.2.7", "203.0.113.7"] },
    ],
    [
      "an ExternalIP that node-ips names too",
      goNode({ "wigglenet/node-ips": `["203.0.113.7"]` }, [
        ["InternalIP", "192.0.2.7"],
        ["ExternalIP", "203.0.113.7"],
      ]),
      { addresses: ["192.0.2.7"], endpoints: ["192.0.2.7", "203.0.113.7"] },
    ],
    [
      "an address that is both is internal",
      goNode({}, [
        ["ExternalIP", "192.0.2.7"],
        ["InternalIP", "192.0.2.7"],
      ]),
      { addresses: ["192.0.2.7"], endpoints: ["192.0.2.7"] },
    ],
    [
      "names and what is no address are no addresses",
      goNode({}, [
        ["Hostname", "node-7"],
        ["InternalDNS", "node-7.internal"],
        ["InternalIP", "node-7"],
        ["InternalIP", "192.0.2.7"],
      ]),
      { addresses: ["192.0.2.7"], endpoints: ["192.0.2.7"] },
    ],
    ["no status", { metadata: goNode().metadata }, { publicKey: key, addresses: [], endpoints: [] }],
    [
      "podCIDR alone",
      { metadata: { name: "n" }, spec: { podCIDR: "10.1.7.0/24" } },
      { podCidrs: ["10.1.7.0/24"] },
    ],
  ])("%s", (_, node, expected) => {
    expect(fromNode(node)).toMatchObject({ ...expected, problems: [] });
  });

  // The Go implementation has the tunnel's routes for pods, and none for nodes.
  test.each<[title: string, node: NodeObject, expected: boolean]>([
    ["a key: its agent is of the other kind", goNode(), true],
    [
      "moved back from ours, whose wigglenet/agent is still there",
      { metadata: metadata({ "wigglenet/node-ips": "[]" }) },
      true,
    ],
    ["no key yet: no agent ran", goNode({ "wigglenet/public-key": undefined }), false],
    ["a key that is none", goNode({ "wigglenet/public-key": "no key" }), false],
    ["no annotations at all", { ...goNode(), metadata: { name: "node-7" } }, false],
  ])("whether its pods' packets to nodes are in the clear: %s", (_, node, expected) => {
    expect(fromNode(node).clearToNodes).toBe(expected);
  });

  test("malformed pod-cidrs cost it its key, and the spec's pod CIDRs are not sent in the clear", () => {
    const record = fromNode(goNode({ "wigglenet/pod-cidrs": "[7]" }));
    expect(record).toMatchObject({ podCidrs: ["10.1.7.0/24", "fd00:1:0:7::/64"] });
    expect(record.publicKey).toBeUndefined();
    expect(record.problems).toHaveLength(1);
  });
});

test.each<[value: string, expected: string | undefined]>([
  [key, key],
  [`  ${key}\n`, key],
  [key.replace("=", ""), undefined],
  [`${key}=`, undefined],
  [key.replaceAll("B", "-"), undefined],
  [Buffer.alloc(32).toString("base64"), undefined],
  // Two spellings of the same bytes would be two peers.
  [`${"A".repeat(42)}B=`, undefined],
])("parseKey(%p) is %p", (value, expected) => {
  expect(parseKey(value)).toBe(expected as string);
});

test("what does not parse in the spec is left out", () => {
  expect(specPodCidrs({ metadata: { name: "n" }, spec: { podCIDRs: ["x", "10.1.7.1/24"] } })).toEqual([
    "10.1.7.0/24",
  ]);
  expect(statusAddresses({ metadata: { name: "n" } })).toEqual({
    internal: [],
    external: [],
    unusable: [],
  });
});
