/** What several nodes claim, and none is known to have had: it is sent to nobody, and not in the clear either. */
import { expect, test } from "bun:test";
import { input, line, native, node, plan, type Tweak } from "./fixtures/input.ts";

/** Peers' prefixes, routes and sets that have to do with it; of three nodes the last is another's clone, or worse. */
function outcome(tweak: Tweak) {
  const { peers, routes, firewall, problems } = plan(input(tweak));
  const { remote, nodes, hosts } = firewall.sets;
  return {
    peers: peers.flatMap((peer) => peer.allowedIps.map((prefix) => `${peer.node} ${prefix}`)),
    routes: routes.map(line),
    sets: { remote, nodes, hosts },
    problems: [...problems.keys()],
  };
}

const clone = (claims: Parameters<typeof node>[1]) => node(9, { podCidrs: [], addresses: [], ...claims });

test("a pod CIDR: no peer has it, it is unreachable, and pods' packets to it are dropped", () => {
  const { peers, routes, sets, problems } = outcome({
    nodes: [node(1), clone({ podCidrs: ["10.1.1.0/24"] })],
  });
  expect(peers).not.toContain("n1 10.1.1.0/24");
  expect(peers).not.toContain("n9 10.1.1.0/24");
  expect(peers).toContain("n1 fd00:1:0:1::/64");
  expect(routes.filter((text) => text.includes(" 10.1.1.0/24"))).toEqual(["24600 10.1.1.0/24 unreachable"]);
  expect(sets.remote).toContain("10.1.1.0/24");
  expect(problems).toEqual(["n1", "n9"]);
});

test("an address: in no peer and no route, but pods' packets to it are dropped", () => {
  const { peers, routes, sets } = outcome({ nodes: [node(1), clone({ addresses: ["192.0.2.1"] })] });
  expect(peers.filter((text) => text.includes("192.0.2.1/32"))).toEqual([]);
  expect(routes.filter((text) => text.includes(" 192.0.2.1/32"))).toEqual([]);
  expect(sets.nodes).toContain("192.0.2.1");
});

test("the API server's address: as any host outside, as it speaks TLS", () => {
  const { peers, sets } = outcome({
    nodes: [node(1), clone({ addresses: ["192.0.2.1"] })],
    reserved: ["192.0.2.1"],
  });
  expect(peers.filter((text) => text.includes("192.0.2.1/32"))).toEqual([]);
  expect(sets.nodes).not.toContain("192.0.2.1");
});

test("a pod CIDR that overlaps this node's own contests nothing", () => {
  const far = node(1, { addresses: ["10.50.0.1"], endpoints: ["10.50.0.1"] });
  const { routes, sets, problems } = outcome({ nodes: [far, clone({ podCidrs: ["10.0.0.0/8"] })] });
  expect(routes).toContain("24601 10.50.0.1/32 tunnel");
  expect([...sets.remote, ...sets.nodes]).not.toContain("10.0.0.0/8");
  expect(problems).toEqual(["n9"]);
});

test("a pod CIDR with nodes in it: those are reached as before, all else in it is not", () => {
  const far = node(1, { podCidrs: ["10.2.1.0/24"], addresses: ["10.50.0.1"], endpoints: ["10.50.0.1"] });
  const hostile = clone({ podCidrs: ["10.0.0.0/8"] });
  const own = { podRanges: [] };
  const { routes, sets } = outcome({ own, nodes: [far, hostile] });
  expect(routes.filter((text) => text.includes(" 10."))).toEqual([
    "24600 10.0.0.0/8 unreachable",
    "24600 10.2.1.0/24 unreachable",
    "24600 10.50.0.1/32 throw",
  ]);
  // It may be a pod's, for all that is known: the node itself reaches it, its pods do not.
  expect(sets.nodes).toContain("10.50.0.1");
  expect(sets.remote).not.toContain("10.0.0.0/8");
  expect(sets.remote).toContain("10.2.1.0/24");
});

test("routed natively it is nothing of ours", () => {
  const { routes, sets } = outcome({
    nodes: [node(1), clone({ podCidrs: ["10.1.1.0/24"], addresses: ["192.0.2.1"] })],
    ...native("ipv4"),
  });
  expect(routes.filter((text) => /^(10\.1\.1\.|192)/.test(text))).toEqual([]);
  expect(sets.remote).not.toContain("10.1.1.0/24");
});

test("who had it keeps all of it", () => {
  const first = plan(input({ nodes: [node(1)] }));
  const rival = clone({ podCidrs: ["10.1.1.0/24"], addresses: ["192.0.2.1"] });
  const second = plan({ ...input({ nodes: [rival, node(1)] }), standing: first.standing });
  const without = ({ peers, routes, firewall }: typeof first) => ({
    peers: peers.filter((peer) => peer.node === "n1"),
    routes,
    sets: firewall.sets,
  });
  expect(without(second)).toEqual(without(first));
  expect([...second.problems.keys()]).toEqual(["n9"]);
});
