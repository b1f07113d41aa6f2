/**
 * Follows one collection of objects: a list, then a watch with bookmarks, for ever. The list is the API server's cache's,
 * which costs etcd nothing but may be old: it counts once the watch has reached the version that etcd had. (A streamed list,
 * `sendInitialEvents`, would say that itself, but API servers of 1.30 and 1.33 do not have it.)
 */
import { setTimeout } from "node:timers/promises";
import type { Logger } from "pino";
import { type ApiClient, ApiError } from "./client.ts";
import { type ApiObject, currentVersion, isOlder, readList } from "./list.ts";

export interface Collection<T> {
  client: ApiClient;
  /** Such as `/api/v1/nodes`. */
  path: string;
  /** The one object to follow, by its name: that is read from etcd, as it costs but one key. */
  name?: string;
  /** Metadata alone instead of whole objects: a sixth of the size for a Node. */
  metadataOnly?: boolean;
  /** What is kept of an object while it waits to be told. Default: all. */
  keep?(object: T): T;
  log: Logger;
}

export interface Follower<T> {
  /**
   * Some of a collection that is not certain yet: what it does not have may be there, and of what is known already the follower
   * knows better. At the start, where a list may be old, and after the versions went back.
   */
  provisional?(items: T[]): void;
  /** The complete collection, and none that is old: at the start and after each gap. */
  replaced(items: T[]): void;
  changed(item: T): void;
  removed(item: T): void;
}

export interface Timing {
  /** Milliseconds of silence after which a watch is given up. */
  silence: number;
  /** Milliseconds that a watch lasts at least if all is well. */
  brief: number;
  /** Seconds that a watch lasts while a list waits for it: near its end the API server says how far it is. */
  catchUp: number;
  /** Milliseconds for which nothing is taken over after the versions went back. */
  restored: number;
  /** Milliseconds to wait after so many attempts in a row that failed or were brief. */
  wait(attempts: number): number;
}

const watchSeconds = 300;
/** More reasons than this in a row are not told: something in them is different each time. */
const mostReasons = 10;
const usual: Timing = {
  // The API server sends a bookmark about once a minute: silence for longer means a dead connection.
  silence: 150_000,
  brief: 5_000,
  catchUp: 5,
  // Every agent has noticed by then, after a silence at the latest, and has annotated its Node anew.
  restored: 300_000,
  wait: (attempts) => backoff(attempts, Math.random()),
};

/** Runs until `signal` aborts. An API server that is away is waited for; what is known stays as it is meanwhile. */
export async function follow<T extends ApiObject>(
  collection: Collection<T>,
  follower: Follower<T>,
  signal: AbortSignal,
  timing: Timing = usual,
): Promise<void> {
  const reflector = new Reflector(collection, follower, signal, timing);
  const { path, log } = collection;
  let attempts = 0;
  /** Why it could not be followed, since it could; without numbers, which differ from one attempt to the next. */
  const told = new Set<string>();
  while (!signal.aborted) {
    let openedAt = Number.POSITIVE_INFINITY;
    let trouble: Error | undefined;
    try {
      await reflector.synchronise();
      await reflector.watch(() => {
        openedAt = performance.now();
        if (told.size > 0) log.info({ path }, "the API server is back");
        told.clear();
      });
    } catch (error) {
      trouble = error as Error;
    }
    if (signal.aborted) return;
    // Our version is older than what the server remembers: not a fault, but a new list is needed.
    const expired = trouble instanceof ApiError && trouble.status === 410;
    if (expired) reflector.expire();
    const brief = !(performance.now() - openedAt >= Math.min(timing.brief, reflector.leastMs));
    if (!brief) attempts = 0;
    if (!brief && (trouble === undefined || expired)) continue;
    // A server, or a proxy, that ends each watch at once is not to be asked in a tight loop.
    attempts += 1;
    const wait = timing.wait(attempts);
    if (trouble !== undefined && !expired) {
      const reason = reasonOf(trouble);
      const level = told.has(reason) || told.size >= mostReasons ? "debug" : "warn";
      log[level]({ path, error: trouble.message, retryInMs: wait }, "cannot follow");
      told.add(reason);
    }
    await setTimeout(wait, undefined, { signal }).catch(() => undefined);
  }
}

/** One that is away is first cut off, then refuses, then perhaps does not answer: that is one reason. */
function reasonOf(trouble: NodeJS.ErrnoException): string {
  if (/^E(CONN|TIMEDOUT|HOSTUNREACH|NETUNREACH|PIPE)/.test(trouble.code ?? "")) return "away";
  return trouble.message.replace(/\d+/g, "0");
}

/** Milliseconds to wait after the n-th failure in a row: doubling to 15 s, of which a random half is left out. */
export function backoff(failures: number, random: number): number {
  const whole = Math.min(15_000, 250 * 2 ** Math.min(failures - 1, 10));
  return Math.round(whole / 2 + (whole / 2) * random);
}

/** A list that is not told yet, with what happened since. */
interface Pending<T> {
  items: Map<string, T>;
  /** It counts once the watch has reached this. */
  version: string;
}

interface WatchEvent<T> {
  type: string;
  object: T & { code?: number; message?: string };
}

class Reflector<T extends ApiObject> {
  readonly #collection: Collection<T>;
  readonly #follower: Follower<T>;
  readonly #signal: AbortSignal;
  readonly #timing: Timing;
  /** How far we are; undefined at the start. */
  #version: string | undefined;
  #needsList = true;
  /** By name, the version of each object that the follower knows. */
  readonly #versions = new Map<string, string>();
  #pending: Pending<T> | undefined;
  /** Until then no list is told, in milliseconds of performance.now(). */
  #notBefore = 0;
  /** Whether the follower has a list, be it a provisional one. */
  #known = false;
  /** By name, what the follower has not taken as it threw. */
  readonly #refused = new Map<string, () => void>();
  #complained = false;
  /** Milliseconds that the last watch lasts if all is well. */
  leastMs = Number.POSITIVE_INFINITY;

  constructor(collection: Collection<T>, follower: Follower<T>, signal: AbortSignal, timing: Timing) {
    this.#collection = collection;
    this.#follower = follower;
    this.#signal = signal;
    this.#timing = timing;
  }

  /** The next list replaces all. */
  expire(): void {
    this.#needsList = true;
  }

  /** Lists if that is needed: at first, after a watch that expired, and where the version went back. */
  async synchronise(): Promise<void> {
    const { client, name, path } = this.#collection;
    const items = new Map<string, T>();
    const request = {
      path,
      accept: this.#accept("PartialObjectMetadataList"),
      signal: this.#signal,
    };
    const list = (query: Record<string, string>) => {
      items.clear();
      return readList<T>(client, request, this.#query(query), (item) =>
        items.set(item.metadata.name, this.#keep(item)),
      );
    };
    const current = name === undefined ? await currentVersion(client, request) : await list({});
    if (this.#version !== undefined && isOlder(current, this.#version)) {
      // A watch from a version that is still to come would hear of nothing until then.
      this.#needsList = true;
      if (name === undefined) this.#hold({ version: current, known: this.#version });
    }
    if (this.#needsList) {
      this.#version = name === undefined ? await list({ resourceVersion: "0" }) : current;
      this.#needsList = false;
      this.#pending = { items, version: current };
      this.#refused.clear();
      if (this.#isHeld() || (this.#isBehind() && !this.#known))
        this.#follower.provisional?.([...items.values()]);
      this.#deliver();
      this.#known = true;
    }
    this.#deliver();
  }

  /** Runs until the server ends the watch, or the connection drops after something was delivered. */
  async watch(opened: () => void): Promise<void> {
    const seconds = this.#seconds();
    this.leastMs = seconds * 500;
    const query = this.#query({
      watch: "1",
      allowWatchBookmarks: "true",
      resourceVersion: this.#version ?? "0",
      timeoutSeconds: String(seconds),
    });
    const request = {
      path: `${this.#collection.path}?${query}`,
      accept: this.#accept("PartialObjectMetadata"),
      silence: this.#timing.silence,
      signal: this.#signal,
    };
    let delivered = false;
    try {
      await this.#collection.client.read(request, async (response, heard) => {
        opened();
        for await (const line of lines(response)) {
          heard();
          this.#take(JSON.parse(line) as WatchEvent<T>);
          delivered = true;
        }
      });
    } catch (error) {
      // A dropped connection loses nothing that was already delivered: it goes on from there.
      if (error instanceof ApiError || !delivered) throw error;
    }
  }

  #take({ type, object }: WatchEvent<T>): void {
    if (type === "ERROR") throw new ApiError(object.code ?? 500, object.message ?? "the watch failed");
    const { name, resourceVersion } = object.metadata;
    this.#retry();
    if (type === "ADDED" || type === "MODIFIED") {
      const item = this.#keep(object);
      if (this.#pending) {
        this.#pending.items.set(name, item);
        if (this.#isHeld()) this.#follower.provisional?.([item]);
      } else {
        this.#know(item);
        this.#tell(name, () => this.#follower.changed(item));
      }
    } else if (type === "DELETED") {
      if (this.#pending) this.#pending.items.delete(name);
      else {
        this.#versions.delete(name);
        this.#tell(name, () => this.#follower.removed(object));
      }
    }
    if (resourceVersion) this.#version = resourceVersion;
    this.#deliver();
  }

  /** The API server knows less than it did: nothing that it does not say is to be taken away for some time. */
  #hold(why: object): void {
    const { path, log } = this.#collection;
    const { restored } = this.#timing;
    this.#notBefore = performance.now() + restored;
    this.#versions.clear();
    log.warn(
      { path, ...why, inSeconds: restored / 1_000 },
      "the API server's revision went back, as after a restore from a backup: what it says of other nodes is taken over once their kubelets and agents have had the time to say it anew",
    );
  }

  /**
   * An object that is older than it was comes from a backup. The revision of the whole may be far ahead all the same: etcd can
   * restore so, for the sake of those who watch it.
   */
  #restored(items: ReadonlyMap<string, T>): { object: string; version: string; known: string } | undefined {
    if (this.#collection.name !== undefined) return undefined;
    for (const [object, known] of this.#versions) {
      const version = items.get(object)?.metadata.resourceVersion;
      if (version !== undefined && isOlder(version, known)) return { object, version, known };
    }
    return undefined;
  }

  /** Tells the list that waits, if it may be told by now. */
  #deliver(): void {
    const pending = this.#pending;
    if (pending === undefined || this.#isBehind() || this.#isHeld()) return;
    const restored = this.#restored(pending.items);
    if (restored) {
      this.#hold(restored);
      this.#follower.provisional?.([...pending.items.values()]);
      return;
    }
    this.#pending = undefined;
    try {
      this.#follower.replaced([...pending.items.values()]);
      this.#versions.clear();
      for (const item of pending.items.values()) this.#know(item);
      this.#complained &&= this.#refused.size > 0;
    } catch (error) {
      this.#pending = pending;
      this.#complain(error as Error);
    }
  }

  #tell(name: string, tell: () => void): void {
    this.#refused.delete(name);
    try {
      tell();
    } catch (error) {
      this.#refused.set(name, tell);
      this.#complain(error as Error, name);
    }
  }

  /** The follower may take by now what it did not. */
  #retry(): void {
    if (this.#refused.size === 0) return;
    for (const [name, tell] of [...this.#refused]) this.#tell(name, tell);
    if (this.#refused.size > 0) return;
    this.#complained = false;
    this.#collection.log.info({ path: this.#collection.path }, "what was not taken over is, now");
  }

  /** Says once what is wrong with this program. */
  #complain({ message, stack }: Error, name?: string): void {
    if (!this.#complained)
      this.#collection.log.error(
        { path: this.#collection.path, name, error: message, stack },
        "a fault of this agent: something that the API server says is not taken over; it is tried again",
      );
    this.#complained = true;
  }

  #know({ metadata: { name, resourceVersion } }: T): void {
    if (resourceVersion !== undefined) this.#versions.set(name, resourceVersion);
  }

  #isBehind(): boolean {
    return this.#pending !== undefined && isOlder(this.#version ?? "0", this.#pending.version);
  }

  #isHeld(): boolean {
    return performance.now() < this.#notBefore;
  }

  #seconds(): number {
    if (this.#isBehind()) return this.#timing.catchUp;
    const held = this.#pending === undefined ? 0 : this.#notBefore - performance.now();
    if (held > 0) return Math.ceil(held / 1_000) + 1;
    // Spread, so that a cluster's agents do not all come back in the same second.
    return Math.round(watchSeconds * (1 + Math.random()));
  }

  #keep(object: T): T {
    return this.#collection.keep?.(object) ?? object;
  }

  #query(parameters: Record<string, string>): URLSearchParams {
    const { name } = this.#collection;
    return new URLSearchParams({
      ...(name === undefined ? {} : { fieldSelector: `metadata.name=${name}` }),
      ...parameters,
    });
  }

  #accept(kind: string): string {
    return this.#collection.metadataOnly
      ? `application/json;as=${kind};g=meta.k8s.io;v=v1`
      : "application/json";
  }
}

/** The lines of a response's body as they arrive. */
export async function* lines(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of response.body ?? []) {
    const pieces = (rest + decoder.decode(chunk as Uint8Array, { stream: true })).split("\n");
    rest = pieces.pop() ?? "";
    for (const piece of pieces) if (piece.trim() !== "") yield piece;
  }
}
