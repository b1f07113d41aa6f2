import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { failure, fakeNode, until } from "./fake-api.ts";
import { followedNodes } from "./fixtures/followed.ts";
import { backoff, lines } from "./reflector.ts";

setDefaultTimeout(30_000);

test.each<[failures: number, least: number, most: number]>([
  [1, 125, 250],
  [2, 250, 500],
  [3, 500, 1_000],
  [6, 4_000, 8_000],
  [7, 7_500, 15_000],
  [1_000, 7_500, 15_000],
])("after %p failures in a row: %p to %p ms", (failures, least, most) => {
  expect([backoff(failures, 0), backoff(failures, 1)]).toEqual([least, most]);
});

const bookmarkLine = `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"103"}}}\n`;
const errorLine = `{"type":"ERROR","object":{"kind":"Status","code":500,"message":"no leader"}}\n`;

test("lines, however they arrive, and characters of several bytes", async () => {
  const bytes = new TextEncoder().encode(`{"a":"é"}\n\n{"b":1}\nhalf`);
  const oneByOne = new ReadableStream<Uint8Array>({
    start(stream) {
      for (const byte of bytes) stream.enqueue(Uint8Array.of(byte));
      stream.close();
    },
  });
  const found: string[] = [];
  for await (const line of lines(new Response(oneByOne))) found.push(line);
  expect(found).toEqual([`{"a":"é"}`, `{"b":1}`]);
});

describe("following", () => {
  const nodes = followedNodes();

  test("pages by continue tokens, then a watch from the list's version", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.told).toEqual(["=n1,n2,n3"]);
    expect(nodes.api.said).toEqual(["revision", "list", "list from 2", "watch from 103"]);
    const [, list, next, watch] = nodes.api.requests.map(({ searchParams }) => searchParams);
    // From the watch cache, which a continue token is not.
    expect([list?.get("resourceVersion"), next?.get("resourceVersion")]).toEqual(["0", null]);
    expect(watch?.get("allowWatchBookmarks")).toBe("true");
    expect(Number(watch?.get("timeoutSeconds"))).toBeWithin(300, 601);
    expect(nodes.api.headers[0]?.get("accept")).toBe(
      "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    );
    expect(nodes.api.headers[3]?.get("accept")).toBe(
      "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    );
  });

  test("added, changed, removed", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    nodes.api.put(fakeNode("n1"));
    nodes.api.remove("n2");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n1", "-n2");
  });

  test("the end of a watch: on from the last version, a bookmark's too, without a list or a word", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
    nodes.api.compact();
    nodes.api.bookmark();
    nodes.api.end();
    await until("watching again", () => nodes.api.said.includes("watch from 105"));
    nodes.api.put(fakeNode("n5"));
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n5");
    expect([nodes.lists(), nodes.api.logged, nodes.waits]).toEqual([1, [], []]);
  });

  test("a dropped connection: on from the last version, nothing twice, nothing lost", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
    nodes.api.drop();
    nodes.api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "-n1");
    expect(nodes.lists()).toBe(1);
  });

  test("410 when the watch is opened: a new list", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "-n1");
    nodes.api.put(fakeNode("n4"));
    nodes.api.compact();
    nodes.api.drop();
    await until("listed again", () => nodes.told.at(-1) === "=n2,n3,n4");
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.lists()).toBe(2);
    // Nothing is wrong with that: an idle cluster's versions expire.
    expect(nodes.api.logged.filter((line) => line.includes("back"))).toEqual([]);
  });

  test("410 as an event of the watch: a new list", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.say(
      `{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}\n`,
    );
    await nodes.toBeTold("=n1,n2,n3", "=n1,n2,n3");
    expect(nodes.api.logged).toEqual([]);
  });

  test("410 amid a list, as its continue token expired: the list from the start", async () => {
    let first = true;
    nodes.api.intercept = (url) => {
      if (!url.searchParams.has("continue") || !first) return undefined;
      first = false;
      return failure(410, "the provided continue parameter is too old");
    };
    nodes.start();
    await nodes.toBeTold("=n1,n2,n3");
    const attempt = ["revision", "list", "list from 2"];
    expect(nodes.api.said.slice(0, 6)).toEqual([...attempt, ...attempt]);
  });

  test("410 for ever is waited for, and not a new list each time at once", async () => {
    nodes.api.intercept = (url) => (url.searchParams.has("watch") ? failure(410, "too old") : undefined);
    nodes.start();
    await until("five attempts", () => nodes.waits.length >= 5);
    expect(nodes.waits.slice(0, 5)).toEqual([1, 2, 3, 4, 5]);
  });

  test("an ERROR event of another kind: on from the last version, not from where the watch began", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.remove("n1");
    nodes.api.put(fakeNode("n1"));
    await nodes.toBeTold("=n1,n2,n3", "-n1", "+n1");
    nodes.api.say(
      `{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcdserver: leader changed"}}\n`,
    );
    await until("watching again", () => nodes.api.said.at(-1) === "watch from 105");
    // The removal is not told a second time.
    expect(nodes.told).toEqual(["=n1,n2,n3", "-n1", "+n1"]);
    await until("back", () => nodes.api.logged.length === 2);
    expect(nodes.api.logged).toEqual(["warn: cannot follow", "info: the API server is back"]);
  });

  test.each<[title: string, line: string]>([
    ["no JSON", "<html>502 Bad Gateway</html>\n"],
    ["JSON, and no event", "null\n"],
    ["an event without an object", `{"type":"ADDED"}\n`],
    ["an ERROR without a code", `{"type":"ERROR","object":{}}\n`],
  ])("%s in the watch is a broken watch", async (_, line) => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.say(line);
    await until(
      "watching again",
      () => nodes.api.said.filter((request) => request === "watch from 103").length === 2,
    );
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
  });

  test.each<[title: string, answer: () => Response]>([
    ["no JSON", () => new Response("<html>")],
    ["forbidden", () => failure(403, "nodes is forbidden")],
    ["an error", () => failure(500, "etcdserver: no leader")],
    ["too many requests", () => failure(429, "too many requests")],
  ])("a list that gives %s is tried again, and told once", async (_, answer) => {
    let times = 0;
    nodes.api.intercept = () => (times++ < 3 ? answer() : undefined);
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    await until("back", () => nodes.api.logged.length === 4);
    expect(nodes.told).toEqual(["=n1,n2,n3"]);
    expect(nodes.waits).toEqual([1, 2, 3]);
    expect(nodes.api.logged).toEqual([
      "warn: cannot follow",
      "debug: cannot follow",
      "debug: cannot follow",
      "info: the API server is back",
    ]);
  });

  test("a server that goes away and comes back: nothing is forgotten, what happened meanwhile arrives", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    await nodes.api.stop();
    await until("missed", () => nodes.waits.length >= 3);
    nodes.api.put(fakeNode("n4"));
    nodes.api.start();
    await nodes.toBeTold("=n1,n2,n3", "+n4");
    expect(nodes.lists()).toBe(1);
    expect(nodes.api.logged.filter((line) => !line.startsWith("debug"))).toEqual([
      "warn: cannot follow",
      "info: the API server is back",
    ]);
  });

  test("a server that is away at the start", async () => {
    await nodes.api.stop();
    nodes.start();
    await until("missed", () => nodes.waits.length >= 3);
    expect(nodes.told).toEqual([]);
    nodes.api.start();
    await nodes.toBeTold("=n1,n2,n3");
  });

  test("a server that ends every watch at once is waited for longer and longer", async () => {
    nodes.api.intercept = (url) => (url.searchParams.has("watch") ? new Response("") : undefined);
    nodes.start({ brief: 1_000 });
    await until("five attempts", () => nodes.waits.length >= 5);
    expect(nodes.waits.slice(0, 5)).toEqual([1, 2, 3, 4, 5]);
    expect(nodes.lists()).toBe(1);
  });

  test("a watch of the usual length starts the row anew", async () => {
    nodes.start({ brief: 30 });
    for (const name of ["n4", "n5", "n6"]) {
      await until("watching", () => nodes.api.watching === 1);
      nodes.api.put(fakeNode(name));
      await until("told", () => nodes.told.at(-1) === `+${name}`);
      await Bun.sleep(40);
      nodes.api.end();
    }
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.waits).toEqual([]);
  });

  test("a silent connection is given up, and one that speaks is not", async () => {
    nodes.start({ silence: 1_000 });
    await until("watching", () => nodes.api.watching === 1);
    for (let word = 0; word < 8; word += 1) {
      await Bun.sleep(150);
      nodes.api.advance();
      nodes.api.bookmark();
    }
    expect(nodes.api.said.filter((request) => request.startsWith("watch"))).toHaveLength(1);
    await until(
      "watching anew",
      () => nodes.api.said.filter((request) => request.startsWith("watch")).length === 2,
    );
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
  });

  test("memory and connections of an executable stay as they are over 1,000 reconnects", async () => {
    nodes.api.intercept = (url) => {
      if (!url.searchParams.has("watch")) return undefined;
      // Ended by the server, in the middle of a line, with an error and without an event.
      const ends = [bookmarkLine, `${bookmarkLine}{"type":`, errorLine, ""];
      return new Response(ends[nodes.api.requests.length % ends.length]);
    };
    nodes.api.client();
    const folder = mkdtempSync(join(tmpdir(), "wigglenet-reconnects-"));
    using _ = { [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
    const program = `${folder}/reconnects`;
    // As `npm run build` makes the agent's.
    const flags = ["--compile", "--minify", "--bytecode", "--format=esm", "--define", "__dirname='/'"];
    const source = `${import.meta.dirname}/fixtures/reconnects.ts`;
    const built = Bun.spawnSync([process.execPath, "build", ...flags, source, "--outfile", program]);
    expect(built.exitCode, built.stderr.toString()).toBe(0);
    const child = Bun.spawn([program], {
      env: { ...process.env, KUBECONFIG: nodes.api.kubeconfig },
      stdout: "pipe",
      stderr: "inherit",
    });
    const [early, late] = JSON.parse(await child.stdout.text()) as { rss: number; sockets: number }[];
    expect(late!.sockets).toBeLessThanOrEqual(early!.sockets + 2);
    // In MB.
    expect(late!.rss - early!.rss).toBeLessThan(8);
  });

  test("it ends when it is told to, in a wait too", async () => {
    await nodes.api.stop();
    nodes.start({ wait: () => 60_000 });
    await until("missed", () => nodes.api.logged.length > 0);
    nodes.stop.abort();
    await nodes.running;
    expect(nodes.told).toEqual([]);
  });
});
