/**
 * The Nodes whose annotations do not say all, as their agent is the Go implementation: read whole, few of them one by one,
 * many by a list, all from the API server's cache.
 */
import type { Logger } from "pino";
import {
  fromAnnotations,
  fromNode,
  type NodeObject,
  type NodeRecord,
  saysAll,
} from "../plan/overlay/node.ts";
import { type ApiClient, ApiError } from "./client.ts";
import { type ApiObject, isOlder, readList } from "./list.ts";
import { backoff } from "./reflector.ts";

const readsAtOnce = 16;
/** Refreshes within which each node has its turn. */
const turns = 30;

interface Reading {
  /** The annotations that were read with it; undefined: it is to be read. */
  annotations: string | undefined;
  /** How often it was to be read: a change while the answer is on its way has it asked for again. */
  changes: number;
  /** Of the Node when it was last told of: an answer must not be older. */
  version: string;
  busy: boolean;
  /** In a row. */
  failures: number;
  /** When it was read last; 0: never; else milliseconds of performance.now(). */
  readAt: number;
}

export class WholeNodes {
  readonly #client: ApiClient;
  readonly #path: string;
  readonly #log: Logger;
  readonly #onRead: (name: string, record: NodeRecord | undefined) => void;
  readonly #total: () => number;
  readonly #readings = new Map<string, Reading>();
  /** To be read, and not being read. */
  readonly #due = new Set<string>();
  /** Of which nothing is known yet. */
  readonly #unknown = new Set<string>();
  readonly #failing = new Set<string>();
  #active = 0;
  #waiting: (() => void)[] = [];
  /** Whether the last list failed, as one of its Nodes alone may have it fail. */
  #listFails = false;
  #told = false;

  /**
   * @param read called with what was read of a Node; undefined: it is gone
   * @param total how many Nodes there are, of whatever kind
   */
  constructor(options: {
    client: ApiClient;
    path: string;
    log: Logger;
    read: (name: string, record: NodeRecord | undefined) => void;
    total: () => number;
  }) {
    this.#client = options.client;
    this.#path = options.path;
    this.#log = options.log;
    this.#onRead = options.read;
    this.#total = options.total;
  }

  get names(): string[] {
    return [...this.#readings.keys()];
  }

  /** Whether there is one of which nothing is known yet. */
  get incomplete(): boolean {
    return this.#unknown.size > 0;
  }

  /** The Node is of this kind, with this metadata. */
  note({ metadata }: ApiObject): void {
    const { name, annotations, resourceVersion = "0" } = metadata;
    let reading = this.#readings.get(name);
    if (reading === undefined) {
      reading = { annotations: undefined, changes: 0, version: "0", busy: false, failures: 0, readAt: 0 };
      this.#readings.set(name, reading);
      this.#unknown.add(name);
    }
    reading.version = resourceVersion;
    if (reading.annotations === JSON.stringify(annotations ?? {})) return;
    reading.changes += 1;
    this.#want(name, reading);
  }

  /** The Node is gone, or of another kind by now. */
  forget(name: string): void {
    for (const names of [this.#due, this.#unknown, this.#failing]) names.delete(name);
    this.#readings.delete(name);
  }

  /** Has some be read again, those first whose last time is longest ago: their status changes without their metadata. */
  refresh(): void {
    const count = Math.max(readsAtOnce, Math.ceil(this.#readings.size / turns));
    const oldest = [...this.#readings]
      .filter(([, { annotations }]) => annotations !== undefined)
      .sort(([, a], [, b]) => a.readAt - b.readAt);
    for (const [name, reading] of oldest.slice(0, count)) this.#want(name, reading);
  }

  /** Reads what is to be read. Resolves once each was tried, or that has taken `patience` milliseconds. */
  async settle(signal: AbortSignal, patience: number): Promise<void> {
    const tried = Promise.withResolvers<void>();
    this.#waiting.push(tried.resolve);
    const timer = setTimeout(tried.resolve, patience);
    this.read(signal);
    await tried.promise;
    clearTimeout(timer);
  }

  /** Begins to read what is to be read. */
  read(signal: AbortSignal): void {
    if (signal.aborted) return;
    // A list has all Nodes, of the other kinds too.
    const many = this.#due.size > readsAtOnce && this.#due.size * 4 > this.#total() && !this.#listFails;
    if (many) {
      if (this.#active === 0) void this.#start([...this.#due], signal);
    } else
      for (const name of [...this.#due].slice(0, readsAtOnce - this.#active))
        void this.#start([name], signal);
    if (this.#active > 0) return;
    for (const resolve of this.#waiting.splice(0)) resolve();
    if (this.#failing.size === 0 && this.#told) {
      this.#told = false;
      this.#log.info("all Nodes of the other kind of agent are read");
    }
  }

  #want(name: string, reading: Reading): void {
    reading.annotations = undefined;
    // One that fails has its own time.
    if (!reading.busy && !this.#failing.has(name)) this.#due.add(name);
  }

  async #start(names: readonly string[], signal: AbortSignal): Promise<void> {
    const readings = new Map(names.map((name) => [name, this.#readings.get(name) as Reading]));
    this.#active += 1;
    for (const [name, reading] of readings) {
      this.#due.delete(name);
      reading.busy = true;
    }
    const [[name, only]] = [...readings] as [[string, Reading]];
    try {
      await (readings.size > 1 ? this.#readAll(readings, signal) : this.#readOne(name, only, signal));
    } catch (error) {
      if (!signal.aborted) this.#failed(readings, error as Error, signal);
    }
    this.#active -= 1;
    for (const [name, reading] of readings) {
      reading.busy = false;
      // It changed while the answer was on its way.
      if (this.#readings.get(name) === reading && reading.annotations === undefined)
        this.#want(name, reading);
    }
    this.read(signal);
  }

  #failed(readings: ReadonlyMap<string, Reading>, { message }: Error, signal: AbortSignal): void {
    if (!this.#told)
      this.#log.warn(
        { nodes: [...readings.keys()], error: message },
        "cannot read Nodes of the other kind of agent",
      );
    this.#told = true;
    // After a list one by one, at once.
    if (readings.size > 1) return;
    for (const [name, reading] of readings) {
      if (this.#readings.get(name) !== reading) continue;
      reading.failures += 1;
      this.#failing.add(name);
      setTimeout(
        () => {
          if (this.#readings.get(name) !== reading) return;
          this.#failing.delete(name);
          this.#want(name, reading);
          this.read(signal);
        },
        backoff(reading.failures, Math.random()),
      );
    }
  }

  async #readOne(name: string, reading: Reading, signal: AbortSignal): Promise<void> {
    const { changes, version } = reading;
    try {
      const node = await this.#client.json<ApiObject & NodeObject>({
        path: `${this.#path}/${encodeURIComponent(name)}?resourceVersion=${version}`,
        signal,
      });
      this.#take(node, reading, changes);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
      this.#gone(name, reading);
    }
  }

  async #readAll(readings: ReadonlyMap<string, Reading>, signal: AbortSignal): Promise<void> {
    const before = new Map([...readings].map(([name, { changes }]) => [name, changes]));
    const newest = [...readings.values()]
      .map(({ version }) => version)
      .reduce((a, b) => (isOlder(a, b) ? b : a));
    const query = new URLSearchParams({ resourceVersion: newest, resourceVersionMatch: "NotOlderThan" });
    this.#listFails = true;
    await readList<ApiObject & NodeObject>(this.#client, { path: this.#path, signal }, query, (node) => {
      const { name } = node.metadata;
      const reading = readings.get(name);
      if (reading) this.#take(node, reading, before.get(name) ?? 0);
      before.delete(name);
    });
    this.#listFails = false;
    for (const name of before.keys()) this.#gone(name, readings.get(name) as Reading);
  }

  #take(node: ApiObject & NodeObject, reading: Reading, changes: number): void {
    const { name, annotations } = node.metadata;
    // It may have left, or have become one of our kind, while the answer was on its way.
    if (this.#readings.get(name) !== reading) return;
    const record = saysAll(annotations) ? fromAnnotations(node) : fromNode(node);
    // Its pod CIDRs may still be allocated, which no annotation will tell: any change of it has it read again.
    if (reading.changes === changes)
      reading.annotations = record.podCidrs.length > 0 ? JSON.stringify(annotations ?? {}) : "";
    reading.failures = 0;
    reading.readAt = performance.now();
    this.#unknown.delete(name);
    this.#onRead(name, record);
  }

  #gone(name: string, reading: Reading): void {
    if (this.#readings.get(name) !== reading) return;
    this.forget(name);
    this.#onRead(name, undefined);
  }
}
