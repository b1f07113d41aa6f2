import { expect, test } from "bun:test";
import { type Chain, type Firewall, mistakes, type Verdict } from "./model.ts";

/** A base chain and what it leads to. */
function withChains(chains: Chain[], more: Partial<Firewall> = {}): Firewall {
  const sets = { own: [], remote: [], hosts: [], nodes: [], native: [], unencrypted: [], keep: [] };
  const kinds = Object.fromEntries(Object.keys(sets).map((name) => [name, "prefixes" as const]));
  return { chains, sets, kinds, maps: {}, devices: undefined, ...more };
}
const rule = (verdict: Verdict) => ({ match: {}, verdict });
const chain = (name: string, ...verdicts: Verdict[]): Chain => ({
  name,
  hook: "forward",
  rules: verdicts.map(rule),
});

test.each<[title: string, firewall: Firewall, expected: string[]]>([
  [
    "none",
    withChains([chain("forward", { goto: "a" }), chain("a", "pass", { jump: "b" }), chain("b", "return")]),
    [],
  ],
  [
    "no such chain",
    withChains([chain("forward", { jump: "a" })]),
    ["forward leads to a, which is not there"],
  ],
  [
    "a chain of another hook",
    withChains([chain("forward", { goto: "input" }), { name: "input", hook: "input", rules: [] }]),
    ["forward leads to input of another hook"],
  ],
  [
    "iptables cannot leave two chains at once",
    withChains([chain("forward", { jump: "a" }), chain("a", "pass")]),
    ["a, which is jumped to, lets pass"],
  ],
  [
    "no such map, and one that leads nowhere",
    withChains([chain("forward", { map: "a", by: "source" }, { map: "b", by: "source" })], {
      maps: { b: { "10.1.0.2": { jump: "c" } } },
    }),
    ["forward asks map a, which is not there", "forward leads to c, which is not there"],
  ],
  [
    "no such set",
    withChains([{ name: "forward", hook: "forward", rules: [{ match: { from: "@a" }, verdict: "drop" }] }]),
    ["forward asks set a, which is not there"],
  ],
  [
    "names that are too long for iptables and ipset, and a set without a kind",
    withChains([chain("a-chain-of-19-chars")], {
      sets: { ...withChains([]).sets, "a-set-of-17-chars": [] },
    }),
    [
      "set a-set-of-17-chars has no kind",
      "the name of set a-set-of-17-chars is longer than 16 characters",
      "the name of chain a-chain-of-19-chars is longer than 18 characters",
    ],
  ],
])("mistakes: %s", (_, firewall, expected) => {
  expect(mistakes(firewall)).toEqual(expected);
});
