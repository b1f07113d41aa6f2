/** Others that change what this agent has written to its Node: answered at once, but not without end. */

type Annotations = Record<string, string | null>;

/** So many changes are put back at once. */
const patience = 10;
/** Milliseconds that the next one waits, doubled for each after it, and how many at most. */
const delays = { first: 1_000, longest: 300_000 };
/** Milliseconds without a change after which all is forgotten; or twice the last delay, if that is longer. */
const quiet = 60_000;

export class Contest {
  /** What was written last. */
  #written: Annotations | undefined;
  /** How often that was changed, without a long quiet between. */
  #changes = 0;
  #changedAt = Number.NEGATIVE_INFINITY;
  /** Whether the last change has been counted, and not put back yet. */
  #waits = false;
  /** The annotations that are changed again and again; empty if none are. */
  names: string[] = [];
  /** When what waits may be written, in milliseconds of performance.now(). */
  dueAt = Number.POSITIVE_INFINITY;

  /**
   * Whether there is something to write, and now is the time.
   * @param present what the Node has
   * @param wanted what it should have; null: not at all
   * @param now in milliseconds of performance.now()
   */
  mayWrite(present: Record<string, string>, wanted: Annotations, now: number): boolean {
    this.dueAt = Number.POSITIVE_INFINITY;
    const differing = Object.keys(wanted).filter((name) => (present[name] ?? null) !== wanted[name]);
    if (differing.length === 0) {
      if (now >= this.#changedAt + Math.max(quiet, 2 * this.#delay)) {
        this.#changes = 0;
        this.names = [];
      }
      return false;
    }
    if (!Bun.deepEquals(this.#written, wanted)) return true;
    if (!this.#waits) {
      this.#waits = true;
      this.#changes += 1;
      this.#changedAt = now;
    }
    if (this.#delay > 0) this.names = differing.sort();
    if (now >= this.#changedAt + this.#delay) return true;
    this.dueAt = this.#changedAt + this.#delay;
    return false;
  }

  wrote(wanted: Annotations): void {
    this.#written = wanted;
    this.#waits = false;
  }

  get #delay(): number {
    const more = this.#changes - patience;
    return more > 0 ? Math.min(delays.longest, delays.first * 2 ** (more - 1)) : 0;
  }
}
