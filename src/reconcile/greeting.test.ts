import { expect, test } from "bun:test";
import { Greeting } from "./greeting.ts";

const keys = (count: number) => Array.from({ length: count }, (_, n) => `key-${n}`);

/** When how many peers were greeted, from the first on, in milliseconds; whom, in order. */
function run(greeting: Greeting, present: (key: string) => boolean = () => true) {
  const when: [number, number][] = [];
  const whom: string[] = [];
  const begin = greeting.nextAt;
  while (greeting.nextAt !== Number.POSITIVE_INFINITY) {
    const now = greeting.nextAt;
    const batch = greeting.take(now, present);
    when.push([Math.round(now - begin), batch.length]);
    whom.push(...batch);
  }
  return { when, whom };
}

test("40 at a time, 100 ms apart, begun within half a second, in an order that no other node has", () => {
  const orders = [1, 2].map(() => {
    const greeting = new Greeting();
    greeting.begin(keys(100), 1_000);
    expect(greeting.nextAt).toBeWithin(1_000, 1_500);
    const { when, whom } = run(greeting);
    expect(when).toEqual([
      [0, 40],
      [100, 40],
      [200, 20],
    ]);
    expect([...whom].sort()).toEqual(keys(100).sort());
    return whom;
  });
  expect(orders[0]).not.toEqual(orders[1]!);
});

// The kernel forgets a neighbour that was asked for within the last 5 s only if there are more than 1,024.
test("of 5,000 no more within 5 s than a table of neighbours has room for", () => {
  const greeting = new Greeting();
  greeting.begin(keys(5_000), 0);
  const { when, whom } = run(greeting);
  expect(new Set(whom).size).toBe(5_000);
  for (const [from] of when) {
    const within = when.filter(([at]) => at >= from && at < from + 5_000);
    expect(within.reduce((sum, [, count]) => sum + count, 0)).toBeLessThanOrEqual(800);
  }
  expect(when.at(-1)![0]).toBeLessThan(40_000);
});

test("a peer that left meanwhile is not greeted, which would make it a peer again", () => {
  const greeting = new Greeting();
  greeting.begin(keys(3), 0);
  expect(run(greeting, (key) => key !== "key-1").whom.sort()).toEqual(["key-0", "key-2"]);
});

test("nobody is greeted where there is nobody, and a new tunnel begins anew", () => {
  const greeting = new Greeting();
  greeting.begin([], 0);
  expect(greeting.nextAt).toBe(Number.POSITIVE_INFINITY);
  greeting.begin(keys(60), 0);
  greeting.take(greeting.nextAt, () => true);
  greeting.begin(keys(60), 0);
  expect(run(greeting).whom.length).toBe(60);
});
