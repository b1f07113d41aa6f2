/** What of a pass fails: each reason told once, how often in a row, and when it is to be tried again. */
import type { Logger } from "pino";
import { backoff } from "../cluster/reflector.ts";
import type { Observer } from "./observer.ts";

interface Failure {
  /** In a row. */
  count: number;
  /** The latest. */
  message: string;
  /** What was told since it last worked, without numbers: those differ from one attempt to the next. */
  told: Set<string>;
}

/** More reasons than this in a row are not told: something in them is different each time. */
const mostReasons = 10;

export class Failures {
  readonly #log: Logger;
  readonly #observer: Pick<Observer, "failed">;
  readonly #failed: () => void;
  readonly #current = new Map<string, Failure>();
  readonly #attempted = new Set<string>();

  /** @param failed called after each failure */
  constructor(log: Logger, observer: Pick<Observer, "failed">, failed: () => void) {
    this.#log = log;
    this.#observer = observer;
    this.#failed = failed;
  }

  /** What fails now, `RESOURCE: REASON` each. */
  get reasons(): string[] {
    return [...this.#current].map(([resource, { message }]) => `${resource}: ${message}`);
  }

  /** A pass begins; what the last one did not try any more has no failure left. */
  begin(): void {
    for (const resource of this.#current.keys())
      if (!this.#attempted.has(resource)) this.#current.delete(resource);
    this.#attempted.clear();
  }

  /** Runs one resource's part. @returns undefined if it failed, which is told and noted */
  async attempt<T>(resource: string, part: () => Promise<T>): Promise<T | undefined> {
    this.#attempted.add(resource);
    try {
      const result = await part();
      if (this.#current.delete(resource)) this.#log.info({ resource }, "works again");
      return result;
    } catch (error) {
      const { message } = error as Error;
      const { count, told } = this.#current.get(resource) ?? { count: 0, told: new Set<string>() };
      const reason = message.replace(/\d+/g, "0");
      if (!told.has(reason) && told.size < mostReasons) {
        told.add(reason);
        this.#log.error({ resource, error: message }, "failed; it is tried again");
      }
      this.#observer.failed(resource);
      this.#current.set(resource, { count: count + 1, message, told });
      this.#failed();
      return undefined;
    }
  }

  /** Milliseconds until the next attempt, by how often in a row the worst failed; undefined if all work. */
  retryIn(random: number): number | undefined {
    const worst = Math.max(0, ...[...this.#current.values()].map((failure) => failure.count));
    return worst > 0 ? backoff(worst, random) : undefined;
  }
}
