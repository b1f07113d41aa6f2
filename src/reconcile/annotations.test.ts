import { expect, test } from "bun:test";
import pino from "pino";
import { Findings } from "../report/findings.ts";
import { Annotations } from "./annotations.ts";
import { type Clock, Loop } from "./loop.ts";
import { noObserver } from "./observer.ts";

const wanted = { "wigglenet/pod-cidrs": "[]" };

function annotations(): Annotations {
  return new Annotations({
    config: { firewallOnly: false },
    nodes: { own: { metadata: { name: "n1" } }, ownIsThere: true },
    executor: { dry: false },
    annotate: async () => undefined,
    findings: new Findings(pino({ level: "silent" })),
  });
}

test("passes that fail before they come to the annotations are not made anew as pods are due to start", async () => {
  const own = annotations();
  await own.add({ annotations: wanted });
  expect(own.dueAt).toBeLessThan(performance.now() + 1_100);
  // From then on the tunnel fails, for ten seconds of a clock that runs as fast as it is asked.
  const stop = new AbortController();
  let now = own.dueAt;
  const end = now + 10_000;
  const clock: Clock = {
    now: () => now,
    random: () => 0.5,
    sleep: async (milliseconds) => {
      now += Math.min(milliseconds, end - now);
      if (now >= end) stop.abort();
    },
  };
  let [passes, fired] = [0, 0];
  const loop = new Loop({
    pass: async () => {
      passes += 1;
      now += 10;
      if (now >= end) stop.abort();
    },
    ready: () => true,
    retryIn: () => 2_000,
    resyncPeriod: 60,
    resync: () => undefined,
    timers: [
      {
        nextAt: () => own.dueAt,
        fire: async () => {
          fired += 1;
          // The loop does not sleep while a timer is due.
          if (fired > 100) stop.abort();
          loop.mark(own.due());
        },
      },
    ],
    observer: noObserver,
    clock,
  });
  await loop.run(stop.signal);
  expect(fired).toBe(1);
  expect(passes).toBeLessThan(8);
});
