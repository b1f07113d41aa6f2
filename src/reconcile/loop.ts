/**
 * When passes are made: soon after an event, one at a time, and no more often than they cost; after a failure again,
 * later each time; and at a resync, whatever happens.
 */
import type { Observer } from "./observer.ts";

/** Milliseconds in which a burst of events becomes one pass. */
const coalesce = 25;
/** Milliseconds that the loop rests at most after a pass. It rests for as long as the pass took. */
const longestRest = 1_000;
/** Milliseconds after which a pass hangs: no command runs for longer than a minute, and few may. */
const passLimit = 180_000;
/** Milliseconds. A timer's limit is 2^31; to wake early is harmless. */
const longestSleep = 2 ** 31 - 1;

export interface Clock {
  /** Milliseconds of a clock that is never set. */
  now(): number;
  /** From 0 to 1. */
  random(): number;
  /** Resolves after so many milliseconds, or as soon as `signal` aborts. */
  sleep(milliseconds: number, signal: AbortSignal): Promise<void>;
}

export const realClock: Clock = {
  now: () => performance.now(),
  random: () => Math.random(),
  sleep: (milliseconds, signal) =>
    new Promise((resolve) => {
      if (signal.aborted) return resolve();
      const timer = setTimeout(resolve, milliseconds);
      const wake = () => {
        clearTimeout(timer);
        resolve();
      };
      signal.addEventListener("abort", wake, { once: true });
    }),
};

/** What is to be done at some time besides the passes. */
export interface Timer {
  /** In milliseconds of the clock; infinity: nothing is to be done. Once it has fired, it has to be another. */
  nextAt(): number;
  fire(): Promise<void>;
}

interface Options {
  /** Makes one pass. @param why for the log */
  pass(why: string): Promise<void>;
  /** Whether enough is known for a pass. Until then reasons are kept. */
  ready(): boolean;
  /** Milliseconds until what failed is tried again; undefined if nothing did. */
  retryIn(random: number): number | undefined;
  /** Seconds between two resyncs, of which each agent takes up to a tenth more or less. */
  resyncPeriod: number;
  /** A resync begins. */
  resync(): void;
  timers: readonly Timer[];
  observer: Pick<Observer, "passed">;
  clock: Clock;
}

export class Loop {
  readonly #options: Options;
  readonly #reasons = new Set<string>(["start"]);
  /** When the first of the reasons came. */
  #markedAt = Number.NEGATIVE_INFINITY;
  #resyncAt = Number.POSITIVE_INFINITY;
  #retryAt = Number.POSITIVE_INFINITY;
  #restUntil = Number.NEGATIVE_INFINITY;
  /** When the loop should have come round at the latest. */
  #dueBy = Number.POSITIVE_INFINITY;
  /** Why the last pass was made. */
  #why = "start";
  #waking = new AbortController();

  constructor(options: Options) {
    this.#options = options;
  }

  /** A pass is due. */
  mark(reason: string): void {
    if (this.#reasons.size === 0) this.#markedAt = this.#options.clock.now();
    this.#reasons.add(reason);
    this.#waking.abort();
  }

  /** Makes passes until `signal` aborts. What a pass throws ends it. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, timers, ready } = this.#options;
    signal.addEventListener("abort", () => this.#waking.abort());
    this.#markedAt = clock.now();
    this.#resyncAt = this.#nextResync();
    while (!signal.aborted) {
      this.#waking = new AbortController();
      const now = clock.now();
      const due = timers.filter((timer) => ready() && timer.nextAt() <= now);
      for (const timer of due) await timer.fire();
      if (now >= this.#passAt()) await this.#pass();
      else if (due.length === 0) {
        const until = ready()
          ? Math.min(this.#passAt(), ...timers.map((timer) => timer.nextAt()))
          : Number.POSITIVE_INFINITY;
        this.#dueBy = until + passLimit;
        await clock.sleep(Math.min(until - now, longestSleep), this.#waking.signal);
      }
    }
  }

  /** What keeps the loop from going on, if anything does; a new process may help. */
  stuck(now = this.#options.clock.now()): string | undefined {
    return now > this.#dueBy
      ? `the loop has hung for ${passLimit / 60_000} minutes in a pass (${this.#why})`
      : undefined;
  }

  #passAt(): number {
    if (!this.#options.ready()) return Number.POSITIVE_INFINITY;
    const marked = this.#reasons.size > 0 ? this.#markedAt + coalesce : Number.POSITIVE_INFINITY;
    return Math.max(this.#restUntil, Math.min(marked, this.#resyncAt, this.#retryAt));
  }

  async #pass(): Promise<void> {
    const { clock, pass, resync, retryIn, observer } = this.#options;
    const begin = clock.now();
    if (begin >= this.#resyncAt) {
      this.#resyncAt = this.#nextResync();
      resync();
      this.#reasons.add("resync");
    }
    if (begin >= this.#retryAt) this.#reasons.add("retry");
    this.#why = [...this.#reasons].join(", ");
    this.#reasons.clear();
    this.#dueBy = begin + passLimit;
    await pass(this.#why);
    const end = clock.now();
    observer.passed((end - begin) / 1000);
    this.#restUntil = end + Math.min(end - begin, longestRest);
    this.#retryAt = end + (retryIn(clock.random()) ?? Number.POSITIVE_INFINITY);
  }

  #nextResync(): number {
    const { clock, resyncPeriod } = this.#options;
    return clock.now() + resyncPeriod * 1_000 * (0.9 + 0.2 * clock.random());
  }
}
