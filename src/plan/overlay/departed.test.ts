import { expect, test } from "bun:test";
import { Table } from "../../net/table.ts";
import { Departed } from "./departed.ts";
import { type Route, routeKey } from "./routes.ts";

const guard = (prefix: string): Route => ({ type: "unreachable", prefix, table: "24600" });
const exception = (prefix: string): Route => ({ type: "throw", prefix, table: "24600" });

/** Looks at what is claimed and what is there, in tables that are kept. */
function observer() {
  const departed = new Departed();
  const nodes = new Table<{ podCidrs: readonly string[] }>();
  const routes = new Table<Route>((a, b) => routeKey(a) === routeKey(b));
  return (podCidrs: readonly string[], present: readonly Route[], now: number) => {
    nodes.replace(new Map(podCidrs.slice(1).map((prefix) => [`node of ${prefix}`, { podCidrs: [prefix] }])));
    routes.replace(new Map(present.map((route) => [routeKey(route), route])));
    return departed.claims(podCidrs.slice(0, 1), nodes, routes, now);
  };
}

const [own, its, other] = ["10.1.0.0/24", "10.1.9.0/24", "10.1.8.0/24"];

// Looks at seconds, with what others claim then; each plan puts in guards of what is claimed and of what has left.
test.each<[title: string, looks: [second: number, claimed?: string][], expected: string[]]>([
  ["0 s", [[0]], [its]],
  ["599 s", [[0], [599]], [its]],
  ["599 s, often looked at", [[0], [100], [300], [599]], [its]],
  ["601 s", [[0], [601]], []],
  ["601 s, often looked at", [[0], [100], [300], [599], [601]], []],
  ["long after its guard was seen last", [[0], [601], [602], [603], [5_000]], []],
  ["another node has its pod CIDR", [[0], [300, its]], []],
  ["another node has a part of its pod CIDR", [[0], [300, "10.1.9.0/25"]], [its]],
  ["it came back", [[0], [300, its], [601, its]], []],
  ["it came back after its time", [[0], [601], [700, its]], []],
  ["it came back, and left at 400 s: 599 s after that", [[0], [300, its], [400], [999]], [its]],
  ["it came back, and left at 400 s: 601 s after that", [[0], [300, its], [400], [1_001]], []],
  ["another left at 300 s: 601 s after the first", [[0, other], [300], [601]], [other]],
  ["another left at 300 s: 601 s after that", [[0, other], [300], [601], [901]], []],
])("a node left at 0 s; %s", (_, looks, expected) => {
  const look = observer();
  let guards = [own, its];
  let left: string[] = [];
  for (const [second, claimed = []] of looks) {
    const podCidrs = [own, claimed].flat();
    left = look(podCidrs, guards.map(guard), second * 1_000);
    guards = [...podCidrs, ...left];
  }
  expect(left).toEqual(expected);
});

test("a guard that somebody took away is still wanted", () => {
  const look = observer();
  look([own], [own, its].map(guard), 0);
  expect(look([own], [guard(own)], 300_000)).toEqual([its]);
});

test("an address inside stays on its way for as long, and no other does", () => {
  const look = observer();
  const routes = [guard(own), guard(its), exception("10.1.9.9/32"), exception("10.1.0.9/32")];
  expect(look([own], routes, 0)).toEqual([its, "10.1.9.9"]);
  expect(look([own], routes, 599_000)).toEqual([its, "10.1.9.9"]);
  expect(look([own], routes, 601_000)).toEqual([]);
});
