/**
 * What a kernel resource or a file of the node is to the agent. Each one's own file has its class: it looks at what is
 * there, keeps that until something may have changed it, and adds and removes. The order of all of them is in
 * `src/reconcile/phases.ts`.
 */
/**
 * Why what is known of the node may not hold any more.
 * - `links`: links or their addresses changed.
 * - `tunnel`: the tunnel's link was made or removed by us, and what was on it went with it.
 * - `firewall`: somebody else changed something of ours there, or may have.
 * - `drift`: anything may have changed.
 * - `resync`: nothing is known to have changed.
 * - `failure`: a change could not be carried out.
 */
export type Reason = "links" | "tunnel" | "firewall" | "drift" | "resync" | "failure";

/** @typeParam D what it needs of the desired state */
export interface Resource<D> {
  /** Forgets what was observed, if the reason concerns it. */
  invalidate(reason: Reason): void;
  /** Looks at what is there, unless that is known. */
  observe?(): Promise<unknown>;
  /** Adds, of the desired state, what has to be there before the tunnel is. */
  guard?(desired: D): Promise<void>;
  /** Adds what is missing, and changes what is different. */
  add?(desired: D): Promise<void>;
  /** Removes what should not be there. */
  remove?(desired: D): Promise<void>;
}

/** What was observed, until it is forgotten. */
export class Kept<T> {
  readonly #look: () => Promise<T>;
  #value: T | undefined;

  constructor(look: () => Promise<T>) {
    this.#look = look;
  }

  /** Undefined if nobody has looked since it was forgotten. */
  get known(): T | undefined {
    return this.#value;
  }

  async get(): Promise<T> {
    this.#value ??= await this.#look();
    return this.#value;
  }

  set(value: T): void {
    this.#value = value;
  }

  forget(): void {
    this.#value = undefined;
  }

  /** Carries a change out. Only if it succeeds is it known what is there afterwards. */
  async change(carryOut: () => Promise<void>, settle: () => T): Promise<void> {
    this.#value = undefined;
    await carryOut();
    this.#value = settle();
  }
}
