/** The one place that opens connections to the API server. */
import { readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
// The package's index loads every generated model, 20 MB: this part alone knows kubeconfigs and credentials.
import { KubeConfig } from "@kubernetes/client-node/dist/config.js";
import { shorten } from "../report/shorten.ts";

export interface ApiRequest {
  method?: "GET" | "PATCH";
  /** Path below the server's URL, with its query. */
  path: string;
  accept?: string;
  contentType?: string;
  body?: string;
  /** Milliseconds without a byte of the answer's body after which it is given up. Default 30 s. */
  silence?: number;
  signal?: AbortSignal;
}

/** The API server answered, and not with success. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** Milliseconds within which an answer begins, and in which an answer that is read whole has more to say. */
const patience = 30_000;

export class ApiClient {
  readonly server: string;
  readonly #kubeConfig = new KubeConfig();
  readonly #statusLimit: number;
  #connections = new AbortController();

  /**
   * Throws an Error that names the remedy.
   * @param path a kubeconfig file, or undefined for the in-cluster service account
   * @param statusLimit milliseconds within which an answer has to begin
   */
  constructor(path: string | undefined, statusLimit = patience) {
    this.#statusLimit = statusLimit;
    if (path !== undefined) loadKubeconfig(this.#kubeConfig, path);
    else if (process.env.KUBERNETES_SERVICE_HOST) this.#kubeConfig.loadFromCluster();
    else throw new Error("no API server: outside a pod, set KUBECONFIG or --kubeconfig to a kubeconfig file");
    const cluster = this.#kubeConfig.getCurrentCluster();
    if (!cluster) throw new Error(`kubeconfig ${path}: its current-context names no cluster that it has`);
    this.server = cluster.server.replace(/\/$/, "");
  }

  /** Ends all connections: those from an address that the node has no more would hang until somebody gives up. */
  reconnect(): void {
    this.#connections.abort(new Error("an address of the node is gone"));
    this.#connections = new AbortController();
  }

  /**
   * Sends a request and has its answer read; the connection is ended when that is done. Throws `ApiError` for any status but
   * 2xx.
   * @param consume reads the body, and calls `heard` for each part of it
   */
  async read<T>(
    request: ApiRequest,
    consume: (response: Response, heard: () => void) => Promise<T>,
  ): Promise<T> {
    const ending = new AbortController();
    const sources = [this.#connections.signal, ...(request.signal ? [request.signal] : [])];
    const end = () => ending.abort(sources.find((source) => source.aborted)?.reason);
    // These outlive many requests: what listens to them must not stay.
    for (const source of sources) source.addEventListener("abort", end);
    if (sources.some((source) => source.aborted)) end();
    const giveUp = (ms: number, what: string) =>
      setTimeout(() => ending.abort(new Error(`${what} ${ms / 1_000} s`)), ms);
    let timer = giveUp(this.#statusLimit, "no answer from the API server within");
    try {
      const response = await this.#send(request, ending.signal);
      clearTimeout(timer);
      timer = giveUp(request.silence ?? patience, "no word from the API server for");
      if (!response.ok)
        throw new ApiError(response.status, describeFailure(request, response.status, await response.text()));
      return await consume(response, () => timer.refresh());
    } finally {
      clearTimeout(timer);
      for (const source of sources) source.removeEventListener("abort", end);
      ending.abort();
    }
  }

  /** One whole JSON answer. */
  async json<T>(request: ApiRequest): Promise<T> {
    return await this.read(request, async (response) => {
      const text = await response.text();
      try {
        return JSON.parse(text) as T;
      } catch {
        throw noJson(request, text);
      }
    });
  }

  async #send(request: ApiRequest, signal: AbortSignal): Promise<Response> {
    // Asked anew for each request: tokens and certificates are rotated under us.
    const options: RequestOptions & { servername?: string } = {};
    await this.#kubeConfig.applyToHTTPSOptions(options);
    const headers = new Headers(options.headers as Record<string, string>);
    headers.set("Accept", request.accept ?? "application/json");
    headers.set("User-Agent", "wigglenet");
    // The library keeps a token for a minute, in which one that was revoked would be refused.
    const tokenFile: string | undefined = this.#kubeConfig.getCurrentUser()?.authProvider?.config?.tokenFile;
    if (tokenFile) headers.set("Authorization", `Bearer ${readFileSync(tokenFile, "utf8").trim()}`);
    if (options.auth) headers.set("Authorization", `Basic ${btoa(options.auth)}`);
    if (request.contentType) headers.set("Content-Type", request.contentType);
    const answer = fetch(this.server + request.path, {
      method: request.method ?? "GET",
      headers,
      ...(request.body === undefined ? {} : { body: request.body }),
      signal,
      // A few requests an hour are not worth a pool, whose connections may be dead when they are needed.
      keepalive: false,
      tls: {
        ...(options.ca ? { ca: options.ca as Buffer } : {}),
        ...(options.cert ? { cert: options.cert as Buffer } : {}),
        ...(options.key ? { key: options.key as Buffer } : {}),
        ...(options.servername ? { serverName: options.servername } : {}),
        ...(options.rejectUnauthorized === false ? { rejectUnauthorized: false } : {}),
      },
    });
    return await answer.catch((error: NodeJS.ErrnoException) => {
      // The runtime says "Was there a typo in the url or port?" of a network that is down.
      if (!/^E[A-Z]+$/.test(error.code ?? "")) throw error;
      const reason = `the API server ${this.server} cannot be reached: ${error.code}`;
      throw Object.assign(new Error(reason), { code: error.code });
    });
  }
}

function loadKubeconfig(kubeConfig: KubeConfig, path: string): void {
  let raw: { users?: { name?: string; user?: { tokenFile?: string } }[] };
  try {
    raw = Bun.YAML.parse(readFileSync(path, "utf8")) as typeof raw;
    kubeConfig.loadFromFile(path);
  } catch (error) {
    throw new Error(`kubeconfig ${path}: ${(error as Error).message}`);
  }
  // A field that kubectl knows and the library leaves out; its own name for the same thing is an authProvider.
  kubeConfig.users = kubeConfig.users.map((user) => {
    const tokenFile = raw.users?.find((entry) => entry.name === user.name)?.user?.tokenFile;
    return tokenFile ? { ...user, authProvider: { name: "tokenFile", config: { tokenFile } } } : user;
  });
}

/** What was answered, with success, and is not what was asked for: by a proxy, or cut off on its way. */
export function noJson({ method = "GET", path }: ApiRequest, text: string): Error {
  const said = text.trim();
  const what =
    said === "" ? "is empty" : /^[[{]/.test(said) ? "breaks off" : `is no JSON, but ${shorten(said, 200)}`;
  return new Error(`${method} ${shorten(path, 200)}: the answer ${what}`);
}

function describeFailure(request: ApiRequest, status: number, body: string): string {
  let said = body;
  try {
    said = (JSON.parse(body) as { message?: string }).message ?? said;
  } catch {
    // Not a Status object: a proxy's page, most likely. Its beginning is shown as it is.
  }
  return `${request.method ?? "GET"} ${shorten(request.path, 200)}: HTTP ${status}: ${shorten(said, 300)}${remedy(status, said)}`;
}

function remedy(status: number, said: string): string {
  if (status === 401) return "; its token or certificate is not accepted";
  if (status !== 403) return "";
  const [kubelet] = /system:node:[^"]*/.exec(said) ?? [];
  return kubelet
    ? `; ${kubelet} is the identity of a kubelet, which may not read the other nodes: give the agent one of its own, see docs/bare-metal.md`
    : "; apply the ClusterRole of deploy/manifest.yaml";
}
