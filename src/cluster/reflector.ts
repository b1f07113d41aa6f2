/** Follows one collection of objects: a paged list, then a watch with bookmarks, for ever. */
import { setTimeout } from "node:timers/promises";
import type { Logger } from "pino";
import { type ApiClient, ApiError } from "./client.ts";

/** What every object has. */
export interface ApiObject {
  metadata: {
    name: string;
    resourceVersion?: string;
    creationTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
}

export interface Collection {
  client: ApiClient;
  /** Such as `/api/v1/nodes`. */
  path: string;
  fieldSelector?: string;
  /** Metadata alone instead of whole objects: a sixth of the size for a Node. */
  metadataOnly?: boolean;
  log: Logger;
}

export interface Follower<T> {
  /** The complete collection, at the start and after each gap. */
  replaced(items: T[]): void;
  changed(item: T): void;
  removed(item: T): void;
}

export interface Timing {
  /** Milliseconds of silence after which a watch is given up. */
  silence: number;
  /** Milliseconds that a watch lasts at least if all is well. */
  brief: number;
  /** Milliseconds to wait after so many attempts in a row that failed or were brief. */
  wait(attempts: number): number;
}

const pageSize = 500;
const watchSeconds = 300;
const usual: Timing = {
  // The API server sends a bookmark about once a minute: silence for longer means a dead connection.
  silence: 150_000,
  brief: 5_000,
  wait: (attempts) => backoff(attempts, Math.random()),
};

/** Runs until `signal` aborts. An API server that is away is waited for; what is known stays as it is meanwhile. */
export async function follow<T extends ApiObject>(
  collection: Collection,
  follower: Follower<T>,
  signal: AbortSignal,
  timing: Timing = usual,
): Promise<void> {
  const { path, log } = collection;
  let version: string | undefined;
  let attempts = 0;
  let told = false;
  while (!signal.aborted) {
    let openedAt = Number.POSITIVE_INFINITY;
    let trouble: Error | undefined;
    try {
      if (version === undefined) {
        const list = await listAll<T>(collection, signal);
        version = list.version;
        follower.replaced(list.items);
      }
      await watch(collection, version, follower, signal, timing.silence, {
        opened: () => {
          openedAt = performance.now();
          if (told) log.info({ path }, "the API server is back");
          told = false;
        },
        reached: (reached) => {
          version = reached;
        },
      });
    } catch (error) {
      trouble = error as Error;
    }
    if (signal.aborted) return;
    // Our version is older than what the server remembers: not a fault, but a new list is needed.
    const expired = trouble instanceof ApiError && trouble.status === 410;
    if (expired) version = undefined;
    const brief = performance.now() - openedAt < timing.brief || openedAt === Number.POSITIVE_INFINITY;
    if (!brief) attempts = 0;
    if (!brief && (trouble === undefined || expired)) continue;
    // A server, or a proxy, that ends each watch at once is not to be asked in a tight loop.
    attempts += 1;
    const wait = timing.wait(attempts);
    if (trouble !== undefined && !expired) {
      log[told ? "debug" : "warn"]({ path, error: trouble.message, retryInMs: wait }, "cannot follow");
      told = true;
    }
    await setTimeout(wait, undefined, { signal }).catch(() => undefined);
  }
}

/** Milliseconds to wait after the n-th failure in a row: doubling to 15 s, of which a random half is left out. */
export function backoff(failures: number, random: number): number {
  const whole = Math.min(15_000, 250 * 2 ** Math.min(failures - 1, 10));
  return Math.round(whole / 2 + (whole / 2) * random);
}

async function listAll<T>(
  collection: Collection,
  signal: AbortSignal,
): Promise<{ items: T[]; version: string }> {
  const items: T[] = [];
  let token = "";
  for (;;) {
    const page = await collection.client.json<{
      items?: T[];
      metadata: { resourceVersion: string; continue?: string };
    }>({
      path: `${collection.path}?${query(collection, { limit: String(pageSize), ...(token ? { continue: token } : {}) })}`,
      accept: accept(collection, "PartialObjectMetadataList"),
      signal,
    });
    items.push(...(page.items ?? []));
    token = page.metadata.continue ?? "";
    if (token === "") return { items, version: page.metadata.resourceVersion };
  }
}

/** Runs until the server ends the watch, or the connection drops after something was delivered. */
async function watch<T extends ApiObject>(
  collection: Collection,
  from: string,
  follower: Follower<T>,
  signal: AbortSignal,
  silenceLimit: number,
  on: { opened(): void; reached(version: string): void },
): Promise<void> {
  const silence = new AbortController();
  const timer = globalThis.setTimeout(
    () => silence.abort(new Error(`no word from the API server for ${silenceLimit / 1000} s`)),
    silenceLimit,
  );
  let delivered = false;
  try {
    const response = await collection.client.open({
      path: `${collection.path}?${query(collection, {
        watch: "1",
        allowWatchBookmarks: "true",
        resourceVersion: from,
        // Spread, so that a cluster's agents do not all come back in the same second.
        timeoutSeconds: String(Math.round(watchSeconds * (1 + Math.random()))),
      })}`,
      accept: accept(collection, "PartialObjectMetadata"),
      signal: AbortSignal.any([signal, silence.signal]),
    });
    on.opened();
    for await (const line of lines(response)) {
      timer.refresh();
      const event = JSON.parse(line) as { type: string; object: T & { code?: number; message?: string } };
      if (event.type === "ERROR")
        throw new ApiError(event.object.code ?? 500, event.object.message ?? "the watch failed");
      if (event.type === "ADDED" || event.type === "MODIFIED") follower.changed(event.object);
      else if (event.type === "DELETED") follower.removed(event.object);
      if (event.object.metadata.resourceVersion) on.reached(event.object.metadata.resourceVersion);
      delivered = true;
    }
  } catch (error) {
    // A dropped connection loses nothing that was already delivered: it goes on from there.
    if (error instanceof ApiError || !delivered) throw error;
  } finally {
    clearTimeout(timer);
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

function query(collection: Collection, parameters: Record<string, string>): URLSearchParams {
  return new URLSearchParams({
    ...(collection.fieldSelector ? { fieldSelector: collection.fieldSelector } : {}),
    ...parameters,
  });
}

function accept(collection: Collection, kind: string): string {
  return collection.metadataOnly ? `application/json;as=${kind};g=meta.k8s.io;v=v1` : "application/json";
}
