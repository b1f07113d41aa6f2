import { expect, test } from "bun:test";
import { compareAddresses } from "../net/address.ts";
import { type Input, input, lists, node, plan, planned } from "./fixtures/input.ts";
import { type Present, retainElements, retain as retainTables } from "./retained.ts";

const all = input({ nodes: [node(1), node(2)] });
const known = lists(planned(all));
const retain = (input: Input, present: Present) => lists(retainTables(planned(input), present));
const nothing: Present = { peers: new Map(), routes: [], rules: [] };
const present = {
  peers: new Map(known.peers.map((peer) => [peer.publicKey, peer])),
  routes: known.routes,
  rules: known.rules,
};

test("where nothing is there, it is what was desired", () => {
  expect(retain(all, nothing)).toEqual(known);
});

test("where all is there, too", () => {
  expect(retain(all, present)).toEqual(known);
});

test("what is there and not known of stays: a peer with its endpoint, its routes, its elements", () => {
  const some = input({ nodes: [node(1)] });
  const retained = retain(some, present);
  expect(retained.routes).toEqual(known.routes);
  expect(retained.peers.map(({ node: _, ...peer }) => peer)).toEqual(
    known.peers.map(({ node: _, ...peer }) => peer),
  );
  expect(retained.peers.map(({ node }) => node)).toEqual(["n1", ""]);
  expect(retainElements(plan(some).firewall, (set) => known.firewall.sets[set])).toEqual(known.firewall);
});

test("a prefix stays with who has it, whoever claims it; one that nobody has goes to who does", () => {
  const moved = input({
    nodes: [node(1, { podCidrs: ["10.1.1.0/24", "10.1.2.0/24", "10.1.9.0/24"] }), node(2, { podCidrs: [] })],
  });
  const prefixes = (key: string) =>
    retain(moved, present).peers.find((peer) => peer.publicKey === key)?.allowedIps;
  expect(prefixes("key-1")).toEqual(
    ["10.1.1.0/24", "10.1.9.0/24", "192.0.2.1/32", "fd00:1:0:1::/64", "2001:db8::1/128"].sort(),
  );
  expect(prefixes("key-2")).toContain("10.1.2.0/24");
});

test("of a route that leads another way by now there is one", () => {
  const elsewhere = known.routes.map((route) =>
    route.type === "tunnel" ? { ...route, type: "throw" as const } : route,
  );
  expect(retain(all, { ...present, routes: elsewhere }).routes).toEqual(known.routes);
});

test("elements do not overlap", () => {
  const { sets } = retainElements(known.firewall, (set) => (set === "remote" ? ["10.1.0.0/16"] : []));
  expect(sets.remote).toEqual(["10.1.0.0/16", "fd00:1:0:1::/64", "fd00:1:0:2::/64"]);
});

test("an element of another's that is no prefix does not stay", () => {
  const { sets } = retainElements(known.firewall, (set) =>
    set === "remote" ? ["10.9.0.1-10.9.0.5", "10.9.1.0/24", "2001:db8::1-2001:db8::9"] : [],
  );
  expect(sets.remote).toEqual([...known.firewall.sets.remote, "10.9.1.0/24"].sort(compareAddresses));
});
