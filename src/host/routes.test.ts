import { describe, expect, test } from "bun:test";
import type { Route, Rule, Table } from "../plan/overlay/routes.ts";
import type { Command } from "./command.ts";
import link4 from "./recorded/ip-4-link.txt";
import routes4 from "./recorded/ip-4-route.txt";
import link6 from "./recorded/ip-6-link.txt";
import routes6 from "./recorded/ip-6-route.txt";
import { type ObservedRoutes, parseRoutes } from "./routelist.ts";
import { diffRoutes, guardsOf, settledRoutes } from "./routes.ts";
import { settledRules } from "./rules.ts";

const unreachable = (prefix: string, table: Table = "24600"): Route => ({
  type: "unreachable",
  prefix,
  table,
});
const tunnel = (prefix: string, table: Table = "24600"): Route => ({ type: "tunnel", prefix, table });
const except = (prefix: string, table: Table = "24600"): Route => ({ type: "throw", prefix, table });
const rules: Rule[] = [{ family: "ipv4", priority: 2460, text: "from all lookup 24600" }];

function observed(tweak: Partial<ObservedRoutes> = {}): ObservedRoutes {
  return { own: [], strange: [], rules: settledRules(rules, []), ...tweak };
}

/** Commands as one would type them; of a batch only its lines. */
function lines(commands: readonly Command[]): string[] {
  return commands.flatMap(({ argv, stdin }) => stdin?.trimEnd().split("\n") ?? [argv.join(" ")]);
}

describe("what a real kernel listed", () => {
  const ipv4 = parseRoutes("wigglenet", "ipv4", routes4, link4);
  const ipv6 = parseRoutes("wigglenet", "ipv6", routes6, link6);

  test("own routes, those of version 1.0.0 in the main table among them", () => {
    expect([...ipv4.own, ...ipv6.own]).toEqual([
      tunnel("10.1.1.0/24"),
      unreachable("10.1.1.0/24"),
      except("10.1.1.9/32"),
      tunnel("192.0.2.7/32", "24601"),
      unreachable("10.1.0.0/24", "main"),
      tunnel("10.1.1.0/24", "main"),
      unreachable("10.1.1.0/24", "main"),
      except("10.1.1.9/32", "main"),
      except("fd00:1:0:1::9/128"),
      tunnel("fd00:1:0:1::/64"),
      unreachable("fd00:1:0:1::/64"),
      tunnel("2001:db8:1::7/128", "24601"),
      unreachable("fd00:1::/64", "main"),
      except("fd00:1:0:1::9/128", "main"),
      tunnel("fd00:1:0:1::/64", "main"),
      unreachable("fd00:1:0:1::/64", "main"),
    ]);
  });

  test("routes that no plan asks for: with our protocol, and what the Go implementation left on our link", () => {
    expect(ipv4.strange).toEqual([
      "10.6.0.0/24 dev eth0 table 100 proto 246",
      "unreachable 10.5.0.0/24 table main metric 77 proto 246",
      "blackhole 10.66.0.0/24 table main proto 246",
      "10.1.0.1/32 dev wigglenet table main proto 3",
      "10.1.2.0/24 dev wigglenet table main proto 3",
    ]);
    expect(ipv6.strange).toEqual([
      "fd00:6::/64 dev eth0 table 100 metric 1024 proto 246",
      "unreachable fd00:5::/64 table main metric 77 proto 246",
      "blackhole fd00:66::/64 table main metric 1024 proto 246",
      "fd00:1:0:2::/64 dev wigglenet table main metric 1024 proto 3",
    ]);
  });

  test("a kernel without any", () => {
    expect(parseRoutes("wigglenet", "ipv4", "", "[]")).toEqual({ own: [], strange: [] });
  });

  test("keys that a newer ip may have, and names instead of numbers", () => {
    const newer = `[{"type":"unreachable","dst":"10.1.1.0/24","table":"24600","metric":4096,"x":{"y":1},"flags":[]}]`;
    expect(parseRoutes("wigglenet", "ipv4", newer, "").own).toEqual([unreachable("10.1.1.0/24")]);
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
      "from nothing: what is excepted, then what catches, then what leads into the tunnel",
      [
        tunnel("10.1.1.0/24"),
        unreachable("10.1.2.0/24"),
        tunnel("192.0.2.1/32", "24601"),
        unreachable("10.1.1.0/24"),
        unreachable("10.1.0.0/24", "main"),
        except("10.1.1.9/32"),
      ],
      {},
      [
        "route replace throw 10.1.1.9/32 table 24600 proto 246",
        "route replace unreachable 10.1.0.0/24 table main metric 4096 proto 246",
        "route replace unreachable 10.1.1.0/24 table 24600 metric 4096 proto 246",
        "route replace unreachable 10.1.2.0/24 table 24600 metric 4096 proto 246",
        "route replace 10.1.1.0/24 dev wigglenet table 24600 proto 246",
        "route replace 192.0.2.1/32 dev wigglenet table 24601 proto 246",
      ],
      [],
    ],
    [
      "all goes: what catches last",
      [],
      { own: guarded, rules: [] },
      [],
      [
        "route delete 10.1.1.0/24 dev wigglenet table 24600 proto 246",
        "route delete unreachable 10.1.1.0/24 table 24600 metric 4096 proto 246",
      ],
    ],
    [
      "version 1.0.0 had all in the main table: ours come, then those go",
      [...guarded, except("10.1.1.9/32"), unreachable("10.1.0.0/24", "main")],
      {
        own: [
          unreachable("10.1.0.0/24", "main"),
          unreachable("10.1.1.0/24", "main"),
          tunnel("10.1.1.0/24", "main"),
          except("10.1.1.9/32", "main"),
        ],
      },
      [
        "route replace throw 10.1.1.9/32 table 24600 proto 246",
        "route replace unreachable 10.1.1.0/24 table 24600 metric 4096 proto 246",
        "route replace 10.1.1.0/24 dev wigglenet table 24600 proto 246",
      ],
      [
        "route delete 10.1.1.0/24 dev wigglenet table main proto 246",
        "route delete unreachable 10.1.1.0/24 table main metric 4096 proto 246",
        "route delete 10.1.1.9/32 table main proto 246",
      ],
    ],
    [
      "an exception instead of a tunnel route in its place: replaced, and not deleted afterwards",
      [except("10.1.1.9/32")],
      { own: [tunnel("10.1.1.9/32")] },
      ["route replace throw 10.1.1.9/32 table 24600 proto 246"],
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
      "rules come after the routes that they lead to",
      guarded,
      { rules: [] },
      [
        "route replace unreachable 10.1.1.0/24 table 24600 metric 4096 proto 246",
        "route replace 10.1.1.0/24 dev wigglenet table 24600 proto 246",
        "rule add from all lookup 24600 priority 2460 protocol 246",
      ],
      [],
    ],
  ])("%s", (_, routes, tweak, add, remove) => {
    const changes = diffRoutes(
      "wigglenet",
      { routes, rules: routes.length > 0 ? rules : [] },
      observed(tweak),
    );
    expect([lines(changes.add), lines(changes.remove)]).toEqual([add, remove]);
  });

  test("without a tunnel the rules go before the routes", () => {
    const changes = diffRoutes(
      "wigglenet",
      { routes: [], rules: [] },
      observed({ own: [tunnel("192.0.2.1/32", "24601")] }),
    );
    expect(lines(changes.remove)).toEqual([
      "rule delete from all lookup 24600 priority 2460 protocol 246",
      "route delete 192.0.2.1/32 dev wigglenet table 24601 proto 246",
    ]);
  });

  test.each<[title: string, tweak: Partial<ObservedRoutes>, expected: boolean]>([
    ["ours alone", { own: [...guarded, unreachable("10.1.1.0/24", "main")] }, false],
    ["version 1.0.0", { own: [tunnel("10.1.1.0/24", "main")] }, true],
    ["the Go implementation", { strange: ["10.1.1.0/24 dev wigglenet table main proto 3"] }, true],
    ["by another link", { strange: ["10.1.1.0/24 dev eth0 table main proto 246"] }, false],
  ])("without peers the guards do not hide what the main table has: %s", (_, tweak, hidden) => {
    const desired = { routes: [...guarded, except("10.1.1.9/32")], rules };
    expect(guardsOf("wigglenet", desired, observed(tweak))).toEqual({
      routes: [unreachable("10.1.1.0/24"), except("10.1.1.9/32")],
      rules: hidden ? [] : rules,
    });
  });

  test("5,000 routes are one process", () => {
    const routes = Array.from({ length: 5_000 }, (_, n) => tunnel(`10.${n >> 8}.${n & 255}.0/24`));
    const { add, remove } = diffRoutes("wigglenet", { routes, rules }, observed());
    expect([add.length, remove.length]).toEqual([1, 0]);
  });

  test("what is settled needs no further command", () => {
    const desired = { routes: guarded, rules };
    const before = observed({
      own: [tunnel("10.9.0.0/24")],
      strange: ["10.6.0.0/24 dev eth1 table 100 proto 246"],
      rules: [],
    });
    expect(diffRoutes("wigglenet", desired, settledRoutes(desired, before))).toEqual({ add: [], remove: [] });
  });
});
