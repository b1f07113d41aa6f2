import { describe, expect, test } from "bun:test";
import type { Route } from "../plan/desired.ts";
import routes4 from "./recorded/ip-4-route.txt";
import rules4 from "./recorded/ip-4-rule.txt";
import routes6 from "./recorded/ip-6-route.txt";
import rules6 from "./recorded/ip-6-rule.txt";
import { diffRoutes, type ObservedRoutes, parseRoutes, settledRoutes } from "./routes.ts";
import type { Command } from "./run.ts";

const unreachable = (prefix: string): Route => ({ type: "unreachable", prefix });
const tunnel = (prefix: string, table: "main" | "24601" = "main"): Route => ({
  type: "tunnel",
  prefix,
  table,
});
const underlay = (prefix: string, dev: string, via?: string): Route => ({
  type: "underlay",
  prefix,
  via,
  dev,
});

function observed(tweak: Partial<ObservedRoutes> = {}): ObservedRoutes {
  return {
    own: [],
    strange: [],
    underlay: [],
    ruleFamilies: ["ipv4", "ipv6"],
    strangeRules: [],
    ...tweak,
  };
}

/** Commands as one would type them; of a batch only its lines. */
function lines(commands: readonly Command[]): string[] {
  return commands.flatMap(({ argv, stdin }) => stdin?.trimEnd().split("\n") ?? [argv.join(" ")]);
}

describe("what a real kernel listed", () => {
  const parsed = parseRoutes("wigglenet", { ipv4: routes4, ipv6: routes6 }, { ipv4: rules4, ipv6: rules6 });

  test("own routes", () => {
    expect(parsed.own).toEqual([
      tunnel("192.0.2.7/32", "24601"),
      unreachable("10.1.0.0/24"),
      tunnel("10.1.1.0/24"),
      unreachable("10.1.1.0/24"),
      underlay("10.1.1.9/32", "eth0", "192.0.2.1"),
      tunnel("2001:db8:1::7/128", "24601"),
      underlay("2001:db8:1:0:ffff::9/128", "eth0"),
      underlay("2001:db8:7::9/128", "eth0", "fe80::1"),
      unreachable("fd00:1::/64"),
      tunnel("fd00:1:0:1::/64"),
      unreachable("fd00:1:0:1::/64"),
    ]);
  });

  test("routes with our protocol that no plan asks for", () => {
    expect(parsed.strange).toEqual([
      "10.6.0.0/24 dev eth1 table 100 proto 246",
      "unreachable 10.5.0.0/24 table main metric 77 proto 246",
      "blackhole 10.66.0.0/24 table main proto 246",
      "fd00:6::/64 dev eth1 table main metric 5 proto 246",
    ]);
  });

  test("the underlay: default routes, several next hops, an IPv6 gateway; no table but main, nothing unreachable", () => {
    const ways = parsed.underlay.map(
      ({ prefix, via, dev, metric }) => `${prefix} ${via ?? "link"} ${dev} ${metric}`,
    );
    expect(ways.filter((way) => !way.startsWith("fe80::/64"))).toEqual([
      "0.0.0.0/0 192.0.2.1 eth0 0",
      "10.3.0.0/16 link eth1 0",
      "10.8.0.0/16 fe80::1 eth0 0",
      "10.9.0.0/16 192.0.2.2 eth0 0",
      "192.0.2.0/24 link eth0 0",
      "2001:db8:1::/64 link eth0 256",
      "2001:db8:9::/48 2001:db8:1::2 eth0 1024",
      "fd00:1::1/128 link wigglenet 256",
      "fd00:3::/64 link eth1 256",
      "::/0 fe80::1 eth0 1024",
    ]);
  });

  test("rules: ours in both families, and those with our protocol that are not", () => {
    expect(parsed.ruleFamilies).toEqual(["ipv4", "ipv6"]);
    expect(parsed.strangeRules).toEqual([
      "-4 priority 100 fwmark 0x1000000/0x1000000 lookup 24601 protocol 246",
      "-4 priority 101 lookup 100 protocol 246",
      "-4 priority 103 fwmark 0x2000000/0x2000000 protocol 246",
      "-6 priority 24601 fwmark 0x1000000/0x1000000 lookup 24602 protocol 246",
    ]);
  });

  test("a kernel without a family lists nothing", () => {
    const none = { ipv4: "", ipv6: "[]" };
    expect(parseRoutes("wigglenet", none, none)).toEqual(observed({ ruleFamilies: [] }));
  });

  const rule = `"priority":24601,"src":"all","fwmark":"0x1000000","fwmask":"0x1000000","table":"24601"`;
  test.each<[title: string, rule: string, ours: boolean]>([
    ["ours", `{${rule},"protocol":"246"}`, true],
    ["ours, by another hand", `{${rule},"protocol":"boot"}`, true],
    [
      "ours, from an ip that leaves out a mask of all ones",
      `{${rule.replace(`"fwmask":"0x1000000",`, "")}}`,
      true,
    ],
    ["inverted", `{${rule.replace(`"src"`, `"not":null,"src"`)},"protocol":"246"}`, false],
    ["for one source", `{${rule.replace(`"all"`, `"10.0.0.0","srclen":8`)},"protocol":"246"}`, false],
    ["for one link", `{${rule},"iif":"eth0","protocol":"246"}`, false],
    ["without default routes", `{${rule},"suppress_prefixlen":0,"protocol":"246"}`, false],
    [
      "another mask",
      `{${rule.replace(`"fwmask":"0x1000000"`, `"fwmask":"0xff000000"`)},"protocol":"246"}`,
      false,
    ],
  ])("a rule in our place: %s", (_, text, ours) => {
    const { ruleFamilies } = parseRoutes(
      "wigglenet",
      { ipv4: "", ipv6: "" },
      { ipv4: `[${text}]`, ipv6: "" },
    );
    expect(ruleFamilies).toEqual(ours ? ["ipv4"] : []);
  });
});

describe("desired and observed → commands", () => {
  const guarded = [unreachable("10.1.1.0/24"), tunnel("10.1.1.0/24")];
  type Case = [
    title: string,
    desired: Route[],
    observed: Partial<ObservedRoutes>,
    add: string[],
    remove: string[],
  ];
  test.each<Case>([
    ["all there", guarded, { own: guarded }, [], []],
    ["in another order", guarded, { own: [...guarded].reverse() }, [], []],
    [
      "from nothing: what catches first",
      [
        tunnel("10.1.1.0/24"),
        unreachable("10.1.2.0/24"),
        tunnel("192.0.2.1/32", "24601"),
        unreachable("10.1.1.0/24"),
      ],
      {},
      [
        "route replace unreachable 10.1.1.0/24 metric 4096 proto 246",
        "route replace unreachable 10.1.2.0/24 metric 4096 proto 246",
        "route replace 10.1.1.0/24 dev wigglenet table main proto 246",
        "route replace 192.0.2.1/32 dev wigglenet table 24601 proto 246",
      ],
      [],
    ],
    [
      "all goes: what catches last",
      [],
      { own: guarded },
      [],
      [
        "route delete 10.1.1.0/24 dev wigglenet table main proto 246",
        "route delete unreachable 10.1.1.0/24 metric 4096 proto 246",
      ],
    ],
    // A prefix that moves between tables or kinds is another route.
    [
      "the same prefix in the other table",
      [tunnel("192.0.2.1/32", "24601")],
      { own: [tunnel("192.0.2.1/32")] },
      ["route replace 192.0.2.1/32 dev wigglenet table 24601 proto 246"],
      ["route delete 192.0.2.1/32 dev wigglenet table main proto 246"],
    ],
    [
      "another way to the same prefix: replaced, and not deleted afterwards",
      [underlay("10.1.1.9/32", "eth1", "192.0.2.2")],
      { own: [underlay("10.1.1.9/32", "eth0", "192.0.2.1")] },
      ["route replace 10.1.1.9/32 via 192.0.2.2 dev eth1 proto 246 onlink"],
      [],
    ],
    [
      "a tunnel route instead of one of the underlay",
      [tunnel("10.1.1.9/32")],
      { own: [underlay("10.1.1.9/32", "eth0", "192.0.2.1")] },
      ["route replace 10.1.1.9/32 dev wigglenet table main proto 246"],
      [],
    ],
    [
      "on a link",
      [underlay("10.1.1.9/32", "eth0")],
      {},
      ["route replace 10.1.1.9/32 dev eth0 proto 246"],
      [],
    ],
    [
      "IPv4 by an IPv6 gateway (RFC 5549)",
      [underlay("10.8.0.9/32", "eth0", "fe80::1")],
      {},
      ["route replace 10.8.0.9/32 via inet6 fe80::1 dev eth0 proto 246 onlink"],
      [],
    ],
    [
      "what is strange goes",
      guarded,
      { own: guarded, strange: ["blackhole 10.66.0.0/24 table main proto 246"] },
      [],
      ["route delete blackhole 10.66.0.0/24 table main proto 246"],
    ],
    [
      "rules that systemd-networkd took away (systemd#19106)",
      [],
      { ruleFamilies: [] },
      [
        "ip -4 rule add fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
        "ip -6 rule add fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
      ],
      [],
    ],
    [
      "a strange rule goes last; one in our place first, as the kernel takes it for ours",
      [],
      {
        ruleFamilies: ["ipv6"],
        strangeRules: [
          "-4 priority 9 lookup 100 protocol 246",
          "-4 priority 24601 fwmark 0x1 lookup 9 protocol 246",
        ],
      },
      [
        "ip -4 rule delete priority 24601 fwmark 0x1 lookup 9 protocol 246",
        "ip -4 rule add fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
      ],
      ["ip -4 rule delete priority 9 lookup 100 protocol 246"],
    ],
  ])("%s", (_, routes, tweak, add, remove) => {
    const changes = diffRoutes("wigglenet", { routes, ruleFamilies: ["ipv4", "ipv6"] }, observed(tweak));
    expect([lines(changes.add), lines(changes.remove)]).toEqual([add, remove]);
  });

  test("without a tunnel the rules go before the routes", () => {
    const changes = diffRoutes(
      "wigglenet",
      { routes: [], ruleFamilies: [] },
      observed({ own: [tunnel("192.0.2.1/32", "24601")] }),
    );
    expect(lines(changes.remove)).toEqual([
      "ip -4 rule delete fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
      "ip -6 rule delete fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
      "route delete 192.0.2.1/32 dev wigglenet table 24601 proto 246",
    ]);
  });

  test("5,000 routes are one process", () => {
    const routes = Array.from({ length: 5_000 }, (_, n) => tunnel(`10.${n >> 8}.${n & 255}.0/24`));
    const { add, remove } = diffRoutes("wigglenet", { routes, ruleFamilies: ["ipv4", "ipv6"] }, observed());
    expect([add.length, remove.length]).toEqual([1, 0]);
  });

  test("what is settled needs no further command, and of the underlay keeps what was observed", () => {
    const desired = { routes: guarded, ruleFamilies: ["ipv4"] as const };
    const before = observed({
      own: [tunnel("10.9.0.0/24")],
      strange: ["10.6.0.0/24 dev eth1 table 100 proto 246"],
      underlay: [{ prefix: "0.0.0.0/0", via: "192.0.2.1", dev: "eth0", metric: 0 }],
      strangeRules: ["-4 priority 9 lookup 100 protocol 246"],
    });
    const after = settledRoutes(desired, before);
    expect(diffRoutes("wigglenet", desired, after)).toEqual({ add: [], remove: [] });
    expect(after.underlay).toEqual(before.underlay);
  });
});
