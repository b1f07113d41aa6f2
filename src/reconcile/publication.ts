/** When this node's pods may start: not before the other nodes have read whose they are. */
import { annotation } from "../plan/overlay/node.ts";

/** Milliseconds in which the other nodes read what this one says of itself. */
const settling = 1_000;

export class Publication {
  #startAt = 0;
  /** When the pass is due in which pods may start, in milliseconds of performance.now(). */
  dueAt = Number.POSITIVE_INFINITY;

  /**
   * Whether pods may start. What the other nodes send to them before they know this node's pod CIDRs leaves in the clear.
   * @param before the annotations that the Node had
   * @param wanted those that it should have
   * @param published whether it has them now
   * @param now in milliseconds of performance.now()
   */
  mayStart(
    before: Record<string, string>,
    wanted: Record<string, string | null>,
    published: boolean,
    now: number,
  ): boolean {
    const known = before[annotation.podCidrs] === wanted[annotation.podCidrs];
    if (!known && published) this.#startAt = now + settling;
    const may = (known || published) && now >= this.#startAt;
    this.dueAt = (known || published) && !may ? this.#startAt : Number.POSITIVE_INFINITY;
    return may;
  }
}
