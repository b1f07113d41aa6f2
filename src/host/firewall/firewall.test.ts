import { describe, expect, test } from "bun:test";
import { type FirewallInput, firewall } from "../../plan/fixtures/firewall.ts";
import type { NftChain } from "../events/nfnetlink.ts";
import { loaded } from "../recorded/loaded.ts";
import listed from "../recorded/nft-chains.txt";
import {
  type Backend,
  closedChains,
  diffFirewall,
  elementsIn,
  type ObservedFirewall,
  settledFirewall,
} from "./firewall.ts";

type Tweak = Partial<FirewallInput>;
const backends: Backend[] = ["nftables", "iptables-nft", "iptables-legacy"];
const wanted = (tweak: Tweak = {}) => firewall(loaded(tweak));

/** A node with nothing of ours. */
function untouched(tweak: Partial<ObservedFirewall> = {}): ObservedFirewall {
  return { ruleset: undefined, chains: {}, sets: {}, dropping: [], closed: [], hidden: undefined, ...tweak };
}

/** A node as a backend leaves it. */
function left(backend: Backend, observed = untouched()): ObservedFirewall {
  return settledFirewall(backend, wanted(), observed);
}

/** Each command by its program and table, with whether it adds something (+) and takes something away (-). */
function commands(backend: Backend, observed: ObservedFirewall, tweak: Tweak = {}): string[] {
  return diffFirewall(backend, wanted(tweak), observed).map(({ argv, stdin }) => {
    if (stdin === undefined) return argv.join(" ");
    const lines = stdin.split("\n");
    const has = (beginning: RegExp, sign: string) => (lines.some((line) => beginning.test(line)) ? sign : "");
    const table = lines.find((line) => line.startsWith("*"));
    const changes = has(/^-[AI] |^add|^create/, "+") + has(/^-[DX] |^del|^destroy/, "-");
    return [argv[0], ...(table ? [table] : []), changes].join(" ");
  });
}

const byNftables = ["nft +"];
const sets = ["ipset +"];
const chains = (variant: string) => [
  `iptables-${variant}-restore *mangle +`,
  `iptables-${variant}-restore *filter +`,
  `iptables-${variant}-restore *nat +`,
  `ip6tables-${variant}-restore *mangle +`,
  `ip6tables-${variant}-restore *filter +`,
  `ip6tables-${variant}-restore *nat +`,
];
const noChains = (variant: string) => [
  `iptables-${variant}-restore *mangle -`,
  `iptables-${variant}-restore *filter -`,
  `iptables-${variant}-restore *nat -`,
  `ip6tables-${variant}-restore *mangle -`,
  `ip6tables-${variant}-restore *filter -`,
  `ip6tables-${variant}-restore *nat -`,
];
const noTable = ["nft delete table inet wigglenet"];
const noSets = ["ipset -"];

// Sets before the rules that name them, and after; the new backend's before what is left of the old one.
test.each<[backend: Backend, from: Backend | "nothing", expected: string[]]>([
  ["nftables", "nothing", byNftables],
  ["iptables-nft", "nothing", [...sets, ...chains("nft")]],
  ["iptables-legacy", "nothing", [...sets, ...chains("legacy")]],
  ["iptables-nft", "nftables", [...sets, ...chains("nft"), ...noTable]],
  ["iptables-legacy", "nftables", [...sets, ...chains("legacy"), ...noTable]],
  ["nftables", "iptables-nft", [...byNftables, ...noChains("nft"), ...noSets]],
  ["nftables", "iptables-legacy", [...byNftables, ...noChains("legacy"), ...noSets]],
  ["iptables-nft", "iptables-legacy", [...chains("nft"), ...noChains("legacy")]],
  ["iptables-legacy", "iptables-nft", [...chains("legacy"), ...noChains("nft")]],
])("%s, from %s", (backend, from, expected) => {
  expect(commands(backend, from === "nothing" ? untouched() : left(from))).toEqual(expected);
});

describe.each(backends)("%s", (backend) => {
  test("once it is done, nothing is left to do", () => {
    const starts = [
      untouched(),
      untouched({ dropping: ["nft", "legacy"] }),
      ...backends.map((other) => left(other)),
      ...backends.map((other) => left(other, untouched({ dropping: ["legacy"] }))),
    ];
    for (const start of starts) {
      const settled = settledFirewall(backend, wanted(), start);
      expect(commands(backend, settled)).toEqual([]);
      expect(elementsIn(backend, settled, "nodes").sort()).toEqual(["192.0.2.1", "2001:db8::1"]);
    }
  });

  test("a node more is one line of one command", () => {
    const nodes = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
    const lines = diffFirewall(backend, wanted({ nodes }), left(backend)).map(({ stdin }) => stdin);
    expect(lines).toEqual([
      backend === "nftables"
        ? "add set inet wigglenet nodes-ipv4 { type ipv4_addr; elements = { 192.0.2.2 }; }\n"
        : "add WIGGLENET-nodes-ipv4 192.0.2.2\n",
    ]);
  });

  test.each(["nft", "legacy"] as const)(
    "FORWARD drops in iptables-%s: pods are accepted there alone",
    (variant) => {
      const dropping = { ...left(backend), dropping: [variant] };
      expect(commands(backend, dropping)).toEqual([
        `iptables-${variant}-restore *filter +`,
        `ip6tables-${variant}-restore *filter +`,
      ]);
      const settled = settledFirewall(backend, wanted(), dropping);
      expect(commands(backend, { ...settled, dropping: [] })).toEqual([
        `iptables-${variant}-restore *filter -`,
        `ip6tables-${variant}-restore *filter -`,
      ]);
    },
  );

  test("what is known of others is kept", () => {
    const observed = untouched({ dropping: ["legacy"], closed: ["inet filter input"] });
    expect(left(backend, observed)).toMatchObject({ dropping: ["legacy"], closed: ["inet filter input"] });
  });

  test("no node is behind a tunnel where nothing is loaded, or another backend's", () => {
    expect(elementsIn(backend, untouched(), "nodes"), "nodes").toEqual([]);
    const other = backend === "nftables" ? "iptables-nft" : "nftables";
    expect(elementsIn(backend, left(other), "nodes"), "nodes").toEqual([]);
  });
});

describe("chains of others that drop what nobody accepts", () => {
  const chainsOf = (listing: string) =>
    (JSON.parse(listing) as { nftables: { chain?: NftChain }[] }).nftables.flatMap(
      ({ chain }) => chain ?? [],
    );
  test("of a host with many", () => {
    expect(closedChains(chainsOf(listed))).toEqual([
      "ip filter FORWARD",
      "inet firewalld filter_FORWARD",
      "inet firewalld filter_INPUT",
      "inet filter input",
      "inet filter forward",
    ]);
  });

  const chain = { family: "inet", table: "t", name: "c", hook: "input", policy: "drop" };
  test.each<[title: string, tweak: object, expected: string[]]>([
    ["input", {}, ["inet t c"]],
    ["forward of one family", { family: "ip6", hook: "forward" }, ["ip6 t c"]],
    ["output is the node's own affair", { hook: "output" }, []],
    ["it accepts", { policy: "accept" }, []],
    ["no base chain", { hook: undefined, policy: undefined }, []],
    ["firewalld drops by its last rule", { table: "firewalld", policy: "accept" }, ["inet firewalld c"]],
    ["our own", { table: "wigglenet" }, []],
    // What a bridge forwards, and ARP, is no packet of a pod to the network.
    ["a bridge's", { family: "bridge", hook: "forward" }, []],
    ["ARP's", { family: "arp" }, []],
    ["a device's", { family: "netdev", hook: "ingress" }, []],
  ])("%s", (_, tweak, expected) => {
    expect(closedChains([{ ...chain, ...tweak } as NftChain])).toEqual(expected);
  });

  test("none at all", () => {
    expect(closedChains([])).toEqual([]);
  });
});
