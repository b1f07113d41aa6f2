/** An API server with Nodes and nothing else, for the unit tests: lists by pages, watches, and can be made to fail. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pino from "pino";
import type { NodeObject } from "../plan/overlay/node.ts";
import { ApiClient } from "./client.ts";
import type { ApiObject } from "./list.ts";

export type FakeNode = ApiObject & NodeObject;

interface Watcher {
  selects(node: FakeNode): boolean;
  metadataOnly: boolean;
  /** Events up to this version have been sent. */
  sent: number;
  stream: ReadableStreamDefaultController<Uint8Array>;
}

/** What there is, and when. */
interface Snapshot {
  nodes: ReadonlyMap<string, FakeNode>;
  version: number;
}

/** A Node of this name with these annotations. */
export function fakeNode(name: string, annotations: Record<string, string> = {}): FakeNode {
  return {
    metadata: { name, annotations },
    spec: { podCIDRs: ["10.1.0.0/24"] },
    status: { addresses: [{ type: "InternalIP", address: "192.0.2.1" }] },
  };
}

export class FakeApi implements AsyncDisposable {
  /** Method, path and query of each request, in order. */
  readonly requests: URL[] = [];
  readonly headers: Headers[] = [];
  readonly bodies: string[] = [];
  readonly logged: string[] = [];
  /** The same with all their fields. */
  readonly lines: Record<string, unknown>[] = [];
  /** How many objects a page has at most, whatever was asked for. */
  page = 2;
  /** Answers instead of the usual, where it gives a response. */
  intercept: (url: URL, request: Request) => Response | undefined = () => undefined;

  #nodes = new Map<string, FakeNode>();
  #events: { version: number; type: string; node: FakeNode }[] = [];
  /** What the cache has; undefined: all. */
  #cache: Snapshot | undefined;
  /** What the list shows whose first page was asked for last. */
  #listed: Snapshot = { nodes: new Map(), version: 0 };
  readonly #watchers = new Set<Watcher>();
  readonly #folder = mkdtempSync(join(tmpdir(), "wigglenet-api-"));
  #version = 100;
  #oldest = 0;
  #server: Bun.Server<undefined> | undefined;
  #port = 0;

  constructor(...nodes: FakeNode[]) {
    this.start();
    for (const node of nodes) this.put(node);
  }

  get kubeconfig(): string {
    return join(this.#folder, "kubeconfig");
  }

  client(user: object = { token: "secret" }): ApiClient {
    writeFileSync(
      this.kubeconfig,
      JSON.stringify({
        apiVersion: "v1",
        kind: "Config",
        clusters: [
          {
            name: "c",
            cluster: { server: `http://127.0.0.1:${this.#port}`, "insecure-skip-tls-verify": true },
          },
        ],
        users: [{ name: "u", user }],
        contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
        "current-context": "x",
      }),
    );
    return new ApiClient(this.kubeconfig);
  }

  /** A logger whose lines, level and message, end up in `logged`. */
  readonly log = pino(
    { level: "debug", base: null, timestamp: false },
    {
      write: (line) => {
        const { level, msg } = JSON.parse(line) as { level: number; msg: string };
        this.lines.push(JSON.parse(line));
        this.logged.push(`${pino.levels.labels[level]}: ${msg}`);
      },
    },
  );

  start(): void {
    this.#server = Bun.serve({
      port: this.#port,
      hostname: "127.0.0.1",
      idleTimeout: 0,
      fetch: (request) => this.#answer(request),
    });
    this.#port = this.#server.port ?? 0;
  }

  /** Away: connections are refused. */
  async stop(): Promise<void> {
    this.#watchers.clear();
    await this.#server?.stop(true);
  }

  put(node: FakeNode): void {
    this.#version += 1;
    const stored = { ...node, metadata: { ...node.metadata, resourceVersion: String(this.#version) } };
    const type = this.#nodes.has(node.metadata.name) ? "MODIFIED" : "ADDED";
    this.#nodes.set(node.metadata.name, stored);
    this.#emit(type, stored);
  }

  remove(name: string): void {
    const node = this.#nodes.get(name) as FakeNode;
    this.#nodes.delete(name);
    this.#version += 1;
    this.#emit("DELETED", {
      ...node,
      metadata: { ...node.metadata, resourceVersion: String(this.#version) },
    });
  }

  /** Forgets what happened so far: a watch from before gets 410. */
  compact(): void {
    this.#version += 1;
    this.#oldest = this.#version;
  }

  bookmark(): void {
    const version = this.#cache?.version ?? this.#version;
    const metadata = { name: "", resourceVersion: String(version) };
    for (const watcher of this.#watchers) if (version > watcher.sent) send(watcher, "BOOKMARK", { metadata });
  }

  /** Something else in the cluster is written, of which no watch of Nodes tells. */
  advance(): void {
    this.#version += 1;
  }

  /** The cache, which serves watches and lists of resourceVersion 0, hears of nothing from now on, or since earlier. */
  freezeCache(since = this.snapshot()): void {
    this.#cache = since;
  }

  thawCache(): void {
    this.#cache = undefined;
    for (const watcher of this.#watchers) this.#catchUp(watcher);
  }

  snapshot(): Snapshot {
    return { nodes: new Map(this.#nodes), version: this.#version };
  }

  /** Restores a backup: the revision goes back, and all connections end. */
  restore({ nodes, version }: Snapshot): void {
    this.#nodes = new Map(nodes);
    this.#version = version;
    this.#events = this.#events.filter((event) => event.version <= version);
    this.drop();
  }

  /** Restores a backup as etcd's manual has it for Kubernetes: the revision goes on far ahead, and all before it is compacted. */
  restoreAhead(backup: Snapshot): void {
    const version = this.#version + 1_000_000;
    this.restore({ ...backup, version });
    this.#events = [];
    this.#oldest = version;
  }

  /** Sends to all watchers what is no event of the usual kind. */
  say(line: string): void {
    for (const { stream } of this.#watchers) stream.enqueue(new TextEncoder().encode(line));
  }

  /** Ends all watches as a server does when their time is over. */
  end(): void {
    for (const { stream } of this.#watchers) stream.close();
    this.#watchers.clear();
  }

  /** Breaks all connections off. */
  drop(): void {
    this.#watchers.clear();
    void this.#server?.stop(true);
    this.start();
  }

  get watching(): number {
    return this.#watchers.size;
  }

  /** The requests so far in short: `revision`, `list`, `list from 2`, `watch from 101`, `get n1`, `patch n0`. */
  get said(): string[] {
    return this.requests.map(({ pathname, searchParams }, index) => {
      const method = this.headers[index]?.get("x-method") ?? "GET";
      if (method !== "GET") return `${method.toLowerCase()} ${pathname.split("/").at(-1)}`;
      if (searchParams.has("watch")) return `watch from ${searchParams.get("resourceVersion")}`;
      const token = searchParams.get("continue");
      if (searchParams.get("limit") === "1" && !searchParams.has("fieldSelector")) return "revision";
      return pathname.endsWith("/nodes")
        ? `list${token ? ` from ${token}` : ""}`
        : `get ${pathname.split("/").at(-1)}`;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    rmSync(this.#folder, { recursive: true });
  }

  async #answer(request: Request): Promise<Response> {
    const url = new URL(request.url);
    this.requests.push(url);
    const headers = new Headers(request.headers);
    headers.set("x-method", request.method);
    this.headers.push(headers);
    const intercepted = this.intercept(url, request);
    if (intercepted) return intercepted;
    const name = /^\/api\/v1\/nodes\/(.+)$/.exec(url.pathname)?.[1];
    if (request.method === "PATCH") {
      const body = await request.text();
      this.bodies.push(body);
      return Response.json(this.#patch(name ?? "", body));
    }
    if (name !== undefined) {
      const node = this.#nodes.get(name);
      return node ? Response.json(node) : failure(404, `nodes "${name}" not found`);
    }
    const selector = url.searchParams.get("fieldSelector")?.replace("metadata.name=", "");
    const selects = (node: FakeNode) => selector === undefined || node.metadata.name === selector;
    const metadataOnly = request.headers.get("accept")?.includes("as=PartialObjectMetadata") ?? false;
    if (url.searchParams.has("watch"))
      return this.#watch(Number(url.searchParams.get("resourceVersion")), { selects, metadataOnly });
    const from = Number(url.searchParams.get("continue") ?? 0);
    // The pages of a list are all of one revision.
    if (from === 0) {
      const cached = url.searchParams.get("resourceVersion") === "0" ? this.#cache : undefined;
      this.#listed = cached ?? this.snapshot();
    }
    const page = url.searchParams.get("limit") === "1" ? 1 : this.page;
    return list(this.#listed, from, page, selects, metadataOnly);
  }

  #watch(from: number, watcher: Pick<Watcher, "selects" | "metadataOnly">): Response {
    if (from < this.#oldest) return failure(410, "too old resource version");
    let watching: Watcher | undefined;
    const body = new ReadableStream<Uint8Array>({
      start: (stream) => {
        watching = { ...watcher, sent: from, stream };
        this.#watchers.add(watching);
        // Bun sends the headers with the first byte.
        stream.enqueue(new TextEncoder().encode("\n"));
        this.#catchUp(watching);
      },
      cancel: () => {
        if (watching) this.#watchers.delete(watching);
      },
    });
    return new Response(body, { headers: { "Content-Type": "application/json" } });
  }

  /** Merges annotations, which is all that an agent patches. */
  #patch(name: string, body: string): FakeNode {
    const node = this.#nodes.get(name) as FakeNode;
    const { metadata = {} } = JSON.parse(body) as {
      metadata?: { annotations?: Record<string, string | null> };
    };
    const merged = Object.entries({ ...node.metadata.annotations, ...metadata.annotations });
    const annotations = Object.fromEntries(merged.filter(([, value]) => value !== null));
    this.put({ ...node, metadata: { ...node.metadata, annotations: annotations as Record<string, string> } });
    return this.#nodes.get(name) as FakeNode;
  }

  #emit(type: string, node: FakeNode): void {
    this.#events.push({ version: this.#version, type, node });
    for (const watcher of this.#watchers) this.#catchUp(watcher);
  }

  // One that began at a version that is still to come hears of nothing until then, as with the real one.
  #catchUp(watcher: Watcher): void {
    for (const { version, type, node } of this.#events) {
      if (version <= watcher.sent || version > (this.#cache?.version ?? version)) continue;
      watcher.sent = version;
      if (watcher.selects(node)) send(watcher, type, node);
    }
  }
}

function list(
  { nodes, version }: Snapshot,
  from: number,
  page: number,
  selects: Watcher["selects"],
  metadataOnly: boolean,
): Response {
  const all = [...nodes.values()].filter(selects);
  const to = from + page;
  return Response.json({
    items: all.slice(from, to).map((node) => shown(node, metadataOnly)),
    metadata: {
      resourceVersion: String(version),
      ...(to < all.length ? { continue: String(to) } : {}),
    },
  });
}

function shown(node: FakeNode, metadataOnly: boolean): Partial<FakeNode> {
  return metadataOnly ? { metadata: node.metadata } : node;
}

function send({ stream, metadataOnly }: Watcher, type: string, node: FakeNode): void {
  const line = `${JSON.stringify({ type, object: shown(node, metadataOnly) })}\n`;
  // Cut in two, as a network may.
  const bytes = new TextEncoder().encode(line);
  stream.enqueue(bytes.subarray(0, bytes.length >> 1));
  stream.enqueue(bytes.subarray(bytes.length >> 1));
}

export function failure(code: number, message: string): Response {
  return Response.json({ kind: "Status", code, message }, { status: code });
}

/** Waits until `condition` holds; throws with `what` after 15 seconds. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 15_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`not within 15 seconds: ${what}`);
    await Bun.sleep(2);
  }
}
