/** The API server as a test sees it: a few typed requests, as an admin or by a token. */

export interface ApiObject {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string; [key: string]: unknown };
  [key: string]: unknown;
}

export interface Node extends ApiObject {
  metadata: {
    name: string;
    uid: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
    [key: string]: unknown;
  };
  spec: { podCIDR?: string; podCIDRs?: string[]; [key: string]: unknown };
  status: { addresses?: { type: string; address: string }[]; [key: string]: unknown };
}

/**
 * The objects of a manifest of one or several YAML documents. Each lab asks for them: bun takes 1 ms, the library that
 * tests use where mistakes are to be refused (keys that come twice) 60.
 */
export const objectsOf = (manifest: string): ApiObject[] =>
  [Bun.YAML.parse(manifest) as ApiObject | ApiObject[]].flat().filter(Boolean);

export class ApiError extends Error {
  readonly status: number;

  constructor(request: string, status: number, message: string) {
    super(`${request}: ${status} ${message}`);
    this.status = status;
  }
}

export class Api {
  readonly server: string;
  readonly #tls: { ca: string; cert?: string; key?: string };
  readonly #token: string | undefined;

  constructor(server: string, credentials: { ca: string; cert?: string; key?: string; token?: string }) {
    const { token, ...tls } = credentials;
    this.server = server;
    this.#tls = tls;
    this.#token = token;
  }

  /** The same server by a service account's token. */
  withToken(token: string): Api {
    return new Api(this.server, { ca: this.#tls.ca, token });
  }

  /** @throws ApiError for any answer that is not 2xx */
  async request<T = ApiObject>(
    method: string,
    path: string,
    body?: unknown,
    type = "application/json",
  ): Promise<T> {
    const response = await fetch(`${this.server}${path}`, {
      method,
      tls: this.#tls,
      headers: {
        accept: "application/json",
        ...(body !== undefined && { "content-type": type }),
        ...(this.#token && { authorization: `Bearer ${this.#token}` }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (response.ok) return (text.startsWith("{") ? JSON.parse(text) : text) as T;
    const message = text.startsWith("{") ? (JSON.parse(text) as { message?: string }).message : text;
    throw new ApiError(`${method} ${path}`, response.status, message ?? "");
  }

  get<T = ApiObject>(path: string): Promise<T> {
    return this.request<T>("GET", path);
  }

  /** The same as get, but undefined if there is no such object. */
  async find<T = ApiObject>(path: string): Promise<T | undefined> {
    return await this.get<T>(path).catch((error) => {
      if (error instanceof ApiError && error.status === 404) return undefined;
      throw error;
    });
  }

  async list<T = ApiObject>(path: string): Promise<T[]> {
    return (await this.get<{ items: T[] }>(path)).items;
  }

  create<T = ApiObject>(object: Omit<ApiObject, "metadata"> & { metadata: object }): Promise<T> {
    const { name: _, ...rest } = object.metadata as { name: string };
    return this.request<T>(
      "POST",
      pathOf({ ...object, metadata: { name: "", ...rest } } as ApiObject),
      object,
    );
  }

  /** Server-side apply. */
  apply<T = ApiObject>(object: ApiObject): Promise<T> {
    const query = "?fieldManager=lab&force=true";
    return this.request<T>("PATCH", `${pathOf(object)}${query}`, object, "application/apply-patch+yaml");
  }

  /** JSON merge patch: null removes. */
  patch<T = ApiObject>(path: string, change: object): Promise<T> {
    return this.request<T>("PATCH", path, change, "application/merge-patch+json");
  }

  /** Deletes at once, without grace; one that is gone already is fine. */
  async remove(path: string): Promise<void> {
    await this.request("DELETE", `${path}?gracePeriodSeconds=0`).catch((error) => {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
    });
  }

  node(name: string): Promise<Node> {
    return this.get<Node>(`/api/v1/nodes/${name}`);
  }

  nodes(): Promise<Node[]> {
    return this.list<Node>("/api/v1/nodes");
  }
}

/** Why the API server refuses a request; undefined if it does not. Throws for any other error. */
export async function refusal(asked: Promise<unknown>): Promise<string | undefined> {
  try {
    await asked;
    return undefined;
  } catch (error) {
    if (error instanceof ApiError && [403, 422].includes(error.status)) return error.message;
    throw error;
  }
}

const clusterWide = new Set(["Node", "Namespace", "PersistentVolume"]);

/** The path of an object; namespaced kinds without a namespace are cluster-wide. */
export function pathOf({ apiVersion, kind, metadata }: ApiObject): string {
  const root = apiVersion.includes("/") ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  const lower = kind.toLowerCase();
  const plural = lower.endsWith("y")
    ? `${lower.slice(0, -1)}ies`
    : lower.endsWith("s")
      ? `${lower}es`
      : `${lower}s`;
  const inNamespace = metadata.namespace && !clusterWide.has(kind) ? `/namespaces/${metadata.namespace}` : "";
  return `${root}${inNamespace}/${plural}${metadata.name ? `/${metadata.name}` : ""}`;
}
