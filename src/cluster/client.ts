/** The one place that opens connections to the API server. */
import { readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
// The package's index loads every generated model, 20 MB: this part alone knows kubeconfigs and credentials.
import { KubeConfig } from "@kubernetes/client-node/dist/config.js";
import { shorten } from "../shorten.ts";

export interface ApiRequest {
  method?: "GET" | "PATCH";
  /** Path below the server's URL, with its query. */
  path: string;
  accept?: string;
  contentType?: string;
  body?: string;
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

const requestTimeout = 30_000;

export class ApiClient {
  readonly server: string;
  readonly #kubeConfig = new KubeConfig();
  #connections = new AbortController();

  /** @param path a kubeconfig file, or undefined for the in-cluster service account. Throws an Error that names the remedy. */
  constructor(path: string | undefined) {
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

  /** Starts a request and gives the response as soon as its status is known; throws `ApiError` for any but 2xx. */
  async open(request: ApiRequest): Promise<Response> {
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
    const response = await fetch(this.server + request.path, {
      method: request.method ?? "GET",
      headers,
      ...(request.body === undefined ? {} : { body: request.body }),
      signal: AbortSignal.any([this.#connections.signal, ...(request.signal ? [request.signal] : [])]),
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
    if (response.ok) return response;
    throw new ApiError(response.status, describeFailure(request, response.status, await response.text()));
  }

  /** One whole JSON answer. */
  async json<T>(request: ApiRequest): Promise<T> {
    const timeout = AbortSignal.timeout(requestTimeout);
    const signal = request.signal ? AbortSignal.any([request.signal, timeout]) : timeout;
    const response = await this.open({ ...request, signal });
    return (await response.json()) as T;
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
