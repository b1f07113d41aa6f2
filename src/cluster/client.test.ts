import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ApiClient, ApiError } from "./client.ts";
import { FakeApi, failure, fakeNode } from "./fake-api.ts";

let api: FakeApi;
let folder: string;
beforeEach(() => {
  api = new FakeApi(fakeNode("n1"));
  folder = mkdtempSync(join(tmpdir(), "wigglenet-client-"));
});
afterEach(async () => {
  await api[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const path = "/api/v1/nodes/n1";
const authorization = () => api.headers.at(-1)?.get("authorization") ?? null;

describe("credentials", () => {
  test.each<[title: string, user: object, expected: string | null]>([
    ["a token", { token: "secret" }, "Bearer secret"],
    ["a name and a password", { username: "me", password: "pass" }, `Basic ${btoa("me:pass")}`],
    ["none", {}, null],
  ])("%s", async (_, user, expected) => {
    await api.client(user).json({ path });
    expect(authorization()).toBe(expected);
  });

  // The kubelet writes a service account's token anew every hour.
  test("a token file is read again once it was rotated", async () => {
    const tokenFile = join(folder, "token");
    writeFileSync(tokenFile, "one\n");
    const client = api.client({ tokenFile });
    await client.json({ path });
    expect(authorization()).toBe("Bearer one");
    writeFileSync(tokenFile, "two\n");
    const now = Date.now;
    Date.now = () => now() + 61_000;
    try {
      await client.json({ path });
    } finally {
      Date.now = now;
    }
    expect(authorization()).toBe("Bearer two");
  });
});

describe("requests", () => {
  test("a GET of JSON", async () => {
    expect(await api.client().json<object>({ path })).toMatchObject({ metadata: { name: "n1" } });
    expect([api.headers[0]?.get("accept"), api.headers[0]?.get("user-agent")]).toEqual([
      "application/json",
      "wigglenet",
    ]);
  });

  test("a PATCH with its type", async () => {
    const type = "application/merge-patch+json";
    await api.client().json({ method: "PATCH", path, contentType: type, body: `{"a":1}`, accept: "x/y" });
    expect(api.bodies).toEqual([`{"a":1}`]);
    expect([api.headers[0]?.get("content-type"), api.headers[0]?.get("accept")]).toEqual([type, "x/y"]);
  });

  test("a server's path, and a slash at its end", async () => {
    const server = `${api.client().server}/k8s/clusters/c/`;
    writeFileSync(join(folder, "kubeconfig"), kubeconfig({ server }));
    api.intercept = () => Response.json({});
    await new ApiClient(join(folder, "kubeconfig")).json({ path });
    expect(api.requests[0]?.pathname).toBe("/k8s/clusters/c/api/v1/nodes/n1");
  });

  test.each<[title: string, answer: Response, status: number, message: string]>([
    [
      "unauthorized",
      failure(401, "Unauthorized"),
      401,
      `GET ${path}: HTTP 401: Unauthorized; its token or certificate is not accepted`,
    ],
    [
      "forbidden",
      failure(403, 'nodes "n1" is forbidden'),
      403,
      `GET ${path}: HTTP 403: nodes "n1" is forbidden; apply the ClusterRole of deploy/manifest.yaml`,
    ],
    [
      "a kubelet's identity",
      failure(403, 'nodes is forbidden: User "system:node:n1" cannot list resource "nodes"'),
      403,
      `GET ${path}: HTTP 403: nodes is forbidden: User "system:node:n1" cannot list resource "nodes"; system:node:n1 is the identity of a kubelet, which may not read the other nodes: give the agent one of its own, see docs/bare-metal.md`,
    ],
    [
      "a long message",
      failure(500, "x".repeat(9_000)),
      500,
      `GET ${path}: HTTP 500: ${"x".repeat(300)}… (9000 characters)`,
    ],
    ["gone", failure(410, "too old"), 410, `GET ${path}: HTTP 410: too old`],
    [
      "a proxy's page",
      new Response("<html>no</html>", { status: 502 }),
      502,
      `GET ${path}: HTTP 502: <html>no</html>`,
    ],
    [
      "a long page",
      new Response("x".repeat(9_000), { status: 500 }),
      500,
      `GET ${path}: HTTP 500: ${"x".repeat(300)}… (9000 characters)`,
    ],
    [
      "JSON without a message",
      Response.json({ a: 1 }, { status: 500 }),
      500,
      `GET ${path}: HTTP 500: {"a":1}`,
    ],
    ["an empty answer", new Response("", { status: 503 }), 503, `GET ${path}: HTTP 503: `],
  ])("an error says what was asked and what was answered: %s", async (_, answer, status, message) => {
    api.intercept = () => answer;
    const error = await api
      .client()
      .json({ path })
      .catch((thrown: ApiError) => thrown);
    expect(error).toBeInstanceOf(ApiError);
    const { status: code, message: text } = error as ApiError;
    expect([code, text]).toEqual([status, message]);
  });

  test("a server that cannot be reached is named, and why, without the runtime's guesses", async () => {
    const client = api.client();
    await api.stop();
    const error = await client.json({ path }).catch((thrown: NodeJS.ErrnoException) => thrown);
    expect(error).toMatchObject({
      code: "ECONNREFUSED",
      message: `the API server ${client.server} cannot be reached: ECONNREFUSED`,
    });
    api.start();
  });

  test("a signal ends a request", async () => {
    api.intercept = () => new Response(new ReadableStream());
    const stop = new AbortController();
    const asked = api.client().json({ path, signal: stop.signal });
    stop.abort(new Error("enough"));
    await expect(asked).rejects.toThrow("enough");
  });

  test("reconnecting ends what is under way, and nothing that comes after", async () => {
    const client = api.client();
    const opened = Promise.withResolvers<void>();
    const watch = client.read({ path: "/api/v1/nodes?watch=1&resourceVersion=101" }, (response) => {
      opened.resolve();
      return response.text();
    });
    await opened.promise;
    client.reconnect();
    await expect(watch).rejects.toThrow("an address of the node is gone");
    expect(await client.json<object>({ path })).toMatchObject({ metadata: { name: "n1" } });
  });

  test("a server that takes the connection and says nothing is given up", async () => {
    const silent = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    api.client();
    writeFileSync(join(folder, "kubeconfig"), kubeconfig({ server: `http://127.0.0.1:${silent.port}` }));
    const client = new ApiClient(join(folder, "kubeconfig"), 100);
    const asked = [
      client.json({ path }),
      client.read({ path, silence: 60_000 }, (response) => response.text()),
    ];
    const reasons = await Promise.allSettled(asked);
    for (const each of reasons)
      expect(each).toMatchObject({ reason: new Error("no answer from the API server within 0.1 s") });
    silent.stop(true);
  });

  test("an answer that stops in the middle is given up, and one that goes on is not", async () => {
    const words = ["a", "b", "c", "d", "e"];
    const stream = (end: boolean) =>
      new ReadableStream<Uint8Array>({
        async start(controller) {
          for (const word of words) {
            controller.enqueue(new TextEncoder().encode(word));
            await Bun.sleep(60);
          }
          if (end) controller.close();
        },
      });
    const read = (end: boolean) => {
      api.intercept = () => new Response(stream(end));
      return api.client().read({ path, silence: 150 }, async (response, heard) => {
        let text = "";
        for await (const chunk of response.body ?? []) {
          heard();
          text += new TextDecoder().decode(chunk as Uint8Array);
        }
        return text;
      });
    };
    expect(await read(true)).toBe("abcde");
    await expect(read(false)).rejects.toThrow("no word from the API server for 0.15 s");
  });
});

function kubeconfig(cluster: object, user: object = {}): string {
  return JSON.stringify({
    clusters: [{ name: "c", cluster: { "insecure-skip-tls-verify": true, ...cluster } }],
    users: [{ name: "u", user }],
    contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
    "current-context": "x",
  });
}

describe("a kubeconfig that does not do", () => {
  test.each<[title: string, content: string | undefined, says: string]>([
    ["not there", undefined, "ENOENT"],
    ["no YAML", "a: [", "kubeconfig"],
    [
      "another context",
      kubeconfig({ server: "https://x" }).replace(`"x"}`, `"y"}`),
      "its current-context names no cluster that it has",
    ],
  ])("%s", (_, content, says) => {
    const file = join(folder, "kubeconfig");
    if (content !== undefined) writeFileSync(file, content);
    expect(() => new ApiClient(file)).toThrow(says);
    expect(() => new ApiClient(file)).toThrow(`kubeconfig ${file}: `);
  });

  test("none, outside a cluster", () => {
    const before = process.env.KUBERNETES_SERVICE_HOST;
    delete process.env.KUBERNETES_SERVICE_HOST;
    try {
      expect(() => new ApiClient(undefined)).toThrow(
        "no API server: outside a pod, set KUBECONFIG or --kubeconfig",
      );
    } finally {
      if (before !== undefined) process.env.KUBERNETES_SERVICE_HOST = before;
    }
  });
});
