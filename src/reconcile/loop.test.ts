import { describe, expect, test } from "bun:test";
import { type Clock, Loop, type Timer } from "./loop.ts";

/** A clock that stands still until it is moved on. */
class TestClock implements Clock {
  #now = 0;
  readonly #sleepers = new Set<{ until: number; wake: () => void }>();

  now(): number {
    return this.#now;
  }

  random(): number {
    return 0.5;
  }

  sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const sleeper = {
        until: this.#now + milliseconds,
        wake: () => {
          this.#sleepers.delete(sleeper);
          resolve();
        },
      };
      this.#sleepers.add(sleeper);
      signal.addEventListener("abort", sleeper.wake, { once: true });
    });
  }

  /** Moves on by so many milliseconds, and lets all happen that is due meanwhile. */
  async pass(milliseconds: number): Promise<void> {
    const end = this.#now + milliseconds;
    for (;;) {
      await settled();
      const next = [...this.#sleepers].sort((a, b) => a.until - b.until)[0];
      if (next === undefined || next.until > end) break;
      this.#now = next.until;
      next.wake();
    }
    this.#now = end;
    await settled();
  }
}

/** Whatever can go on without the clock has gone on. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

/** A loop that has begun, with what its passes were made for and when. */
function begun(options: { cost?: (pass: number) => number; failures?: number[]; timers?: Timer[] } = {}) {
  const clock = new TestClock();
  const stop = new AbortController();
  const passes: [at: number, why: string][] = [];
  const durations: number[] = [];
  const known = { ready: true, resyncs: 0 };
  const retries = [...(options.failures ?? [])];
  const loop = new Loop({
    async pass(why) {
      passes.push([clock.now(), why]);
      const cost = options.cost?.(passes.length) ?? 0;
      if (cost > 0) await clock.sleep(cost, new AbortController().signal);
    },
    ready: () => known.ready,
    retryIn: () => retries.shift(),
    resyncPeriod: 60,
    resync: () => {
      known.resyncs += 1;
    },
    timers: options.timers ?? [],
    observer: { passed: (seconds) => durations.push(seconds) },
    clock,
  });
  const running = loop.run(stop.signal);
  const end = async () => {
    stop.abort();
    // A pass that is under way comes to its end.
    await clock.pass(1_000_000);
    await running;
  };
  return { loop, clock, passes, durations, known, end };
}

test("the first pass is made at once, the next at a resync", async () => {
  const { clock, passes, known, end } = begun();
  await clock.pass(59_999);
  expect(passes).toEqual([[25, "start"]]);
  await clock.pass(60_001);
  expect(passes.slice(1)).toEqual([
    [60_000, "resync"],
    [120_000, "resync"],
  ]);
  expect(known.resyncs).toBe(2);
  await end();
});

test("a burst of events is one pass, 25 ms after its first", async () => {
  const { loop, clock, passes, end } = begun();
  await clock.pass(1_000);
  for (const reason of ["cluster", "links changed", "cluster"]) {
    loop.mark(reason);
    await clock.pass(10);
  }
  await clock.pass(1_000);
  expect(passes.slice(1)).toEqual([[1_025, "cluster, links changed"]]);
  await end();
});

describe("under a storm of events", () => {
  /** An event each millisecond for so long. */
  async function storm(cost: number, milliseconds: number) {
    const { loop, clock, passes, durations, end } = begun({ cost: () => cost });
    for (let now = 0; now < milliseconds; now += 1) {
      loop.mark("cluster");
      await clock.pass(1);
    }
    await end();
    return { passes: passes.length, busy: durations.reduce((sum, each) => sum + each * 1_000, 0) };
  }

  test.each<[cost: number, passes: number]>([
    [1, 40],
    [50, 10],
    [200, 3],
  ])("a pass of %d ms is followed by as long a rest: half of the time at most", async (cost, passes) => {
    const made = await storm(cost, 1_000);
    expect(made.passes).toBe(passes);
    expect(made.busy).toBeLessThanOrEqual(500 + cost);
  });

  test("after a pass of a minute it rests for a second", async () => {
    const { loop, clock, passes, end } = begun({ cost: (pass) => (pass === 1 ? 60_000 : 0) });
    await clock.pass(30_000);
    loop.mark("cluster");
    await clock.pass(31_024);
    expect(passes).toHaveLength(1);
    await clock.pass(1);
    // The resync has become due meanwhile.
    expect(passes[1]).toEqual([61_025, "cluster, resync"]);
    await end();
  });
});

test("what failed is tried again when its time has come, or with the next pass", async () => {
  const { loop, clock, passes, end } = begun({ failures: [250, 500, 1_000] });
  await clock.pass(1_000);
  expect(passes.slice(1)).toEqual([
    [275, "retry"],
    [775, "retry"],
  ]);
  loop.mark("cluster");
  await clock.pass(10_000);
  expect(passes.slice(3)).toEqual([[1_025, "cluster"]]);
  await end();
});

test("an event during a pass has a pass of its own", async () => {
  const { loop, clock, passes, end } = begun({ cost: () => 100 });
  await clock.pass(50);
  loop.mark("drift");
  await clock.pass(1_000);
  expect(passes).toEqual([
    [25, "start"],
    [225, "drift"],
  ]);
  await end();
});

test("other timers fire at their time, also while the loop rests", async () => {
  const clock = { at: [0, 150, 160] };
  const fired: number[] = [];
  let now = () => 0;
  const timer: Timer = {
    nextAt: () => clock.at[0] ?? Number.POSITIVE_INFINITY,
    fire: async () => {
      clock.at.shift();
      fired.push(now());
    },
  };
  const loop = begun({ cost: () => 100, timers: [timer] });
  now = () => loop.clock.now();
  await loop.clock.pass(1_000);
  expect(fired).toEqual([0, 150, 160]);
  expect(loop.passes).toEqual([[25, "start"]]);
  await loop.end();
});

describe("hanging", () => {
  test("a pass that hangs is told of after three minutes", async () => {
    const { loop, clock, end } = begun({ cost: () => 1_000_000 });
    await clock.pass(170_000);
    expect(loop.stuck()).toBeUndefined();
    await clock.pass(11_000);
    expect(loop.stuck()).toBe("the loop has hung for 3 minutes in a pass (start)");
    await clock.pass(1_000_000);
    expect(loop.stuck()).toBeUndefined();
    await end();
  });

  test("while the API server is not there an agent waits, which is no hanging", async () => {
    const { loop, clock, passes, known, end } = begun();
    known.ready = false;
    await clock.pass(86_400_000);
    expect(loop.stuck()).toBeUndefined();
    expect(passes).toEqual([]);
    known.ready = true;
    loop.mark("cluster");
    await clock.pass(25);
    expect(passes).toEqual([[86_400_000, "start, cluster, resync"]]);
    await end();
  });
});

test("it ends at once, also while it rests", async () => {
  const { clock, passes, end } = begun();
  await clock.pass(100);
  await end();
  expect(passes).toHaveLength(1);
});
