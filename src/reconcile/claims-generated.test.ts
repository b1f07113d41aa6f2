/** Annotations that somebody could write, through all of an agent that is pure: a Node, its claims, the plan, the diffs. */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { diffRuleset, ruleset, settledRuleset } from "../host/firewall/nftables.ts";
import type { ObservedRuleset } from "../host/firewall/nftlisting.ts";
import { diffPeers } from "../host/peers.ts";
import type { ObservedRoutes } from "../host/routelist.ts";
import { diffRoutes, settledRoutes } from "../host/routes.ts";
import { standing, type Tunnel } from "../host/wireguard.ts";
import { hostPrefix, overlaps } from "../net/address.ts";
import { Plan } from "../plan/desired.ts";
import { annotations } from "../plan/fixtures/annotations.ts";
import { input, type Listed, line, lists, tableOf, underlay } from "../plan/fixtures/input.ts";
import { annotationsOf, fromAnnotations, fromNode, type NodeRecord, saysAll } from "../plan/overlay/node.ts";
import { podRange } from "../plan/podcidr/ranges.ts";

/** Three nodes of a lab, the first of them our own. */
const real = [0, 1, 2].map((n) => {
  const addresses = [`172.30.0.${11 + n}`, `fd30::${11 + n}`];
  return {
    name: `node-${n}`,
    publicKey: Buffer.alloc(32, 100 + n).toString("base64"),
    podCidrs: [`10.244.${n}.0/24`, `fd00:10:244:${n}::/64`.replace(":0::", "::")],
    addresses,
    endpoints: addresses,
    onLinks: addresses,
  };
});
const [own, ...peers] = real as [(typeof real)[0], ...typeof real];
const places = real.flatMap(({ podCidrs, addresses }) => [...podCidrs, ...addresses]);
const peersAddresses = peers.flatMap(({ addresses }) => addresses);
/** Words of commands that touch a real peer. */
const words = new Set([
  ...real.map(({ publicKey }) => publicKey),
  ...places,
  ...real.flatMap(({ addresses }) => addresses.map(hostPrefix)),
]);

/** What a Node says, as src/cluster reads it. */
function read(name: string, created: string, values: Record<string, string | null>): NodeRecord {
  const present = Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== null);
  const annotations = Object.fromEntries(present);
  const node = { metadata: { name, creationTimestamp: created, annotations } };
  return saysAll(annotations) ? fromAnnotations(node) : fromNode(node);
}

const peerRecords = peers.map((peer) =>
  read(peer.name, "2024-01-01T00:00:00Z", annotationsOf({ version: "1.0.0", ...peer })),
);
const context = input({
  own: { ...own, podRanges: own.podCidrs.map((prefix) => podRange(prefix, [])) },
  underlay: underlay({ onLink: ["172.30.0.0/24", "fd30::/64"] }),
  reserved: ["172.30.0.1"],
});

/** What one pass leaves in the kernel and in the agent. */
interface State {
  tunnel: Tunnel;
  routes: ObservedRoutes;
  ruleset: ObservedRuleset | undefined;
  desired: Listed | undefined;
  plan: Plan | undefined;
}

/** @param restarted whether the agent knows no more than what the kernel has */
function pass(before: State, nodes: NodeRecord[], restarted = false): State & { commands: string[] } {
  const plan = restarted || !before.plan ? new Plan(standing(before.tunnel)) : before.plan;
  const desired = lists(plan.update({ ...context, nodes: tableOf(nodes) }));
  const peers = diffPeers("wigglenet", desired.peers, before.tunnel, new Map(), 1_000);
  const routes = diffRoutes("wigglenet", desired, before.routes);
  const wanted = ruleset(desired.firewall);
  const commands = [
    ...peers.add,
    ...routes.add,
    ...diffRuleset(wanted, before.ruleset),
    ...routes.remove,
    ...peers.remove,
  ];
  return {
    tunnel: peers.result,
    routes: settledRoutes(desired, before.routes),
    ruleset: settledRuleset(wanted),
    desired,
    plan,
    commands: commands.flatMap(({ argv, stdin = "" }) =>
      [...argv, ...changing(stdin, before.ruleset)].join(" ").split(/[\s,]+/),
    ),
  };
}

/** The lines of a transaction; of a set that is flushed and declared again, only the elements that come or go. */
function changing(stdin: string, before: ObservedRuleset | undefined): string[] {
  return stdin.split("\n").flatMap((line) => {
    const name = /^add set inet wigglenet (\S+)/.exec(line)?.[1];
    if (name === undefined || !stdin.includes(`flush set inet wigglenet ${name}\n`)) return line;
    const had = new Set(before?.sets[name]?.elements);
    const has = new Set(line.split(/[\s,]+/));
    return [...has.symmetricDifference(had)];
  });
}

/** Who has what of the real nodes: peers, routes and sets, a line for each prefix that overlaps one of theirs. */
function held({ tunnel, routes, ruleset }: State): [prefix: string, holder: string][] {
  const all: [string, string][] = [
    ...[...tunnel.peers].flatMap(([key, { allowedIps, endpoint }]) =>
      allowedIps.map((prefix): [string, string] => [prefix, `${key} ${endpoint}`]),
    ),
    ...routes.own.map((route): [string, string] => [route.prefix, line(route)]),
    ...Object.entries(ruleset?.sets ?? {}).flatMap(([name, { elements }]) =>
      elements.map((prefix): [string, string] => [prefix, name]),
    ),
  ];
  return all.filter(([prefix]) => places.some((place) => overlaps(place, prefix))).sort();
}

test("10,000 times three bad annotations: nothing throws, and real peers keep what is theirs, untouched", () => {
  const nothing: State = {
    tunnel: { publicKey: own.publicKey, port: 24601, marked: false, peers: new Map() },
    routes: { own: [], strange: [], rules: [] },
    ruleset: undefined,
    desired: undefined,
    plan: undefined,
  };
  const start = pass(nothing, peerRecords);
  const theirs = held(start);
  // AllowedIPs, routes with guards, and set elements of each peer; two guards and one set of our own.
  expect(theirs).toHaveLength(peers.length * (4 + 6 + 4) + 2 + 2);
  // One agent that lives through them all, restarted before every other.
  const seed = Date.now() % 2 ** 31;
  const realKeys = real.map(({ publicKey }) => publicKey);
  const seen = { malformed: 0, tunnelled: 0, contested: 0 };
  let state: State = start;
  for (const [run, value] of fc.sample(annotations(realKeys), { numRuns: 10_000, seed }).entries()) {
    const restarted = run % 2 === 1;
    // Where the kernel alone is known, a copy of all that a node says can be told by nothing but its age.
    const bad = read("bad", restarted ? "2025-01-01T00:00:00Z" : "2001-01-01T00:00:00Z", value);
    const after = pass(state, [bad, ...peerRecords], restarted);
    expect({ seed, run, held: held(after) }).toEqual({ seed, run, held: theirs });
    const touched = after.commands.filter((word) => words.has(word));
    expect({ seed, run, touched }).toEqual({ seed, run, touched: [] });
    seen.malformed += Number(bad.problems.length > 0);
    seen.tunnelled += Number(after.tunnel.peers.size > peers.length);
    seen.contested += Number(peersAddresses.some((address) => bad.addresses.includes(address)));
    state = after;
  }
  // What none of this would show if all were refused at once.
  expect(Object.values(seen).every((count) => count > 100)).toBe(true);
  const gone = pass(state, peerRecords);
  expect(gone.desired).toEqual(start.desired);
  expect(pass(gone, peerRecords).commands).toEqual([]);
}, 180_000);
