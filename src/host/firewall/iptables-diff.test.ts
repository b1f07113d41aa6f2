import { describe, expect, test } from "bun:test";
import { families } from "../../net/address.ts";
import type { Command } from "../command.ts";
import { accepting, type Tweak, text, wanted, wantedSets } from "./fixtures/iptables.ts";
import { diffSets, type ObservedSets } from "./ipset.ts";
import { type Chain, diffChains, type ObservedChains, settledChains } from "./iptables.ts";

/** The same, line by line, of one program. */
function lines(commands: readonly Command[]): string[] {
  return text(commands).trimEnd().split("\n").filter(Boolean);
}

describe("sets: desired and observed → ipset restore", () => {
  const remote = (...remotePodCidrs: string[]) => wantedSets({ remotePodCidrs });
  const without = (name: string): ObservedSets => ({ ...wantedSets(), [name]: undefined });
  test.each<[title: string, desired: Record<string, string[]>, observed: ObservedSets, lines: string[]]>([
    ["nothing changed", wantedSets(), wantedSets(), []],
    [
      "listed in another order",
      remote("10.1.1.0/24", "10.1.2.0/24"),
      { ...remote(), "WIGGLENET-remote-ipv4": ["10.1.2.0/24", "10.1.1.0/24"] },
      [],
    ],
    [
      "one node more",
      wantedSets({ nodes: ["192.0.2.1", "192.0.2.2", "2001:db8::1"] }),
      wantedSets(),
      ["add WIGGLENET-nodes-ipv4 192.0.2.2"],
    ],
    [
      "a node leaves",
      wantedSets({ nodes: ["192.0.2.1"] }),
      wantedSets(),
      ["del WIGGLENET-nodes-ipv6 2001:db8::1"],
    ],
    [
      // Never without the pods of the smaller ones.
      "a larger pod CIDR over smaller ones: what comes, comes first",
      remote("10.1.0.0/23"),
      remote("10.1.0.0/24", "10.1.1.0/24"),
      [
        "add WIGGLENET-remote-ipv4 10.1.0.0/23",
        "del WIGGLENET-remote-ipv4 10.1.0.0/24",
        "del WIGGLENET-remote-ipv4 10.1.1.0/24",
      ],
    ],
    [
      "of one address, as ipset lists it",
      remote("10.1.2.7/32", "fd00::9/128"),
      remote("10.1.2.7/32"),
      ["add WIGGLENET-remote-ipv6 fd00::9"],
    ],
    [
      "a set is gone",
      wantedSets(),
      without("WIGGLENET-nodes-ipv6"),
      [
        "create WIGGLENET-nodes-ipv6 hash:net family inet6 maxelem 262144",
        "add WIGGLENET-nodes-ipv6 2001:db8::1",
      ],
    ],
  ])("%s", (_, desired, observed, expected) => {
    const commands = diffSets(desired, observed, "wanted");
    expect(lines(commands)).toEqual(expected.length > 0 ? ["ipset restore", ...expected] : []);
    expect(diffSets(desired, observed, "surplus")).toEqual([]);
  });

  test.each<[title: string, observed: ObservedSets, lines: string[]]>([
    ["none is there", { "WIGGLENET-own-ipv4": undefined }, []],
    [
      "empty or not",
      { "WIGGLENET-own-ipv4": [], "WIGGLENET-own-ipv6": ["fd00:1::/64"], "WIGGLENET-keep-ipv4": undefined },
      ["ipset restore", "destroy WIGGLENET-own-ipv4", "destroy WIGGLENET-own-ipv6"],
    ],
  ])("another backend: sets that are there are destroyed: %s", (_, observed, expected) => {
    expect(diffSets({}, observed, "wanted")).toEqual([]);
    expect(lines(diffSets({}, observed, "surplus"))).toEqual(expected);
  });

  test("5,000 nodes are one command, and one more is one line", () => {
    const nodes = Array.from({ length: 5_000 }, (_, n) => `172.16.${n >> 8}.${n & 255}`);
    expect(diffSets(wantedSets({ nodes }), {}, "wanted")).toHaveLength(1);
    const one = diffSets(wantedSets({ nodes: [...nodes, "192.0.2.1"] }), wantedSets({ nodes }), "wanted");
    expect(lines(one)).toEqual(["ipset restore", "add WIGGLENET-nodes-ipv4 192.0.2.1"]);
    expect(diffChains("nft", wanted({ nodes }), settledChains(wanted()))).toEqual([]);
  });
});

describe("chains: desired and observed → iptables-restore", () => {
  const off = { ipv4: false, ipv6: false };
  const settled = (tweak: Tweak = {}) => settledChains(wanted(tweak));
  const tweaked = (name: string, tweak: Partial<NonNullable<ObservedChains[string]>>): ObservedChains => ({
    ...settled(),
    [name]: { rules: [], jump: false, ...settled()[name], ...tweak },
  });
  const rules = (name: string, tweak: Tweak = {}) => {
    const chain = wanted(tweak).find((each) => `${each.family} ${each.table} ${each.chain}` === name);
    return (chain?.rules ?? []).map((rule) => `-A ${chain?.chain} ${rule}`);
  };
  const restore = (program: string, table: string, ...changes: string[]) => [
    `${program}-nft-restore --noflush -w 10`,
    `*${table}`,
    ...changes,
    "COMMIT",
  ];
  const regular = (chain: string, ...rules: string[]): Chain => ({
    family: "ipv4",
    table: "filter",
    chain,
    place: undefined,
    rules,
  });
  const input = "ipv4 filter WIGGLENET-INPUT";
  const srcnat = "ipv6 nat WIGGLENET-SRCNAT";

  test.each<[title: string, desired: Chain[], observed: ObservedChains, lines: string[]]>([
    ["nothing changed", wanted(), settled(), []],
    [
      "a node and its pod CIDR more",
      wanted({ nodes: ["192.0.2.1", "192.0.2.2"], remotePodCidrs: ["10.2.0.0/24"] }),
      settled(),
      [],
    ],
    [
      "a chain was flushed",
      wanted(),
      tweaked(input, { rules: [] }),
      restore("iptables", "filter", ...rules(input)),
    ],
    [
      "a rule was added by hand",
      wanted(),
      tweaked(srcnat, { rules: ["-j ACCEPT", ...(settled()[srcnat]?.rules ?? [])] }),
      restore("ip6tables", "nat", "-D WIGGLENET-SRCNAT 1"),
    ],
    [
      "a rule was replaced by hand",
      wanted(),
      tweaked(srcnat, { rules: settled()[srcnat]!.rules.with(1, "-j ACCEPT") }),
      restore(
        "ip6tables",
        "nat",
        "-D WIGGLENET-SRCNAT 3",
        "-D WIGGLENET-SRCNAT 2",
        ...rules(srcnat).slice(1),
      ),
    ],
    [
      "a chain's jump is missing: its rules stay",
      wanted(),
      tweaked(input, { jump: false }),
      restore("iptables", "filter", "-I INPUT 1 -j WIGGLENET-INPUT"),
    ],
    [
      "a chain is gone, and its jump with it",
      wanted(),
      { ...settled(), [srcnat]: undefined },
      restore(
        "ip6tables",
        "nat",
        ":WIGGLENET-SRCNAT - [0:0]",
        ...rules(srcnat),
        "-I POSTROUTING 1 -j WIGGLENET-SRCNAT",
      ),
    ],
    [
      // What it guards is dropped or not at every moment: it is one transaction.
      "masquerade is switched off",
      wanted({ masquerade: off }),
      settled(),
      families.flatMap((family) => {
        const program = family === "ipv4" ? "iptables" : "ip6tables";
        const gone = (table: string, chain: string) => {
          const stay = rules(`${family} ${table} ${chain}`, { masquerade: off });
          return rules(`${family} ${table} ${chain}`)
            .flatMap((rule, index) => (stay.includes(rule) ? [] : [`-D ${chain} ${index + 1}`]))
            .reverse();
        };
        return [
          ...restore(
            program,
            "filter",
            ...gone("filter", "WIGGLENET-FROM-PODS"),
            ":WIGGLENET-OUTWARD - [0:0]",
            "-X WIGGLENET-OUTWARD",
          ),
          ...restore(program, "nat", ...gone("nat", "WIGGLENET-SRCNAT")),
        ];
      }),
    ],
    [
      "FORWARD drops: last of all, what is not ours is others'",
      [...wanted(), ...accepting()],
      settled(),
      [
        ...restore(
          "iptables",
          "filter",
          ":WIGGLENET-FORWARD - [0:0]",
          "-A WIGGLENET-FORWARD -s 10.1.0.0/24 -j ACCEPT",
          "-A WIGGLENET-FORWARD -d 10.1.0.0/24 -j ACCEPT",
          "-A FORWARD -j WIGGLENET-FORWARD",
        ),
        ...restore(
          "ip6tables",
          "filter",
          ":WIGGLENET-FORWARD - [0:0]",
          "-A WIGGLENET-FORWARD -s fd00:1::/64 -j ACCEPT",
          "-A WIGGLENET-FORWARD -d fd00:1::/64 -j ACCEPT",
          "-A FORWARD -j WIGGLENET-FORWARD",
        ),
      ],
    ],
    [
      "it accepts again",
      wanted(),
      { ...settled(), ...settledChains(accepting()) },
      [
        ...restore(
          "iptables",
          "filter",
          ":WIGGLENET-FORWARD - [0:0]",
          "-D FORWARD -j WIGGLENET-FORWARD",
          "-X WIGGLENET-FORWARD",
        ),
        ...restore(
          "ip6tables",
          "filter",
          ":WIGGLENET-FORWARD - [0:0]",
          "-D FORWARD -j WIGGLENET-FORWARD",
          "-X WIGGLENET-FORWARD",
        ),
      ],
    ],
    [
      "what is left of a removal that was cut short",
      [],
      { [input]: { rules: ["-j DROP"], jump: false }, [srcnat]: { rules: [], jump: true } },
      [
        ...restore("iptables", "filter", ":WIGGLENET-INPUT - [0:0]", "-X WIGGLENET-INPUT"),
        ...restore(
          "ip6tables",
          "nat",
          ":WIGGLENET-SRCNAT - [0:0]",
          "-D POSTROUTING -j WIGGLENET-SRCNAT",
          "-X WIGGLENET-SRCNAT",
        ),
      ],
    ],
    ["none is wanted, and none is there", [], { [input]: undefined }, []],
    [
      "regular chains: declared before the rules that lead to them, deleted after these, each by itself",
      [...wanted(), regular("WIGGLENET-NEW", "-j RETURN")].map((chain) =>
        chain.family === "ipv4" && chain.chain === "WIGGLENET-INPUT"
          ? { ...chain, rules: [...chain.rules, "-j WIGGLENET-NEW"] }
          : chain,
      ),
      {
        ...settledChains([regular("WIGGLENET-OLD", "-j RETURN")]),
        ...settled(),
        [input]: { rules: [...settled()[input]!.rules, "-j WIGGLENET-OLD"], jump: true },
      },
      restore(
        "iptables",
        "filter",
        ":WIGGLENET-NEW - [0:0]",
        `-D WIGGLENET-INPUT ${settled()[input]!.rules.length + 1}`,
        "-A WIGGLENET-INPUT -j WIGGLENET-NEW",
        "-A WIGGLENET-NEW -j RETURN",
        ":WIGGLENET-OLD - [0:0]",
        "-X WIGGLENET-OLD",
      ),
    ],
  ])("%s", (_, desired, observed, expected) => {
    expect(lines(diffChains("nft", desired, observed))).toEqual(expected);
  });

  test("another backend: every chain and every jump goes, and no rule comes", () => {
    const removal = lines(diffChains("legacy", [], { ...settled(), ...settledChains(accepting()) }));
    const count = (beginning: string) => removal.filter((line) => line.startsWith(beginning)).length;
    const { length } = [...wanted(), ...accepting()];
    expect(count("-X WIGGLENET-")).toBe(length);
    expect(count("-D ")).toBe(12);
    expect(count(":WIGGLENET-")).toBe(length);
    expect(count("-A ") + count("-I ")).toBe(0);
  });
});
