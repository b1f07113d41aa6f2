import { describe, expect, test } from "bun:test";
import { type Family, families } from "../net/address.ts";
import type { Peer } from "../plan/desired.ts";
import type { Command } from "./command.ts";
import { diffPeers } from "./peers.ts";
import dump from "./recorded/wg-dump.txt";
import empty from "./recorded/wg-dump-empty.txt";
import {
  allowedIpOwners,
  diffIdentity,
  greet,
  type ObservedPeer,
  parseTunnel,
  standing,
  type Tunnel,
} from "./wireguard.ts";

const key = (n: number) => Buffer.alloc(32, n).toString("base64");

describe("what `wg show dump` printed", () => {
  test("of a link with three peers", () => {
    expect(parseTunnel(dump)).toEqual({
      publicKey: "kXeyMnjL8PPRfDbyrMm1XpyF+HsiClOG7DcNZj4g4zc=",
      port: 24601,
      marked: false,
      peers: new Map([
        [
          key(3),
          { endpoint: undefined, allowedIps: [], preshared: false, keepalive: false, latestHandshake: 0 },
        ],
        [
          key(1),
          {
            endpoint: "192.0.2.1:24601",
            allowedIps: ["10.1.1.0/24", "192.0.2.1/32", "2001:db8::1/128", "fd00:1:0:1::/64"],
            preshared: false,
            keepalive: false,
            latestHandshake: 0,
          },
        ],
        [
          key(2),
          {
            endpoint: "[2001:db8:1::2]:24601",
            allowedIps: ["10.1.2.0/24"],
            preshared: false,
            keepalive: false,
            latestHandshake: 0,
          },
        ],
      ]),
    });
  });

  test("of a link that was just made", () => {
    expect(parseTunnel(empty)).toEqual({
      publicKey: undefined,
      port: 57349,
      marked: false,
      peers: new Map(),
    });
  });

  test.each<[field: string, line: string, expected: Partial<Tunnel>]>([
    ["a mark", "priv\tpub\t24601\t0x1000000", { marked: true }],
    ["no mark, of older versions", "priv\tpub\t24601\t0x0", { marked: false }],
  ])("%s", (_, line, expected) => {
    expect(parseTunnel(`${line}\n`)).toMatchObject(expected);
  });

  test("a handshake, a pre-shared key, a keepalive", () => {
    const line = `${key(1)}\t${key(9)}\t192.0.2.1:51820\t10.1.1.0/24\t1700000000\t92\t180\t25`;
    expect(parseTunnel(`priv\tpub\t24601\toff\n${line}\n`).peers.get(key(1))).toEqual({
      endpoint: "192.0.2.1:51820",
      allowedIps: ["10.1.1.0/24"],
      preshared: true,
      keepalive: true,
      latestHandshake: 1_700_000_000,
    });
  });

  test("what decides between claims", () => {
    const { owners, endpoints } = standing(parseTunnel(dump));
    expect([...owners].sort()).toEqual([
      ["10.1.1.0/24", key(1)],
      ["10.1.2.0/24", key(2)],
      ["192.0.2.1/32", key(1)],
      ["2001:db8::1/128", key(1)],
      ["fd00:1:0:1::/64", key(1)],
    ]);
    expect([...endpoints]).toEqual([
      [key(1), "192.0.2.1"],
      [key(2), "2001:db8:1::2"],
    ]);
    expect(allowedIpOwners(undefined).size).toBe(0);
  });
});

describe("own key, port and mark", () => {
  const own = { publicKey: "own", privateKeyPath: "/etc/wigglenet/private.key", port: 24601 };
  test.each<[title: string, tweak: Partial<Tunnel>, words: string | undefined]>([
    ["as they should be", {}, undefined],
    [
      "just made",
      { publicKey: undefined, port: 57349 },
      "private-key /etc/wigglenet/private.key listen-port 24601",
    ],
    ["another key", { publicKey: "other" }, "private-key /etc/wigglenet/private.key"],
    ["another port", { port: 51820 }, "listen-port 24601"],
    // With the contract's mark its own packets would be routed into it again.
    ["a mark", { marked: true }, "fwmark 0"],
  ])("%s", (_, tweak, words) => {
    const tunnel = { publicKey: "own", port: 24601, marked: false, peers: new Map(), ...tweak };
    const commands = diffIdentity("wigglenet", own, tunnel).map(({ argv }) => argv.join(" "));
    expect(commands).toEqual(words === undefined ? [] : [`wg set wigglenet ${words}`]);
  });
});

describe("desired and observed peers → commands", () => {
  const now = 1_700_000_000;
  const endpoint = (name: string) => `192.0.2.${name.charCodeAt(0) - 96}:24601`;

  /** Peer `a` with these prefixes, at 192.0.2.1:24601. */
  function peer(publicKey: string, allowedIps: string[] = [], tweak: Partial<Peer> = {}): Peer {
    return { node: `node ${publicKey}`, publicKey, endpoint: endpoint(publicKey), allowedIps, ...tweak };
  }

  /** The same peer as observed, heard of ten seconds ago. */
  function seen(
    publicKey: string,
    allowedIps: string[] = [],
    tweak: Partial<ObservedPeer> = {},
  ): [string, ObservedPeer] {
    const at = {
      endpoint: endpoint(publicKey),
      allowedIps,
      preshared: false,
      keepalive: false,
      latestHandshake: now - 10,
    };
    return [publicKey, { ...at, ...tweak }];
  }

  const tunnelOf = (peers: [string, ObservedPeer][]): Tunnel => ({
    publicKey: "own",
    port: 24601,
    marked: false,
    peers: new Map(peers),
  });

  const throwAway = /[A-Za-z0-9+/]{43}=/g;
  const text = (commands: readonly Command[]) =>
    commands.map(({ argv }) => argv.slice(3).join(" ").replaceAll(throwAway, "THROWAWAY"));

  type Case = [
    title: string,
    desired: Peer[],
    observed: [string, ObservedPeer][],
    add: string[],
    remove: string[],
    wanted?: Record<string, string>,
    leaving?: readonly Family[],
  ];
  test.each<Case>([
    ["nothing", [], [], [], []],
    ["all there", [peer("a", ["10.1.1.0/24"])], [seen("a", ["10.1.1.0/24"])], [], []],
    [
      "a new one",
      [peer("a", ["10.1.1.0/24", "fd00::/64"])],
      [],
      ["peer a endpoint 192.0.2.1:24601 allowed-ips 10.1.1.0/24,fd00::/64"],
      [],
    ],
    ["a new one without anything", [peer("a", [], { endpoint: undefined })], [], ["peer a"], []],
    [
      "two at once, in one command",
      [peer("a"), peer("b")],
      [],
      ["peer a endpoint 192.0.2.1:24601 peer b endpoint 192.0.2.2:24601"],
      [],
    ],
    // field.md 9: peers of nodes that were deleted while the agent was down.
    ["two leave", [], [seen("b"), seen("a", ["10.1.1.0/24"])], [], ["peer a remove peer b remove"]],
    [
      "one more prefix: all are written, as this wg replaces them",
      [peer("a", ["10.1.1.0/24", "10.2.1.0/24"])],
      [seen("a", ["10.1.1.0/24"])],
      ["peer a allowed-ips 10.1.1.0/24,10.2.1.0/24"],
      [],
    ],
    [
      // cilium#34612: the others of the peer are not to be touched.
      "one prefix less: it leaves by another peer",
      [peer("a", ["10.1.1.0/24"])],
      [seen("a", ["10.1.1.0/24", "10.2.1.0/24"])],
      [],
      ["peer THROWAWAY allowed-ips 10.2.1.0/24 peer THROWAWAY remove"],
    ],
    [
      "one for another: the old one stays until nothing is routed to it",
      [peer("a", ["10.2.1.0/24"])],
      [seen("a", ["10.1.1.0/24"])],
      ["peer a allowed-ips 10.1.1.0/24,10.2.1.0/24"],
      ["peer THROWAWAY allowed-ips 10.1.1.0/24 peer THROWAWAY remove"],
    ],
    [
      "a prefix moves from one node to another: taken by the one, and the other is not touched",
      [peer("a", ["10.1.1.0/24"]), peer("b", ["10.2.1.0/24"])],
      [seen("a", ["10.1.1.0/24", "10.2.1.0/24"]), seen("b")],
      ["peer b allowed-ips 10.2.1.0/24"],
      [],
    ],
    [
      "two prefixes change places",
      [peer("a", ["10.2.1.0/24"]), peer("b", ["10.1.1.0/24"])],
      [seen("a", ["10.1.1.0/24"]), seen("b", ["10.2.1.0/24"])],
      ["peer a allowed-ips 10.2.1.0/24 peer b allowed-ips 10.1.1.0/24"],
      [],
    ],
    [
      "a prefix of a node that leaves goes to another",
      [peer("b", ["10.1.1.0/24"])],
      [seen("a", ["10.1.1.0/24"]), seen("b")],
      ["peer b allowed-ips 10.1.1.0/24"],
      ["peer a remove"],
    ],
    [
      "a node with a new key (cilium#35644)",
      [peer("b", ["10.1.1.0/24"])],
      [seen("a", ["10.1.1.0/24"])],
      ["peer b endpoint 192.0.2.2:24601 allowed-ips 10.1.1.0/24"],
      ["peer a remove"],
    ],
    // kilo#34, kilo#267: an endpoint that roamed is right as long as the peer is heard of.
    ["it roamed", [peer("a")], [seen("a", [], { endpoint: "198.51.100.7:4711" })], [], []],
    [
      "it roamed, and is the one that we set last",
      [peer("a")],
      [seen("a", [], { endpoint: "198.51.100.7:4711" })],
      [],
      [],
      { a: endpoint("a") },
    ],
    [
      "it roamed, and is silent",
      [peer("a")],
      [seen("a", [], { endpoint: "198.51.100.7:4711", latestHandshake: now - 181 })],
      ["peer a endpoint 192.0.2.1:24601"],
      [],
    ],
    [
      "it roamed, 180 s ago",
      [peer("a")],
      [seen("a", [], { endpoint: "198.51.100.7:4711", latestHandshake: now - 180 })],
      [],
      [],
    ],
    [
      "it roamed to a family in which no packet leaves any more: set, and spoken to, so that it comes back",
      [peer("a")],
      [seen("a", [], { endpoint: "[2001:db8::7]:24601" })],
      ["peer a endpoint 192.0.2.1:24601", "peer a persistent-keepalive 25", "peer a persistent-keepalive 0"],
      [],
      {},
      ["ipv4"],
    ],
    [
      "it roamed there, and has no session that could go on",
      [peer("a")],
      [seen("a", [], { endpoint: "[2001:db8::7]:24601", latestHandshake: 0 })],
      ["peer a endpoint 192.0.2.1:24601"],
      [],
      {},
      ["ipv4"],
    ],
    [
      "it roamed there, and no other endpoint is known",
      [peer("a", [], { endpoint: undefined })],
      [seen("a", [], { endpoint: "[2001:db8::7]:24601" })],
      [],
      [],
      {},
      ["ipv4"],
    ],
    [
      "never heard of",
      [peer("a")],
      [seen("a", [], { endpoint: "198.51.100.7:4711", latestHandshake: 0 })],
      ["peer a endpoint 192.0.2.1:24601"],
      [],
    ],
    [
      "another address is wanted than was (flannel#1052)",
      [peer("a")],
      [seen("a", [], { endpoint: "198.51.100.7:4711" })],
      ["peer a endpoint 192.0.2.1:24601"],
      [],
      { a: "198.51.100.7:4711" },
    ],
    [
      "another one is wanted, and it is there already",
      [peer("a")],
      [seen("a")],
      [],
      [],
      { a: "198.51.100.7:4711" },
    ],
    [
      "no endpoint is wanted: it stays where it is",
      [peer("a", [], { endpoint: undefined })],
      [seen("a", [], { latestHandshake: 0 })],
      [],
      [],
    ],
    [
      "a pre-shared key that somebody set",
      [peer("a")],
      [seen("a", [], { preshared: true })],
      ["peer a preshared-key /dev/null"],
      [],
    ],
    [
      "a keepalive that was left by an agent which was ended as it greeted",
      [peer("a")],
      [seen("a", [], { keepalive: true })],
      ["peer a persistent-keepalive 0"],
      [],
    ],
  ])("%s", (_, desired, observed, add, remove, wanted = {}, leaving = families) => {
    const tunnel = tunnelOf(observed);
    const changes = diffPeers("wigglenet", desired, tunnel, new Map(Object.entries(wanted)), now, leaving);
    for (const { argv } of [...changes.add, ...changes.remove])
      expect(argv.slice(0, 3)).toEqual(["wg", "set", "wigglenet"]);
    expect([text(changes.add), text(changes.remove)]).toEqual([add, remove]);
    // What is done once is not done again (kilo#82).
    const again = diffPeers(
      "wigglenet",
      desired,
      changes.result,
      new Map(desired.map((p) => [p.publicKey, p.endpoint])),
      now,
      leaving,
    );
    expect([again.add, again.remove]).toEqual([[], []]);
  });

  test("5,000 peers, and all their prefixes going at once, fit into command lines", () => {
    const names = Array.from({ length: 5_000 }, (_, n) =>
      Buffer.from(String(n).padStart(32)).toString("base64"),
    );
    const prefixes = (n: number) => [
      `10.${n >> 8}.${n & 255}.0/24`,
      `fd00:1111:2222:3333:4444:5555:6666:${n.toString(16)}/128`,
    ];
    const all = names.map(
      (name, n): Peer => ({ node: name, publicKey: name, endpoint: "192.0.2.1:1", allowedIps: prefixes(n) }),
    );
    const joined = diffPeers("wigglenet", all, tunnelOf([]), new Map(), now);
    const bare = all.map((one) => ({ ...one, allowedIps: [] }));
    const emptied = diffPeers("wigglenet", bare, joined.result, new Map(), now);
    const left = diffPeers("wigglenet", [], joined.result, new Map(), now);
    expect([emptied.add.length, left.add.length]).toEqual([0, 0]);
    for (const { argv } of [...joined.add, ...emptied.remove, ...left.remove]) {
      expect(Math.max(...argv.map((word) => word.length))).toBeLessThan(128 * 1_024);
      expect(argv.join(" ").length).toBeLessThan(1_000_000);
    }
    const moved = emptied.remove
      .flatMap(({ argv }) => argv.filter((word) => word.includes("/")))
      .join(",")
      .split(",");
    expect(moved.filter((word) => /\/\d+$/.test(word))).toHaveLength(10_000);
    expect(joined.add.length + emptied.remove.length + left.remove.length).toBeLessThan(25);
  });
});

test("peers are greeted, and no keepalive stays", () => {
  expect(greet("wigglenet", ["key-1", "key-3"]).map(({ argv }) => argv.join(" "))).toEqual([
    "wg set wigglenet peer key-1 persistent-keepalive 25 peer key-3 persistent-keepalive 25",
    "wg set wigglenet peer key-1 persistent-keepalive 0 peer key-3 persistent-keepalive 0",
  ]);
});
