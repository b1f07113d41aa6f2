/** Which peers of a new tunnel are greeted when: a cluster that starts after a power cut must not do it all at once. */
import type { Logger } from "pino";
import type { Command } from "../host/command.ts";
import type { Resource } from "../host/resource.ts";
import { greet } from "../host/wireguard.ts";
import type { ReadonlyTable } from "../net/table.ts";
import type { Peer } from "../plan/desired.ts";

/**
 * Milliseconds over which nodes that start together spread the beginning: of two handshakes that cross each other on the way,
 * each end drops its own, and tries again only after 5 s.
 */
const spread = 500;
const peersAtOnce = 40;
/** Milliseconds between two batches. */
const pace = 100;
/**
 * Each peer may be a neighbour on the link, and the kernel keeps those of the last 5 s, but not more than gc_thresh3, by default
 * 1,024.
 */
const neighbours = { most: 800, within: 5_500 };

export class Greeting {
  #left: string[] = [];
  /** When each of the last batches was taken, and how many peers it had. */
  #taken: { at: number; count: number }[] = [];
  /** When the next are due, in milliseconds of performance.now(). */
  nextAt = Number.POSITIVE_INFINITY;

  /** @param keys of the peers, whom to greet in a random order */
  begin(keys: readonly string[], now: number): void {
    this.#left = keys
      .map((key) => ({ key, at: Math.random() }))
      .sort((a, b) => a.at - b.at)
      .map(({ key }) => key);
    this.nextAt = keys.length > 0 ? now + Math.random() * spread : Number.POSITIVE_INFINITY;
  }

  /** The keys of those who are due, of those that are still peers. */
  take(now: number, isPeer: (key: string) => boolean): string[] {
    this.#left = this.#left.filter(isPeer);
    this.#taken = this.#taken.filter(({ at }) => at > now - neighbours.within);
    const recent = this.#taken.reduce((sum, { count }) => sum + count, 0);
    const batch = this.#left.splice(0, Math.min(peersAtOnce, neighbours.most - recent));
    if (batch.length > 0) this.#taken.push({ at: now, count: batch.length });
    this.nextAt = this.#left.length > 0 ? now + pace : Number.POSITIVE_INFINITY;
    return batch;
  }
}

/** What a greeting needs of the world. */
interface Outside {
  link: string;
  /** Carries commands out; a failure is told, and the next peers are greeted all the same. */
  perform(commands: readonly Command[]): Promise<unknown>;
  /** In a dry run all are greeted at once. */
  dry: boolean;
  /** Whether the key was made just now. */
  newKey: boolean;
  /** Whether the tunnel had no peers when the pass began: it was made just now, by us or by the node's wireguard-go. */
  isNew(): boolean;
  log: Logger;
}

/** Greets the peers of each new tunnel that may hold a session with an earlier life of it. */
export class Greeter implements Resource<{ peers: ReadonlyTable<Peer> }> {
  readonly #outside: Outside;
  readonly #greeting = new Greeting();
  /** Whether this is the key of a peer that can be greeted. */
  #canGreet: (key: string) => boolean = () => false;
  #count = 0;
  /** Nobody has a session with a key that is new: its peers come to it, as soon as they have something to send. */
  #acquainted: boolean;

  constructor(outside: Outside) {
    this.#outside = outside;
    this.#acquainted = !outside.newKey;
  }

  /** When the next peers are to be greeted, in milliseconds of performance.now(). */
  get nextAt(): number {
    return this.#greeting.nextAt;
  }

  /** Nothing is kept here that a change of the node could make wrong. */
  invalidate(): void {}

  /** The tunnel has these peers. */
  async add({ peers }: { peers: ReadonlyTable<Peer> }): Promise<void> {
    this.#canGreet = (key) => peers.get(key)?.endpoint !== undefined;
    if (this.#outside.isNew() && this.#acquainted)
      this.#greeting.begin([...peers.keys()].filter(this.#canGreet), performance.now());
    this.#acquainted ||= peers.size > 0;
    while (this.#outside.dry && this.nextAt !== Number.POSITIVE_INFINITY) await this.greet();
  }

  /** Greets those that are due. Not in a pass, which a large cluster would keep waiting. */
  async greet(now = performance.now()): Promise<void> {
    const { link, perform, log } = this.#outside;
    const keys = this.#greeting.take(now, this.#canGreet);
    await perform(greet(link, keys));
    this.#count += keys.length;
    if (this.nextAt !== Number.POSITIVE_INFINITY) return;
    log.info({ peers: this.#count }, "peers greeted");
    this.#count = 0;
  }
}
