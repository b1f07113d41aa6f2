/** Follows one collection of objects: a paged list, then a watch with bookmarks, for ever. */
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

const pageSize = 500;
// The API server sends a bookmark about once a minute: silence for longer means a dead connection.
const silenceLimit = 150_000;
const watchSeconds = 300;

/** Runs until `signal` aborts. An API server that is away is waited for; what is known stays as it is meanwhile. */
export async function follow<T extends ApiObject>(
  collection: Collection,
  follower: Follower<T>,
  signal: AbortSignal,
): Promise<void> {
  let version: string | undefined;
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (version === undefined) {
        const list = await listAll<T>(collection, signal);
        version = list.version;
        follower.replaced(list.items);
      }
      const resumed = failures > 0;
      version = await watch(collection, version, follower, signal, () => {
        if (resumed) collection.log.info({ path: collection.path }, "the API server is back");
        failures = 0;
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status === 410) {
        // Our version is older than what the server remembers: not a fault, but a new list is needed.
        version = undefined;
        if (failures === 0) {
          failures = 1;
          continue;
        }
      }
      failures += 1;
      const wait = backoff(failures, Math.random());
      collection.log[failures === 1 ? "warn" : "debug"](
        { path: collection.path, error: (error as Error).message, retryInMs: wait },
        "cannot follow",
      );
      await Bun.sleep(wait);
    }
  }
}

/** Milliseconds to wait after the n-th failure in a row: doubling to 30 s, of which a random half is left out. */
export function backoff(failures: number, random: number): number {
  const whole = Math.min(30_000, 250 * 2 ** Math.min(failures - 1, 10));
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

/** Gives the version to go on from, once the server ends the watch. */
async function watch<T extends ApiObject>(
  collection: Collection,
  from: string,
  follower: Follower<T>,
  signal: AbortSignal,
  opened: () => void,
): Promise<string> {
  const silence = new AbortController();
  const arm = () =>
    setTimeout(
      () => silence.abort(new Error(`no word from the API server for ${silenceLimit / 1000} s`)),
      silenceLimit,
    );
  let timer = arm();
  let version = from;
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
    opened();
    for await (const line of lines(response)) {
      clearTimeout(timer);
      timer = arm();
      const event = JSON.parse(line) as { type: string; object: T & { code?: number; message?: string } };
      if (event.type === "ERROR")
        throw new ApiError(event.object.code ?? 500, event.object.message ?? "the watch failed");
      version = event.object.metadata.resourceVersion ?? version;
      if (event.type === "ADDED" || event.type === "MODIFIED") follower.changed(event.object);
      else if (event.type === "DELETED") follower.removed(event.object);
    }
    return version;
  } catch (error) {
    if (error instanceof ApiError) throw error;
    // A dropped connection loses nothing that was already delivered: go on from there.
    if (version !== from) return version;
    throw error;
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
