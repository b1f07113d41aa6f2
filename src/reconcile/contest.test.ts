import { expect, test } from "bun:test";
import { Contest } from "./contest.ts";

const [ours, theirs] = [{ key: "ours" }, { key: "theirs" }];

/** Another writer answers each of our writes at once. When we wrote, in seconds, from one second to another. */
function war(contest: Contest, from: number, to: number): number[] {
  const writes: number[] = [];
  for (let now = from * 1_000; now < to * 1_000; now += 100)
    if (contest.mayWrite(theirs, ours, now)) {
      contest.wrote(ours);
      writes.push(now / 1_000);
    }
  return writes;
}

test("what somebody changes is put back at once, ten times; then less and less often, in the end every five minutes", () => {
  const writes = war(new Contest(), 0, 3_600);
  const gaps = writes.slice(1).map((at, index) => Math.round((at - writes[index]!) * 10) / 10);
  expect(gaps.slice(0, 19)).toEqual(
    [...Array(10).fill(0.1), 1, 2, 4, 8, 16, 32, 64, 128, 256].map((gap) => (gap < 1 ? gap : gap + 0.1)),
  );
  expect(gaps.slice(19).length).toBeGreaterThan(5);
  expect(gaps.slice(19).every((gap) => gap === 300.1)).toBe(true);
});

test("it is due when it may be written again, and not before it is written and changed once more", () => {
  const contest = new Contest();
  war(contest, 0, 5);
  expect(contest.dueAt).toBeGreaterThan(5_000);
  expect(contest.mayWrite(theirs, ours, contest.dueAt - 1)).toBe(false);
  expect(contest.mayWrite(theirs, ours, contest.dueAt)).toBe(true);
  contest.wrote(ours);
  expect(contest.dueAt).toBe(Number.POSITIVE_INFINITY);
});

test("what this node wants anew is written at once", () => {
  const contest = new Contest();
  war(contest, 0, 60);
  expect(contest.mayWrite(theirs, { key: "new" }, 60_000)).toBe(true);
});

test("it is named while it is put back late, until it was quiet for a while; then it begins anew", () => {
  const contest = new Contest();
  war(contest, 0, 1);
  expect(contest.names).toEqual([]);
  war(contest, 1, 3);
  expect(contest.names).toEqual(["key"]);
  expect(contest.mayWrite(ours, ours, 30_000)).toBe(false);
  expect(contest.names).toEqual(["key"]);
  expect(contest.mayWrite(ours, ours, 70_000)).toBe(false);
  expect(contest.names).toEqual([]);
  expect(war(contest, 100, 101)).toHaveLength(10);
});
