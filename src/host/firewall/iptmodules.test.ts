import { expect, test } from "bun:test";
import { wanted } from "./fixtures/iptables.ts";
import { type Asked, lackingIn, samples, tablesOf } from "./iptmodules.ts";

const asked = samples("ipv4", { tunnel: true, masquerade: true });
const lineOf = (module: string) => {
  const table = tablesOf(asked).find(({ samples }) =>
    samples.some(({ modules }) => modules.includes(module)),
  );
  const index = table?.samples.findIndex(({ modules }) => modules.includes(module)) ?? -1;
  return { table: table as Asked, line: (table?.from ?? 0) + index };
};
const at = (line: number) =>
  `\n\nError occurred at line: ${line}\nTry \`iptables-restore -h' or 'iptables-restore --help' for more information.\n`;

// iptables 1.8.9 on Linux 6.18, and 1.8.11.
test.each<[title: string, module: string, stderr: (line: number) => string, lacking: string[]]>([
  ["nothing", "xt_conntrack", () => "", []],
  [
    "an extension, as of 1.8.9",
    "xt_connmark",
    () => "Warning: Extension connmark revision 0 not supported, missing kernel module?\n",
    ["xt_connmark"],
  ],
  [
    "an extension, as of 1.8.11",
    "xt_connmark",
    () => "Warning: Extension CONNMARK is not supported, missing kernel module?\n",
    ["xt_connmark"],
  ],
  [
    "an extension whose options it then does not know",
    "xt_connmark",
    (line) =>
      `Warning: Extension CONNMARK revision 0 not supported, missing kernel module?\niptables-restore v1.8.11 (nf_tables): unknown option "--set-xmark"${at(line)}`,
    ["xt_connmark"],
  ],
  [
    "an extension, of which legacy finds no revision",
    "ipt_rpfilter",
    (line) =>
      `iptables-restore v1.8.9 (legacy): Couldn't load match \`rpfilter':No such file or directory${at(line)}`,
    ["ipt_rpfilter"],
  ],
  [
    "sets, whose own way to the kernel is closed",
    "xt_set",
    (line) => `iptables-restore v1.8.9 (legacy): Kernel module xt_set is not loaded in.${at(line)}`,
    ["xt_set"],
  ],
  [
    "a set that nobody has, as there should be",
    "xt_set",
    (line) => `iptables-restore v1.8.9 (legacy): Set WIGGLENET-check doesn't exist.${at(line)}`,
    [],
  ],
  [
    "a table",
    "xt_MASQUERADE",
    () => `iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'${at(1)}`,
    ["iptable_nat"],
  ],
  [
    "a right that is missing",
    "xt_conntrack",
    () =>
      "iptables-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n",
    [],
  ],
  [
    "a lock that another holds",
    "xt_conntrack",
    () => "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?\n",
    [],
  ],
])("what iptables says of %s", (_, module, stderr, lacking) => {
  const { table, line } = lineOf(module);
  expect(lackingIn(stderr(line), table, "ipv4")).toEqual(lacking);
});

test("each module is asked for, in the families that have it", () => {
  const modules = (family: "ipv4" | "ipv6") =>
    new Set(samples(family, { tunnel: true, masquerade: true }).flatMap((each) => each.modules));
  const both = ["xt_conntrack", "xt_set", "xt_mark", "xt_connmark", "xt_MASQUERADE"];
  expect([...modules("ipv4")].sort()).toEqual([...both, "ipt_rpfilter"].sort());
  expect([...modules("ipv6")].sort()).toEqual([...both, "ip6t_rpfilter"].sort());
  expect(
    [
      ...new Set(samples("ipv4", { tunnel: false, masquerade: false }).flatMap((each) => each.modules)),
    ].sort(),
  ).toEqual(["xt_conntrack", "xt_set"]);
});

test("every extension that our rules name is asked for", () => {
  const rules = wanted().flatMap((chain) => chain.rules);
  const named = new Set(
    rules.flatMap((rule) => [...rule.matchAll(/-[mj] (?!WIGGLENET-)(\w+)/g)].map(([, name]) => name)),
  );
  // Part of the tables themselves.
  for (const builtin of ["DROP", "RETURN", "ACCEPT", "icmp6"]) named.delete(builtin);
  const extensions = new Set(
    samples("ipv4", { tunnel: true, masquerade: true }).map((each) => each.extension),
  );
  expect([...named].filter((name) => !extensions.has(name as string))).toEqual([]);
});
