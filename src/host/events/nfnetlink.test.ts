import { describe, expect, test } from "bun:test";
import recorded from "../recorded/nfnetlink.txt";
import { attributes, messages, text } from "./netlink.ts";
import { chainOf, parseChains, tellsOfOurs } from "./nfnetlink.ts";

/** By what was done, the datagrams that the kernel (6.18) sent to a listener. */
const transactions = new Map(
  recorded
    .trimEnd()
    .split("\n")
    .map((line) => {
      const [title = "", datagrams = ""] = line.split(": ");
      return [title, datagrams.split(" ").map((datagram) => Buffer.from(datagram, "base64"))];
    }),
);

describe("what the kernel tells of a transaction", () => {
  test.each<[title: string, ours: boolean]>([
    ["our table is made", true],
    ["an element comes", true],
    ["an element goes", true],
    ["a set is flushed", true],
    ["a chain's policy is changed", true],
    ["a rule is inserted", true],
    ["a chain is flushed", true],
    ["a map is added", true],
    ["kube-proxy's table, and a comment with our name", false],
    ["a table whose name begins with ours", false],
    ["a table of our name in another family", false],
    ["others' chains by iptables-nft", true],
    ["our chains by iptables-nft", true],
    ["by ip6tables-nft", true],
    ["a rule in one of them", true],
    ["a jump to one of them", true],
    ["a jump to one of them is deleted", true],
    ["one of them is flushed", true],
    ["others' rules in a chain of their own", false],
    ["and such a rule is deleted", false],
    ["a rule that others put into a chain that may jump to ours", false],
    // Of the rule that goes later kernels tell nothing but its handle.
    ["and delete from it", true],
    // ufw is enabled, Docker starts: pods are cut off until it is seen.
    ["the policy of FORWARD is changed", true],
    ["the policy of OUTPUT is changed", false],
    ["an element of another's set", false],
    ["a set of elements of kube-proxy", false],
    ["iptables' table is deleted", true],
    ["everything is flushed", true],
  ])("%s", (title, ours) => {
    const datagrams = transactions.get(title) ?? [];
    expect(datagrams).not.toBeEmpty();
    expect(datagrams.some((datagram) => tellsOfOurs(datagram, []))).toBe(ours);
    // By the programs that made it: the port is their process ID.
    const ports = datagrams.flatMap((datagram) => [...messages(datagram)].map(({ port }) => port));
    expect(datagrams.some((datagram) => tellsOfOurs(datagram, ports))).toBe(false);
  });

  test("each recorded one has a line above", () => {
    expect(transactions.size).toBe(28);
  });

  test("what is cut off, or no message at all, is nothing", () => {
    const [datagram = Buffer.alloc(0)] = transactions.get("our table is made") ?? [];
    for (let length = 0; length <= datagram.length; length += 1)
      for (const { body } of messages(datagram.subarray(0, length))) attributes(body, 4);
    expect([...messages(Buffer.alloc(64))]).toEqual([]);
    expect([...messages(Buffer.alloc(64, 255))]).toEqual([]);
    expect(text(undefined)).toBe("");
  });
});

test("chains: base chains with their hook and policy, ours by iptables, none of others", () => {
  const chains = [...transactions.values()]
    .flat()
    .flatMap((datagram) => [...messages(datagram)].flatMap(chainOf))
    .map(({ family, table, name, hook, policy }) => [family, table, name, hook, policy].join(" ").trimEnd());
  expect([...new Set(chains)]).toEqual([
    "inet wigglenet prerouting prerouting accept",
    "inet wigglenet prerouting prerouting drop",
    "ip kube-proxy nat-postrouting postrouting accept",
    "ip filter FORWARD forward accept",
    "ip nat POSTROUTING postrouting accept",
    "ip mangle WIGGLENET-PREROUTING",
    "ip6 mangle WIGGLENET-PREROUTING",
    "ip mangle PREROUTING prerouting accept",
    "ip filter FORWARD forward drop",
    "ip filter OUTPUT output accept",
    "ip filter OUTPUT output drop",
  ]);
});

test("chains as nft lists them: the same ones", () => {
  const chains = [
    {
      family: "ip",
      table: "filter",
      name: "FORWARD",
      handle: 2,
      type: "filter",
      hook: "forward",
      prio: 0,
      policy: "drop",
    },
    {
      family: "inet",
      table: "wigglenet",
      name: "srcnat",
      handle: 9,
      type: "nat",
      hook: "postrouting",
      prio: 100,
      policy: "accept",
    },
    // Of no hook, or no hook of IP.
    { family: "ip", table: "kube-proxy", name: "services", handle: 3 },
    { family: "ip6", table: "mangle", name: "WIGGLENET-PREROUTING", handle: 4 },
    {
      family: "bridge",
      table: "filter",
      name: "forward",
      handle: 1,
      type: "filter",
      hook: "forward",
      prio: 0,
      policy: "drop",
    },
    {
      family: "netdev",
      table: "t",
      name: "in",
      handle: 1,
      type: "filter",
      hook: "ingress",
      dev: "eth0",
      prio: 0,
    },
  ];
  const output = JSON.stringify({
    nftables: [{ metainfo: { version: "1.0.6" } }, ...chains.map((chain) => ({ chain }))],
  });
  expect(parseChains(output)).toEqual([
    { family: "ip", table: "filter", name: "FORWARD", hook: "forward", policy: "drop" },
    { family: "inet", table: "wigglenet", name: "srcnat", hook: "postrouting", policy: "accept" },
    { family: "ip6", table: "mangle", name: "WIGGLENET-PREROUTING" },
  ]);
});
