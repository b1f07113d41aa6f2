import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { evaluate, input } from "../fixtures/expression.ts";
import { compileExpression } from "./expression.ts";

function messageOf(call: () => unknown): string {
  try {
    return `no error, but ${JSON.stringify(call())}`;
  } catch (error) {
    return (error as Error).message;
  }
}

describe("what users write", () => {
  const cases: [title: string, source: string, expected: string[]][] = [
    [
      "the second /80 of the routed /64",
      `interfaces["eth0"].filter(p, p.prefixLength() == 64)[0].subnet(80, 1)`,
      ["2001:db8:1:0:1::/80"],
    ],
    [
      "the second /28 of the interface's IPv4 prefix",
      `interfaces["eth0"].filter(p, p.ip().family() == 4)[0].subnet(28, 1)`,
      ["192.0.2.16/28"],
    ],
    [
      "the first global IPv6 prefix of any interface",
      `interfaces.map(name, interfaces[name].filter(p, p.ip().family() == 6 && p.ip().isGlobalUnicast()))
         .filter(found, found.size() > 0)[0][0].subnet(80, 1)`,
      ["2001:db8:1:0:1::/80"],
    ],
    [
      "dual-stack, numbered by a label",
      `[cidr("10.1.0.0/16").subnet(24, int(node.labels["index"])),
        cidr("fd00:1::/48").subnet(64, int(node.labels.index))]`,
      ["10.1.7.0/24", "fd00:1:0:7::/64"],
    ],
    [
      "numbered by the zone",
      `cidr("10.64.0.0/10").subnet(16, {"a": 0, "b": 1}[node.labels["topology.kubernetes.io/zone"]])`,
      ["10.65.0.0/16"],
    ],
    [
      "numbered by the zone, then by a label",
      `cidr("10.64.0.0/10").subnet(16, {"a": 0, "b": 1}[node.labels["topology.kubernetes.io/zone"]])
         .subnet(24, int(node.labels["index"]))`,
      ["10.65.7.0/24"],
    ],
    [
      "numbered by the end of the name",
      `cidr("10.1.0.0/16").subnet(24, int(node.name.split("-")[1]))`,
      ["10.1.7.0/24"],
    ],
    [
      "without link-local prefixes",
      `interfaces["eth0"].filter(p, !p.ip().isLinkLocalUnicast())`,
      ["192.0.2.0/24", "2001:db8:1::/64"],
    ],
    [
      "lists joined",
      `interfaces["eth0"].filter(p, p.prefixLength() == 64 && !cidr("fe80::/10").containsIP(p.ip())).map(p, p.subnet(80, 1))
         + [cidr("10.1.7.0/24")]`,
      ["2001:db8:1:0:1::/80", "10.1.7.0/24"],
    ],
    ["an annotation", `cidr(node.annotations["example.com/pods"])`, ["2001:db8:7::/80"]],
    [
      "a list in an annotation",
      `node.annotations["example.com/list"].split(",").map(text, cidr(text))`,
      ["10.7.0.0/24", "2001:db8:7::/80"],
    ],
    [
      "an annotation, if it has one of use",
      `isCIDR(node.annotations["example.com/none"]) ? [cidr(node.annotations["example.com/none"])] : []`,
      [],
    ],
    [
      "a label that is not there",
      `"pods" in node.labels ? cidr(node.labels["pods"]) : cidr("10.9.0.0/24")`,
      ["10.9.0.0/24"],
    ],
    ["has()", `has(node.labels.pods) ? cidr(node.labels.pods) : cidr("10.9.0.0/24")`, ["10.9.0.0/24"]],
    [
      "an interface that is not there",
      `"eth9" in interfaces ? interfaces["eth9"] : interfaces["eth1"].filter(p, p.ip().family() == 4)`,
      ["10.3.0.0/16"],
    ],
    [
      "by name of the node",
      `node.name.startsWith("worker-") ? cidr("10.1.0.0/24") : cidr("10.2.0.0/24")`,
      ["10.1.0.0/24"],
    ],
    [
      "host bits are cleared",
      `[cidr("10.1.2.3/16"), cidr("2001:DB8:0:0::1/64")]`,
      ["10.1.0.0/16", "2001:db8::/64"],
    ],
    ["the same prefix twice", `[cidr("10.1.0.1/24"), cidr("10.1.0.2/24")]`, ["10.1.0.0/24"]],
    ["nothing", `[]`, []],
    ["a comment", `// all of it\ncidr("10.1.0.0/16")`, ["10.1.0.0/16"]],
    ["the type known only when it runs", `[dyn(cidr("10.1.0.0/16"))]`, ["10.1.0.0/16"]],
    [
      "interfaces are in order of their names",
      `interfaces.filter(name, name.startsWith("eth")).map(name, interfaces[name][0])`,
      ["192.0.2.0/24", "10.3.0.0/16"],
    ],
  ];
  test.each(cases)("%s", (_, source, expected) => expect(evaluate(source)).toEqual(expected));
});

describe("errors when it is compiled", () => {
  const cases: [source: string, message: string][] = [
    [``, "line 1, column 1: syntax error: Unexpected token: the end of the expression"],
    [`interfaces["eth0"`, "line 1, column 18: syntax error: Expected ']', got the end of the expression"],
    [`cidr("10.0.0.0/8"`, "line 1, column 18: syntax error: Expected ')', got the end of the expression"],
    [`interfaces["eth0"] +* []`, "line 1, column 21 (*): syntax error: Unexpected token: '*'"],
    [`cidr("10.0.0.0/8`, 'line 1, column 6 ("10.0.0.0/8): Unterminated string'],
    [
      `cidr("::/0")\n  .subnet(80,\n   index)`,
      "line 3, column 4 (index): unknown variable index; the variables are interfaces and node",
    ],
    [
      `node.lables["x"] == "" ? [] : []`,
      "line 1, column 6 (lables): node has no lables; it has name, labels and annotations",
    ],
    [
      `cidrs("10.0.0.0/8")`,
      `line 1, column 1 (cidrs("10.0.0.0/8")): there is no function cidrs; beside CEL's own there are cidr, ip, ip.isCanonical, isCIDR and isIP`,
    ],
    [
      `interfaces["eth0"].map(p, p.subnets(80, 1))`,
      "line 1, column 27 (p.subnets(80, 1)): type cidr has no function subnets; it has containsCIDR, containsIP, ip, masked, prefixLength, subnet",
    ],
    [
      `ip.canonical("::1") ? [] : []`,
      `line 1, column 1 (ip.canonical("::1")): there is no function ip.canonical, only ip.isCanonical`,
    ],
    [`cidr(10)`, "line 1, column 1 (cidr(10)): cidr(int) does not fit; there is cidr(string): cidr"],
    [
      `interfaces["eth0"][0].subnet("80", 1)`,
      `line 1, column 1 (interfaces["eth0"][0].subnet("80", 1)): cidr.subnet(string, int) does not fit; there is cidr.subnet(int, int): cidr`,
    ],
    [
      `interfaces["eth0"].subnet(80, 1)`,
      `line 1, column 1 (interfaces["eth0"].subnet(80, 1)): list.subnet(int, int) does not fit; there is cidr.subnet(int, int): cidr`,
    ],
    [
      `interfaces["eth0"][0].containsIP(4) ? [] : []`,
      `line 1, column 1 (interfaces["eth0"][0].containsIP(4)): cidr.containsIP(int) does not fit; there is cidr.containsIP(ip): bool, cidr.containsIP(string): bool`,
    ],
    [
      `interfaces["eth0"].filter(p, p.prefixLength)`,
      "line 1, column 32 (prefixLength): type cidr has no field prefixLength; functions are called as prefixLength()",
    ],
    [
      `interfaces["eth0"].filter(p, p.prefixLength())`,
      "line 1, column 30 (p.prefixLength()): filter(var, predicate) predicate must return bool, got 'int'",
    ],
    [`interfaces[0]`, "line 1, column 12 (0): the key must be of type string, not int"],
    [
      `cidr("::/0") == ip("::") ? [] : []`,
      `line 1, column 1 (cidr("::/0") == ip("::")): no such overload: cidr == ip`,
    ],
    [
      `[cidr("::/0"), ip("::")]`,
      `line 1, column 16 (ip("::")): List elements must have the same type, expected type 'cidr' but found 'ip'`,
    ],
    [
      `true ? cidr("::/0") : interfaces["eth0"]`,
      `line 1, column 1 (true ? cidr("::/0") : interfaces["eth0"]): Ternary branches must have the same type, got 'cidr' and 'list(cidr)'`,
    ],
    [
      `"10.0.0.0/8"`,
      "the expression gives string, but must give a cidr or a list(cidr); cidr(…) makes one of a string",
    ],
    [
      `[node.name]`,
      "the expression gives list(string), but must give a cidr or a list(cidr); cidr(…) makes one of a string",
    ],
    [`ip("::1")`, "the expression gives ip, but must give a cidr or a list(cidr)"],
    [`interfaces["eth0"].size()`, "the expression gives int, but must give a cidr or a list(cidr)"],
    [`interfaces`, "the expression gives map(string, list(cidr)), but must give a cidr or a list(cidr)"],
  ];
  test.each(cases)("%s", (source, message) =>
    expect(messageOf(() => compileExpression(source))).toBe(message),
  );
});

describe("errors when it is evaluated", () => {
  const cases: [source: string, message: string][] = [
    [`interfaces["eth9"]`, 'line 1, column 1 (interfaces["eth9"]): interfaces has no key "eth9"'],
    [
      `interfaces["dummy0"][0]`,
      'line 1, column 1 (interfaces["dummy0"][0]): interfaces["dummy0"] is empty, so it has no [0]',
    ],
    [
      `interfaces["eth0"].filter(p, p.prefixLength() == 56)[0].subnet(64, 1)`,
      'line 1, column 1 (interfaces["eth0"].filter(p, p.prefixLength() == 56)[0]): interfaces["eth0"].filter(p, p.prefixLength() == 56) is empty, so it has no [0]',
    ],
    [
      `interfaces["eth0"][3]`,
      'line 1, column 1 (interfaces["eth0"][3]): interfaces["eth0"] has 3 elements, so it has no [3]',
    ],
    [`interfaces["eth0"][-1]`, 'line 1, column 1 (interfaces["eth0"][-1]): the index -1 is negative'],
    [`cidr(node.labels["pods"])`, 'line 1, column 6 (node.labels["pods"]): node.labels has no key "pods"'],
    [
      `cidr("10.0.0.0/8").subnet(16, {"a": 0}[node.labels["topology.kubernetes.io/zone"]])`,
      'line 1, column 31 ({"a": 0}[node.labels["topology.kubernetes.io/zone"]]): {"a": 0} has no key "b"',
    ],
    [
      `cidr("10.0.0.0/8").subnet(16, int(node.labels["empty"]))`,
      'line 1, column 35 (node.labels["empty"]): "" is not a whole number',
    ],
    [
      `cidr("10.0.0.0/8").subnet(16, int(node.labels["binary"]))`,
      'line 1, column 35 (node.labels["binary"]): "0b1" is not a whole number',
    ],
    [
      `cidr("10.0.0.9/8").subnet(16, 256)`,
      'line 1, column 1 (cidr("10.0.0.9/8").subnet(16, 256)): 10.0.0.0/8.subnet(16, 256): the index must be from 0 to 255',
    ],
    [
      `cidr("fd00::/64").subnet(80, -1)`,
      'line 1, column 1 (cidr("fd00::/64").subnet(80, -1)): fd00::/64.subnet(80, -1): the index must be from 0 to 65535',
    ],
    [
      `cidr("10.0.0.0/8").subnet(8, 1)`,
      'line 1, column 1 (cidr("10.0.0.0/8").subnet(8, 1)): 10.0.0.0/8.subnet(8, 1): the index must be 0',
    ],
    [
      `cidr("fd00::/64").subnet(56, 0)`,
      'line 1, column 1 (cidr("fd00::/64").subnet(56, 0)): fd00::/64.subnet(56, 0): a subnet cannot be shorter than the prefix, /64',
    ],
    [
      `cidr("fd00::/64").subnet(129, 0)`,
      'line 1, column 1 (cidr("fd00::/64").subnet(129, 0)): fd00::/64.subnet(129, 0): an IPv6 subnet cannot be longer than /128',
    ],
    [
      `interfaces["eth0"].map(p, p.subnet(80, 1))`,
      "line 1, column 27 (p.subnet(80, 1)): 192.0.2.0/24.subnet(80, 1): an IPv4 subnet cannot be longer than /32",
    ],
    [
      `cidr(node.annotations["example.com/none"])`,
      'line 1, column 1 (cidr(node.annotations["example.com/none"])): "?" is not a CIDR such as "10.1.0.0/16" or "2001:db8::/64"',
    ],
    [
      `cidr("10.0.0.0/8").containsIP("::ffff:10.0.0.1") ? [] : []`,
      'line 1, column 1 (cidr("10.0.0.0/8").containsIP("::ffff:10.0.0.1")): "::ffff:10.0.0.1" is not an IP address',
    ],
    [`1 / 0 == 1 ? [] : []`, "line 1, column 1 (1 / 0): division by zero"],
    [`dyn("10.0.0.0/8")`, 'the expression gave "10.0.0.0/8", but must give a cidr or a list(cidr)'],
    [`[dyn(1)]`, "the expression gave 1 in its list, but must give a cidr or a list(cidr)"],
    [`dyn(interfaces)`, "the expression gave something else, but must give a cidr or a list(cidr)"],
  ];
  const interfaces =
    "; the interfaces were lo (127.0.0.1/8, ::1/128), eth0 (192.0.2.5/24, 2001:db8:1::5/64, fe80::5/64), eth1 (10.3.0.7/16, fd00:3::7/48), dummy0 (without prefix)";
  test.each(cases)("%s", (source, message) => {
    const expression = compileExpression(source);
    expect(messageOf(() => expression.evaluate(input))).toBe(message + interfaces);
  });

  test("without an interface", () => {
    const expression = compileExpression(`interfaces["eth0"]`);
    expect(messageOf(() => expression.evaluate({ ...input, interfaces: {} }))).toEndWith(
      "; the interfaces were none",
    );
  });

  test("with very many interfaces the message stays short", () => {
    const many = Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`veth${i}`, [`fe80::${i}/64`]]));
    const message = messageOf(() =>
      compileExpression(`interfaces["eth0"]`).evaluate({ ...input, interfaces: many }),
    );
    expect(message.length).toBeLessThan(700);
  });
});

describe("an expression ends", () => {
  const list = `[${Array.from({ length: 32 }, (_, i) => i)}]`;
  const nested = (call: string) => `${`${list}.${call}`.repeat(8)}true${")".repeat(8)}`;
  /** A value that is joined to itself 40 times over. */
  const doubled = (first: string) =>
    `${Array.from({ length: 40 }, (_, i) => `cel.bind(v, ${i === 0 ? first : "v"} + ${i === 0 ? first : "v"}, `).join("")}v.size() > 0${")".repeat(40)}`;
  const cases: [title: string, condition: string][] = [
    ["nested all", nested("all(x, ")],
    ["nested exists, with an error taken for false", `${nested("exists(x, !")} || true`],
    ["nested map", `${nested("map(x, ")}.size() > 0`],
    ["a list doubled", doubled(`["x"]`)],
    ["a string doubled", doubled(`"x"`)],
  ];
  test.each(cases)("%s", (_, condition) => {
    const expression = compileExpression(`${condition} ? [] : []`);
    expect(messageOf(() => expression.evaluate(input))).toContain(
      "the expression takes more than 1000000 steps",
    );
  });

  test("a large one is no trouble", () => {
    const eth0 = Array.from({ length: 300 }, (_, i) => `fd00:${i + 1}::1/64`);
    const expression = compileExpression(
      `interfaces["eth0"].filter(p, interfaces["eth0"].filter(q, q.containsIP(p.ip())).size() == 1)`,
    );
    expect(expression.evaluate({ ...input, interfaces: { eth0 } })).toHaveLength(300);
  });

  test("again and again, with other values", () => {
    const expression = compileExpression(`interfaces["eth0"].map(p, p.subnet(80, 1))`);
    for (let i = 1; i < 2000; i++)
      expect(expression.evaluate({ ...input, interfaces: { eth0: [`fd00:${i}::1/64`] } })).toEqual([
        `fd00:${i}:0:0:1::/80`,
      ]);
  });
});

test("whatever is written, the error is about the expression", () => {
  const pieces = [
    ..."()[]{}.,:?+-*/!&|=<>\"'\\ \n0a",
    "interfaces",
    '["eth0"]',
    "node",
    ".labels",
    ".name",
    "cidr(",
    "ip(",
    "p",
    "64",
  ];
  pieces.push(
    `"10.0.0.0/8"`,
    ".filter(p, ",
    ".map(p, ",
    ".subnet(80, 1)",
    "p.ip()",
    "true",
    "null",
    "[0]",
    "has(",
    " in ",
    "dyn(",
    "int(",
  );
  const sources = fc.array(fc.constantFrom(...pieces), { maxLength: 12 }).map((parts) => parts.join(""));
  fc.assert(
    fc.property(sources, (source) => {
      try {
        compileExpression(source).evaluate(input);
      } catch (error) {
        const { cause } = error as { cause?: Error };
        // Without a cause it is a mistake made while explaining one.
        expect(cause).toBeInstanceOf(Error);
        expect([TypeError, RangeError, ReferenceError]).not.toContain(cause?.constructor);
      }
    }),
    { numRuns: 5_000 },
  );
}, 30_000);
