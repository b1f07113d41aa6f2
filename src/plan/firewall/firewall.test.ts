import { describe, expect, test } from "bun:test";
import { type Family, families } from "../../net/address.ts";
import { type FirewallInput, firewall } from "../fixtures/firewall.ts";
import { specification } from "./fixtures/specification.ts";
import { type Conditions, type Firewall, type Hook, mistakes, type Rule } from "./model.ts";

const none = { ipv4: false, ipv6: false };

/** A node of a dual-stack cluster with a tunnel; masquerade and filter are off. */
function input(tweak: Partial<FirewallInput> = {}): FirewallInput {
  return {
    link: "wigglenet",
    ownPodCidrs: ["10.1.0.0/24", "fd00:1::/64"],
    remotePodCidrs: ["10.1.1.0/24", "fd00:1:0:1::/64"],
    hosts: [],
    nodes: ["192.0.2.1", "2001:db8::1"],
    native: [],
    unencrypted: [],
    tunnelled: ["ipv4", "ipv6"],
    masquerade: none,
    masqueradeRandomFully: true,
    nonMasqueradeCidrs: [],
    filter: none,
    flowtable: undefined,
    ...tweak,
  };
}

/** What the chains mean, as a plain list of rules; that they do is tested in `chains.test.ts`. */
function specified(tweak: Partial<FirewallInput> = {}): Pick<Firewall, "chains"> {
  const settings = input(tweak);
  return { chains: specification({ ...settings, packetsOver: settings.flowtable?.packets }) };
}

/** All rules, each with the name of its chain. */
function rulesOf({ chains }: Pick<Firewall, "chains">): (Rule & { hook: string })[] {
  return chains.flatMap(({ name, rules }) => rules.map((rule) => ({ hook: name, ...rule })));
}

/** A rule in a line: `forward: to @own, from @remote: pass`. */
function line({ hook, match, verdict }: Rule & { hook: string }): string {
  const conditions = Object.entries(match).map(([name, value]) =>
    value === true ? name : `${name} ${value}`,
  );
  return `${hook}: ${conditions.join(", ")}: ${verdict}`;
}

function linesOf(firewall: Pick<Firewall, "chains">, family: Family, hook?: Hook): string[] {
  return rulesOf(firewall)
    .filter((rule) => rule.family === family && (hook === undefined || rule.hook === hook))
    .map(line);
}

test("a tunnel without masquerade and filter: marks, and nothing in the clear", () => {
  expect(linesOf(specified(), "ipv4").join("\n")).toMatchInlineSnapshot(`
    "prerouting: in veth+, notFrom @own, spoofed: drop
    prerouting: from @own, direction original, repliesTo @own: mark
    prerouting: from @own, direction reply, destinationTranslated false: mark
    input: in lo: pass
    input: from @own, notFrom @hosts, notIn veth+: drop
    input: from @unencrypted: pass
    input: from @remote, notFrom @hosts, notIn wigglenet: drop
    forward: from @remote, notFrom @hosts,@unencrypted, notIn wigglenet: drop
    forward: from @own, notFrom @hosts, notIn veth+: drop
    forward: in wigglenet, notOut wigglenet, notTo @own, destinationTranslated false, repliesNotTo @own: drop
    forward: in wigglenet, notOut wigglenet, notTo @own, state invalid: drop
    forward: in veth+, out wigglenet, connectionMarked false, state direct: mark-connection
    forward: in wigglenet, out veth+, connectionMarked false, state direct: mark-connection
    forward: in veth+, notOut wigglenet, connectionMarked, notTo @own, direction original, repliesTo @own: drop
    forward: in veth+, notOut wigglenet, connectionMarked, notTo @own, direction reply, destinationTranslated false: drop
    postrouting: to @remote, notTo @hosts, notOut wigglenet: drop
    postrouting: notOut wigglenet, from @own, to @nodes, direction reply, destinationTranslated: pass
    postrouting: notOut wigglenet, from @own, to @nodes, direction original, repliesNotTo @own: count
    postrouting: from @own, notFrom @hosts, to @nodes, notOut wigglenet: drop
    srcnat: destinationTranslated, from @remote, notTo @own: masquerade-random"
  `);
});

test("IPv6 differs from it by neighbour discovery alone", () => {
  const all = specified();
  const ipv4 = linesOf(all, "ipv4");
  const ipv6 = linesOf(all, "ipv6");
  expect(ipv6.filter((each) => !ipv4.includes(each))).toEqual([
    "prerouting: in veth+, from fe80::/10: pass",
    "prerouting: in veth+, from ::/128: pass",
    "input: icmpv6 133,134,135,136,137: pass",
  ]);
  expect(ipv6.filter((each) => ipv4.includes(each))).toEqual(ipv4);
  // It is let in before anything is dropped there.
  const input6 = linesOf(all, "ipv6", "input");
  expect(input6.findIndex((each) => each.endsWith("drop"))).toBe(
    input6.indexOf("input: icmpv6 133,134,135,136,137: pass") + 1,
  );
});

test("a tunnel of another name", () => {
  const text = JSON.stringify(firewall(input({ link: "wg7", filter: { ipv4: true, ipv6: true } })));
  expect(text).toContain(`"wg7"`);
  expect(text).not.toContain(`"wigglenet"`);
});

describe("what the filter adds, at forward", () => {
  const added = (family: Family, tweak: Partial<FirewallInput> = {}) => {
    const before = linesOf(specified(tweak), family, "forward");
    const after = linesOf(specified({ ...tweak, filter: { ...none, [family]: true } }), family, "forward");
    // A guard drops before a filter lets pass.
    expect(after.slice(0, before.length)).toEqual(before);
    return after.slice(before.length).join("\n");
  };

  test("IPv4", () => {
    expect(added("ipv4")).toMatchInlineSnapshot(`
      "forward: to @own, state established: pass
      forward: to @own, destinationTranslated: pass
      forward: to @own, in veth+: pass
      forward: to @own, in wigglenet: pass
      forward: to @own: drop"
    `);
  });

  test("IPv6: the errors of RFC 4890, and echo", () => {
    expect(added("ipv6")).toMatchInlineSnapshot(`
      "forward: to @own, state established: pass
      forward: to @own, destinationTranslated: pass
      forward: to @own, in veth+: pass
      forward: to @own, icmpv6 1,2,3,4,128,129: pass
      forward: to @own, in wigglenet: pass
      forward: to @own: drop"
    `);
  });

  test("routed natively: nodes and their pods by address", () => {
    expect(added("ipv4", { tunnelled: ["ipv6"], native: ["192.0.2.1"] })).toMatchInlineSnapshot(`
      "forward: to @own, state established: pass
      forward: to @own, destinationTranslated: pass
      forward: to @own, in veth+: pass
      forward: to @own, from @own: pass
      forward: to @own, from @remote: pass
      forward: to @own, from @native: pass
      forward: to @own: drop"
    `);
  });

  test("of one family, and the other has none", () => {
    expect(linesOf(specified({ filter: { ...none, ipv6: true } }), "ipv4")).toEqual(
      linesOf(specified(), "ipv4"),
    );
  });
});

const notTo = "notTo @own,@remote,@nodes,@keep";
/** Of own pods to the outside, of which some may lie inside pod CIDRs. */
const outward = [
  `from @own, notFrom @hosts, ${notTo}`,
  "from @own, notFrom @hosts, to @hosts, notTo @nodes,@keep",
];
const masqueraded = (verdict: string) => outward.map((match) => `srcnat: ${match}: ${verdict}`);
test.each<[title: string, tweak: Partial<FirewallInput>, ipv4: string[], ipv6: string[]]>([
  ["off", {}, [], []],
  [
    "both",
    { masquerade: { ipv4: true, ipv6: true } },
    masqueraded("masquerade-random"),
    masqueraded("masquerade-random"),
  ],
  [
    "IPv4 alone, ports kept where they are free",
    { masquerade: { ipv4: true, ipv6: false }, masqueradeRandomFully: false },
    masqueraded("masquerade"),
    [],
  ],
  [
    "routed natively",
    { tunnelled: [], masquerade: { ipv4: false, ipv6: true } },
    [],
    masqueraded("masquerade-random"),
  ],
])("masquerade: %s", (_, tweak, ipv4, ipv6) => {
  const all = specified(tweak);
  const own = (family: Family) => linesOf(all, family, "srcnat").filter((each) => each.includes("from @own"));
  expect([own("ipv4"), own("ipv6")]).toEqual([ipv4, ipv6]);
});

describe("what was in the tunnel", () => {
  const both: Family[] = ["ipv4", "ipv6"];
  const masquerade = { ipv4: true, ipv6: true };
  test.each<[title: string, tweak: Partial<FirewallInput>, marked: Family[], masqueraded: Family[]]>([
    ["both families, masqueraded", { masquerade }, both, both],
    ["none is masqueraded", {}, both, []],
    ["IPv6 alone is masqueraded", { masquerade: { ipv4: false, ipv6: true } }, both, ["ipv6"]],
    ["one is routed natively", { masquerade, tunnelled: ["ipv6"] }, ["ipv6"], ["ipv6"]],
    ["both are routed natively", { masquerade, tunnelled: [] }, [], []],
  ])("stays there, or is dropped: %s", (_, tweak, marked, masqueraded) => {
    const all = specified({ ...tweak, flowtable: { devices: [], packets: 1 } });
    const outside = "in veth+, notOut wigglenet, connectionMarked, notTo @own";
    for (const family of families) {
      const forward = linesOf(all, family, "forward");
      const rules = forward.filter((each) => /connection|invalid|untranslated/.test(each));
      expect(rules).toEqual([
        ...(marked.includes(family)
          ? [
              "forward: in wigglenet, notOut wigglenet, notTo @own, state invalid: drop",
              "forward: in veth+, out wigglenet, connectionMarked false, state direct: mark-connection",
              "forward: in wigglenet, out veth+, connectionMarked false, state direct: mark-connection",
              `forward: ${outside}, direction original, repliesTo @own: drop`,
              `forward: ${outside}, direction reply, destinationTranslated false: drop`,
            ]
          : []),
        ...(masqueraded.includes(family)
          ? ["state invalid", "direction original, untranslated"].flatMap((state) =>
              outward.map((match) => `forward: notOut wigglenet, ${match}, ${state}: drop`),
            )
          : []),
      ]);
      // What is offloaded comes by no rule any more.
      expect(forward.findLastIndex((each) => rules.includes(each))).toBeLessThan(
        forward.findIndex((each) => each.endsWith("offload")),
      );
    }
  });
});

test.each<[title: string, tweak: Partial<FirewallInput>, expected: Record<Family, string[]>]>([
  [
    "both tunnelled",
    {},
    {
      ipv4: ["count", "mark", "mark-connection", "masquerade-random", "drop", "pass"],
      ipv6: ["count", "mark", "mark-connection", "masquerade-random", "drop", "pass"],
    },
  ],
  [
    "IPv6 alone",
    { tunnelled: ["ipv6"] },
    { ipv4: [], ipv6: ["count", "mark", "mark-connection", "masquerade-random", "drop", "pass"] },
  ],
  ["both routed natively, or FIREWALL_ONLY", { tunnelled: [] }, { ipv4: [], ipv6: [] }],
  [
    "routed natively, with a filter",
    { tunnelled: [], filter: { ipv4: true, ipv6: true } },
    { ipv4: ["drop", "pass"], ipv6: ["drop", "pass"] },
  ],
  [
    "routed natively, with masquerade",
    { tunnelled: [], masquerade: { ipv4: true, ipv6: false } },
    { ipv4: ["masquerade-random"], ipv6: [] },
  ],
])("what is done with packets: %s", (_, tweak, expected) => {
  const rules = rulesOf(specified(tweak));
  for (const family of families) {
    const verdicts = rules.filter((rule) => rule.family === family).map((rule) => rule.verdict as string);
    expect([...new Set(verdicts)].sort()).toEqual([...expected[family]].sort());
  }
});

test("offload: own pods' flows, into the tunnel or to where it does not lead", () => {
  const flowtable = { devices: ["veth1", "eth0"], packets: 128 };
  const tunnelled = specified({ flowtable });
  expect(firewall(input({ flowtable })).devices).toEqual(["eth0", "veth1"]);
  expect(linesOf(tunnelled, "ipv6").filter((line) => line.endsWith("offload"))).toEqual([
    "forward: from @own, state established, packetsOver 128, in veth+, out wigglenet: offload",
    "forward: from @own, state established, packetsOver 128, in veth+, notTo @remote,@nodes: offload",
  ]);
  // After what drops, and before what lets pass: a packet that passes is asked.
  const verdicts = rulesOf(specified({ flowtable, filter: { ipv4: true, ipv6: true } }))
    .filter((rule) => rule.family === "ipv4" && rule.hook === "forward")
    .map((rule) => rule.verdict);
  expect(verdicts.slice(0, 11)).toEqual([
    "drop",
    "drop",
    "drop",
    "drop",
    "mark-connection",
    "mark-connection",
    "drop",
    "drop",
    "offload",
    "offload",
    "pass",
  ]);
  // Where the underlay routes pods, whatever their links are called.
  expect(linesOf(specified({ flowtable, tunnelled: [] }), "ipv4")).toEqual([
    "forward: from @own, state established, packetsOver 128: offload",
  ]);
  expect(firewall(input()).devices).toBeUndefined();
});

describe("sets", () => {
  test("hold what is given, once, IPv4 first, in the order of numbers", () => {
    const { sets } = firewall(
      input({
        nodes: ["2001:db8::2", "192.0.2.10", "192.0.2.9", "192.0.2.10"],
        hosts: ["fd00:1::9", "10.1.1.10", "10.1.1.9", "10.1.1.9"],
        native: ["192.0.2.7", "192.0.2.7"],
        unencrypted: ["fd00:9::/64", "10.9.0.0/24"],
        nonMasqueradeCidrs: ["2001:db8::/32", "172.16.0.0/12"],
      }),
    );
    expect(sets).toEqual({
      own: ["10.1.0.0/24", "fd00:1::/64"],
      remote: ["10.1.1.0/24", "fd00:1:0:1::/64"],
      hosts: ["10.1.1.9", "10.1.1.10", "fd00:1::9"],
      nodes: ["192.0.2.9", "192.0.2.10", "2001:db8::2"],
      native: ["192.0.2.7"],
      unencrypted: ["10.9.0.0/24", "fd00:9::/64"],
      keep: ["172.16.0.0/12", "2001:db8::/32"],
    });
  });

  // The cost of a node that comes is a member of a set.
  test.each<[title: string, tweak: Partial<FirewallInput>]>([
    ["a node joins", { nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] }],
    ["no other node", { nodes: [], remotePodCidrs: [] }],
    ["another pod CIDR of our own", { ownPodCidrs: ["10.7.0.0/24"] }],
    ["a node of the other kind", { unencrypted: ["10.1.1.0/24"] }],
    ["a node inside its own pod CIDR", { hosts: ["fd00:1:0:1::a"] }],
    ["other nodes' addresses", { native: ["192.0.2.1"] }],
    ["prefixes that are not masqueraded", { nonMasqueradeCidrs: ["172.16.0.0/12"] }],
  ])("%s: no rule changes", (_, tweak) => {
    const on = { ipv4: true, ipv6: true };
    const made = (more: Partial<FirewallInput>) => firewall(input({ filter: on, masquerade: on, ...more }));
    expect(made(tweak).chains).toEqual(made({}).chains);
    expect(made(tweak).sets).not.toEqual(made({}).sets);
  });
});

test("a rule names sets, links and ranges of the protocols, never an address of the cluster", () => {
  const on = { ipv4: true, ipv6: true };
  const addresses = ({ from, to, notFrom = [], notTo = [] }: Conditions) => [from, to, ...notFrom, ...notTo];
  const rules = rulesOf(firewall(input({ filter: on, masquerade: on })));
  const named = new Set(rules.flatMap(({ match }) => addresses(match)).filter((each) => each !== undefined));
  expect([...named].filter((each) => !each.startsWith("@")).sort()).toEqual(["::/128", "fe80::/10"]);
});

test("chains and sets that rules name are there, in words that each backend has", () => {
  const settings = [false, true].flatMap((masquerade) =>
    [false, true].flatMap((filter) =>
      ([[], ["ipv6"], ["ipv4", "ipv6"]] as Family[][]).flatMap((tunnelled) =>
        [undefined, { devices: [], packets: 9 }].map((flowtable) => ({
          masquerade: { ipv4: masquerade, ipv6: masquerade },
          filter: { ipv4: filter, ipv6: filter },
          tunnelled,
          flowtable,
        })),
      ),
    ),
  );
  for (const each of settings) expect(mistakes(firewall(input(each)))).toEqual([]);
});
