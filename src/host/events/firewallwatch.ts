/** Follows what others change of ours in nf_tables: by netlink, or by looks where no socket can be opened. */

import type { Netlink } from "./netlink.ts";
import { listChains, type NftChain, tellsOfOurs } from "./nfnetlink.ts";

/** Milliseconds between two looks at what the kernel tells. */
const interval = 200;
/** Milliseconds between two signals that something of ours was changed. */
const spacing = 1_000;
/** The same while somebody writes more than the kernel can keep for us. */
const lossSpacing = 5_000;
/** Milliseconds between two lists of chains where there is no socket, and how much longer than a list takes it is at least. */
const lookSpacing = 5_000;
const lookShare = 100;

export class FirewallWatch {
  #socket: () => Pick<Netlink, "drain"> | undefined = () => undefined;
  #changed: () => void = () => undefined;
  readonly #list: () => Promise<NftChain[] | undefined>;
  readonly #now: () => number;
  #writing = false;
  /** Since the last signal. */
  #seen = { changed: false, lost: false };
  #toldAt = Number.NEGATIVE_INFINITY;
  #listening = false;
  /** The chains that the last look saw, where there is no socket. */
  #chains: string | undefined;
  #lookAt = Number.NEGATIVE_INFINITY;

  constructor(list = listChains, now = () => performance.now()) {
    this.#list = list;
    this.#now = now;
  }

  /**
   * @param socket gives the socket, as soon as there is one
   * @param changed told when others have changed something of ours, or when that may be; at most once a second
   */
  start(socket: () => Pick<Netlink, "drain"> | undefined, changed: () => void): void {
    this.follow(socket, changed);
    setInterval(() => void this.look(), interval).unref();
  }

  /** The same, for who calls `look` by itself. */
  follow(socket: () => Pick<Netlink, "drain"> | undefined, changed: () => void): void {
    this.#socket = socket;
    this.#changed = changed;
  }

  /**
   * Does something of our own. The kernel tells of a transaction before the program that made it goes on, so that all
   * of ours are there when the programs have ended.
   * @param write gives the process IDs of the programs that it ran
   */
  async excluding(write: () => Promise<readonly number[]>): Promise<void> {
    this.#read([]);
    this.#writing = true;
    let own: readonly number[] = [];
    try {
      own = await write();
    } finally {
      this.#writing = false;
      this.#read(own);
      this.#tell();
    }
  }

  /** Reads what the kernel has told, or lists the chains if it is time to, and says whether it is something of ours. */
  async look(): Promise<void> {
    if (this.#writing) return;
    if (!this.#read([])) await this.#lookAtChains();
    this.#tell();
  }

  /** @param own the ports of our own programs @returns whether there is a socket */
  #read(own: readonly number[]): boolean {
    const socket = this.#socket();
    if (socket === undefined) return false;
    // What was before it listened is not known.
    if (!this.#listening) this.#seen.changed = true;
    this.#listening = true;
    const whole = socket.drain((datagram) => {
      this.#seen.changed ||= tellsOfOurs(datagram, own);
    });
    this.#seen.lost ||= !whole;
    return true;
  }

  async #lookAtChains(): Promise<void> {
    const from = this.#now();
    if (from < this.#lookAt) return;
    // Until this one is done.
    this.#lookAt = Number.POSITIVE_INFINITY;
    try {
      const chains = JSON.stringify(await this.#list());
      // The first may come after the pass that looked at all.
      this.#seen.changed ||= chains !== this.#chains;
      this.#chains = chains;
    } catch {
      // The pass that has to read them says why it cannot.
    } finally {
      const now = this.#now();
      this.#lookAt = now + Math.max(lookSpacing, lookShare * (now - from));
    }
  }

  #tell(): void {
    const { changed, lost } = this.#seen;
    const now = this.#now();
    if (!((changed && now - this.#toldAt >= spacing) || (lost && now - this.#toldAt >= lossSpacing))) return;
    this.#seen = { changed: false, lost: false };
    this.#toldAt = now;
    this.#changed();
  }
}
