import { describe, expect, test } from "bun:test";
import type { Rule } from "../plan/overlay/routes.ts";
import type { Command } from "./command.ts";
import rules4 from "./recorded/ip-4-rule.txt";
import rules6 from "./recorded/ip-6-rule.txt";
import { diffRules, type ObservedRule, parseRules, settledRules } from "./rules.ts";

const marked: Rule = {
  family: "ipv4",
  priority: 2459,
  text: "from all fwmark 0x1000000/0x1000000 lookup 24601",
};
const pods: Rule = { family: "ipv4", priority: 2460, text: "from all lookup 24600" };
const own: Rule = { family: "ipv4", priority: 2461, text: "from all to 10.1.0.0/24 lookup 254" };
const own6: Rule = { family: "ipv6", priority: 2461, text: "from all to fd00:1::/64 lookup 254" };

const lines = (commands: readonly Command[]) =>
  commands.flatMap(({ argv, stdin = "" }) =>
    stdin
      .trimEnd()
      .split("\n")
      .map((line) => `${argv[1]} ${line}`),
  );

describe("what a real kernel listed", () => {
  test("all of its rules in their order, as `ip rule` takes them", () => {
    const texts = parseRules("ipv4", rules4).map(
      ({ priority, text, ours }) => `${priority} ${text}${ours ? " ours" : ""}`,
    );
    expect(texts).toEqual([
      "0 from all lookup 255",
      "102 from all fwmark 0x1/0xffffffff lookup 100",
      "103 from all fwmark 0x2000000/0x2000000 type prohibit ours",
      "300 from 192.0.2.7 lookup 30400",
      "301 not from 10.1.0.0/24 iif eth0 uidrange 0-5 ipproto 6 sport 80-90 dport 53 lookup 254 suppress_prefixlength 0",
      "302 from all goto 30400",
      "1000 from all l3mdev",
      "2459 from all fwmark 0x1000000/0x1000000 lookup 24601 ours",
      "2460 from all lookup 24600 ours",
      "2460 from all to 10.6.0.0/24 lookup 24600 ours",
      "2461 from all to 10.1.0.0/24 lookup 254 ours",
      "24601 from all fwmark 0x1000000/0x1000000 lookup 24601 ours",
      "30400 from 192.0.2.7 lookup 30400",
      "32766 from all lookup 254",
      "32767 from all lookup 253",
    ]);
  });

  test.each([
    ["ipv4", rules4, [marked, pods, own], "10.6.0.0/24"],
    ["ipv6", rules6, [marked, pods, own6].map((rule): Rule => ({ ...rule, family: "ipv6" })), "fd00:6::/64"],
  ] as const)(
    "%s: what is there is not added; version 1.0.0's rule goes, and strange ones",
    (_, listed, wanted, strange) => {
      const { add, remove } = diffRules(wanted, parseRules(wanted[0]!.family, listed));
      expect(add).toEqual([]);
      expect(lines(remove).map((line) => line.slice(3))).toEqual([
        "rule delete from all fwmark 0x2000000/0x2000000 type prohibit priority 103 protocol 246",
        `rule delete from all to ${strange} lookup 24600 priority 2460 protocol 246`,
        "rule delete from all fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
      ]);
    },
  );

  test("a kernel without rules", () => {
    expect(parseRules("ipv4", "")).toEqual([]);
  });

  const rule = `"priority":2459,"src":"all","fwmark":"0x1000000","fwmask":"0x1000000","table":"24601"`;
  test.each<[title: string, rule: string, present: boolean]>([
    ["ours", `{${rule},"protocol":"246"}`, true],
    ["ours, by another hand", `{${rule},"protocol":"3"}`, true],
    [
      "ours, from an ip that says more of it than we know",
      `{${rule},"flowlabel_hint":"0x0","x":null,"protocol":"246"}`,
      true,
    ],
    ["for one mark alone", `{${rule.replace(`"fwmask":"0x1000000",`, "")},"protocol":"246"}`, false],
    ["inverted", `{${rule.replace(`"src"`, `"not":null,"src"`)},"protocol":"246"}`, false],
    ["for one source", `{${rule.replace(`"all"`, `"10.0.0.0","srclen":8`)},"protocol":"246"}`, false],
    ["for one link", `{${rule},"iif":"eth0","protocol":"246"}`, false],
    ["without default routes", `{${rule},"suppress_prefixlen":0,"protocol":"246"}`, false],
    ["another mask", `{${rule.replace(`"fwmask":"0x1000000"`, `"fwmask":"0xff000000"`)}}`, false],
    ["another table", `{${rule.replace("24601", "24602")},"protocol":"246"}`, false],
  ])("a rule in our place: %s", (_, text, present) => {
    const { add } = diffRules([marked], parseRules("ipv4", `[${text}]`));
    expect(add).toHaveLength(present ? 0 : 1);
  });
});

describe("desired and observed → commands", () => {
  const seen = (...rules: Rule[]): ObservedRule[] => settledRules(rules, []);

  test("all are added in their order (systemd-networkd took them away: systemd#19106)", () => {
    expect(lines(diffRules([marked, pods, own, own6], []).add)).toEqual([
      "-4 rule add from all fwmark 0x1000000/0x1000000 lookup 24601 priority 2459 protocol 246",
      "-4 rule add from all lookup 24600 priority 2460 protocol 246",
      "-4 rule add from all to 10.1.0.0/24 lookup 254 priority 2461 protocol 246",
      "-6 rule add from all to fd00:1::/64 lookup 254 priority 2461 protocol 246",
    ]);
  });

  test("another own pod CIDR: its rule comes, the other's goes", () => {
    const next: Rule = { ...own, text: "from all to 10.2.0.0/24 lookup 254" };
    const { add, remove } = diffRules([pods, next], seen(pods, own));
    expect([lines(add), lines(remove)]).toEqual([
      ["-4 rule add from all to 10.2.0.0/24 lookup 254 priority 2461 protocol 246"],
      ["-4 rule delete from all to 10.1.0.0/24 lookup 254 priority 2461 protocol 246"],
    ]);
  });

  test("what is settled needs no further command, and others' rules stay known", () => {
    const foreign = parseRules("ipv4", `[{"priority":300,"src":"all","table":"77","protocol":"0"}]`);
    const settled = settledRules([pods, own], [...foreign, ...seen(marked, pods)]);
    expect(diffRules([pods, own], settled)).toEqual({ add: [], remove: [] });
    expect(settled).toContainEqual(foreign[0]!);
  });
});
