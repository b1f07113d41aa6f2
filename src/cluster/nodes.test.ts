import { afterEach, beforeEach, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { FakeApi, type FakeNode, failure, fakeNode, until } from "./fake-api.ts";
import { key, ours, theirs } from "./fixtures/nodes.ts";
import { ClusterNodes } from "./nodes.ts";

setDefaultTimeout(30_000);

describe("following the Nodes", () => {
  let api: FakeApi;
  let stop: AbortController;
  let running: Promise<void> | undefined;
  let nodes: ClusterNodes;
  let changes: number;
  let grace: number;

  beforeEach(() => {
    api = new FakeApi();
    api.page = 500;
    stop = new AbortController();
    changes = 0;
    grace = 150;
  });

  afterEach(async () => {
    stop.abort();
    await running;
    await api[Symbol.asyncDispose]();
  });

  async function start(...list: FakeNode[]): Promise<void> {
    for (const node of list) api.put(node);
    nodes = new ClusterNodes({
      client: api.client(),
      ownName: "n0",
      log: api.log,
      changed: () => {
        changes += 1;
      },
      grace,
      patience: 500,
    });
    running = nodes.run(stop.signal);
    await until("watching both", () => api.watching === 2);
  }

  const complete = () => until("complete", () => nodes.complete);
  const gets = () => api.said.filter((request) => request.startsWith("get "));
  /** What is kept of the others, in short: `n1 10.1.1.0/24 192.0.2.1`, a `!` for one without a key. */
  const kept = () =>
    [...nodes.others.values()]
      .map(({ name, publicKey, podCidrs, addresses }) =>
        [publicKey ? name : `${name}!`, ...podCidrs, ...addresses].join(" "),
      )
      .sort();

  test("the own Node whole, by a field selector; the others by their metadata alone", async () => {
    await start(fakeNode("n0", { a: "b" }), ours(1), ours(2));
    await complete();
    expect(nodes.own).toEqual({
      metadata: { name: "n0", labels: {}, annotations: { a: "b" } },
      spec: { podCIDRs: ["10.1.0.0/24"] },
      status: { addresses: [{ type: "InternalIP", address: "192.0.2.1" }] },
    });
    expect(kept()).toEqual(["n1 10.1.1.0/24 192.0.2.1", "n2 10.1.2.0/24 192.0.2.2"]);
    expect(gets()).toEqual([]);
    const own = api.requests.map((url) => url.searchParams.get("fieldSelector"));
    expect(own.filter(Boolean)).toEqual(["metadata.name=n0", "metadata.name=n0"]);
    for (const [index, headers] of api.headers.entries())
      expect(headers.get("accept")?.includes("PartialObjectMetadata")).toBe(own[index] === null);
  });

  test("nothing is complete without the own Node; it is waited for, and said", async () => {
    await start(ours(1));
    await until("the others", () => kept().length === 1);
    expect(nodes.complete).toBe(false);
    expect(api.logged).toEqual([
      expect.stringContaining("warn: there is no Node of this name: waiting for kubelet"),
    ]);
    api.put(fakeNode("n0"));
    await complete();
  });

  test("a list that may be old is known, but not as all there is", async () => {
    for (const node of [fakeNode("n0"), ours(1)]) api.put(node);
    api.freezeCache();
    api.put(ours(2));
    await start();
    await complete();
    expect([kept(), nodes.whole]).toEqual([["n1 10.1.1.0/24 192.0.2.1"], false]);
    const before = changes;
    api.thawCache();
    await until("whole", () => nodes.whole);
    expect([kept().length, changes]).toEqual([2, before + 1]);
  });

  test("after a restore what is known stays, and what is not is added", async () => {
    await start(fakeNode("n0"), ours(1));
    await complete();
    const backup = api.snapshot();
    api.put(ours(1, { podCidrs: ["10.9.1.0/24"] }));
    api.put(ours(2));
    await until("known", () => kept().length === 2);
    api.restore(backup);
    await until("noticed", () => api.logged.some((line) => line.includes("revision went back")));
    await until("watching both", () => api.watching === 2);
    api.put(ours(3));
    api.put(ours(1, { podCidrs: ["10.8.1.0/24"] }));
    await until("the new one", () => kept().length === 3);
    expect(kept()).toEqual([
      "n1 10.9.1.0/24 192.0.2.1",
      "n2 10.1.2.0/24 192.0.2.2",
      "n3 10.1.3.0/24 192.0.2.3",
    ]);
  });

  test("what a Node says is read again only if it says something else, or is another Node of that name", async () => {
    await start(fakeNode("n0"), ours(1), ours(2));
    await complete();
    const parsed = spyOn(Buffer, "from");
    const count = () => parsed.mock.calls.filter(([text]) => (text as unknown) === key(1)).length;
    try {
      // Each record that is made has its key parsed.
      for (let beat = 0; beat < 5; beat += 1) api.put(ours(1));
      api.put(ours(2, { podCidrs: ["10.9.0.0/24"] }));
      await until("the last", () => kept().includes("n2 10.9.0.0/24 192.0.2.2"));
      expect(count()).toBe(0);
      const again = ours(1);
      api.put({ ...again, metadata: { ...again.metadata, creationTimestamp: "2030-01-01T00:00:00Z" } });
      await until("the other Node", () => nodes.others.get("n1")?.created === "2030-01-01T00:00:00Z");
      expect(count()).toBe(1);
    } finally {
      parsed.mockRestore();
    }
  });

  test("heartbeats are no change, of the own Node or of others", async () => {
    await start(fakeNode("n0"), ours(1), theirs(2));
    await complete();
    await until("read", () => gets().length === 1);
    const before = changes;
    for (const node of [fakeNode("n0"), ours(1), theirs(2), fakeNode("n0"), ours(1), theirs(2)])
      api.put(node);
    api.put(ours(3));
    await until("the last", () => kept().length === 3);
    expect(changes).toBe(before + 1);
    expect(gets()).toHaveLength(1);
  });

  test.each<[title: string, change: (node: FakeNode) => FakeNode]>([
    ["its pod CIDRs", (node) => ({ ...node, spec: { podCIDRs: ["10.9.0.0/24"] } })],
    ["its addresses", (node) => ({ ...node, status: { addresses: [] } })],
    ["its annotations", (node) => ({ ...node, metadata: { ...node.metadata, annotations: { x: "y" } } })],
    ["its labels", (node) => ({ ...node, metadata: { ...node.metadata, labels: { zone: "b" } } })],
  ])("the own Node changes: %s", async (_, change) => {
    await start(fakeNode("n0"));
    await complete();
    const before = changes;
    api.put(change(fakeNode("n0")));
    await until("told", () => changes === before + 1);
  });

  test("the own Node is deleted: what it had stays, and it is said", async () => {
    await start(fakeNode("n0"));
    await complete();
    api.remove("n0");
    await until("said", () => api.logged.length === 1);
    expect([nodes.complete, nodes.ownIsThere, nodes.own?.metadata.name]).toEqual([true, false, "n0"]);
  });

  describe("nodes of the other kind", () => {
    test("each is read whole, once, before the list counts as complete", async () => {
      await start(fakeNode("n0"), ours(1), theirs(2), theirs(3));
      await complete();
      expect(kept()).toEqual([
        "n1 10.1.1.0/24 192.0.2.1",
        "n2 10.1.2.0/24 192.0.2.2",
        "n3 10.1.3.0/24 192.0.2.3",
      ]);
      expect(nodes.whole).toBe(true);
      expect(gets().sort()).toEqual(["get n2", "get n3"]);
      // From the watch cache, as new as what the watch told.
      const versions = api.requests
        .filter((url) => /nodes\/n/.test(url.pathname))
        .map((url) => url.searchParams.get("resourceVersion"));
      expect(versions).toEqual(["103", "104"]);
    });

    test.each<[title: string, answer: () => Response]>([
      ["that cannot be read", () => failure(500, "cannot decode")],
      ["that the agent may not read", () => failure(403, "forbidden")],
      ["whose answer does not come", () => new Response(new ReadableStream())],
      ["that is no JSON", () => new Response("<html>")],
    ])("one %s holds nothing back, and is not known to be gone", async (_, answer) => {
      let readable = false;
      api.intercept = (url) => (url.pathname.endsWith("/nodes/n2") && !readable ? answer() : undefined);
      await start(fakeNode("n0"), ours(1), theirs(2), theirs(3));
      await complete();
      expect(kept()).toEqual(["n1 10.1.1.0/24 192.0.2.1", "n3 10.1.3.0/24 192.0.2.3"]);
      expect(nodes.whole).toBe(false);
      // Others are read as ever.
      api.put(theirs(4));
      await until("another", () => kept().length === 3);
      readable = true;
      if (api.logged.length > 0) {
        expect(api.logged).toEqual(["warn: cannot read Nodes of the other kind of agent"]);
        await until("read at last", () => nodes.whole);
        expect(kept()[1]).toBe("n2 10.1.2.0/24 192.0.2.2");
        expect(api.logged.at(-1)).toBe("info: all Nodes of the other kind of agent are read");
      }
      api.remove("n2");
      await until("gone", () => nodes.whole);
    });

    const many = Array.from({ length: 200 }, (_, n) => theirs(n + 1));
    const lists = () => api.said.filter((request) => request.startsWith("list")).length;

    test("many are read by a list, one of which cannot be read one by one", async () => {
      await start(fakeNode("n0"), ...many);
      await complete();
      await until("whole", () => nodes.whole);
      expect([kept().length, gets(), api.requests.length]).toEqual([200, [], 6]);
      stop.abort();
      await running;
      stop = new AbortController();
      let list = 0;
      api.requests.length = api.headers.length = 0;
      api.intercept = (url, request) => {
        const whole = url.pathname.endsWith("/nodes") && request.headers.get("accept") === "application/json";
        const own = url.searchParams.has("fieldSelector");
        if (whole && !own) return list++ >= 0 ? failure(500, "cannot decode n7") : undefined;
        return url.pathname.endsWith("/nodes/n7") ? failure(500, "cannot decode n7") : undefined;
      };
      await start();
      await complete();
      await until("the others", () => kept().length === 199);
      expect([nodes.whole, list]).toEqual([false, 1]);
    });

    test("a few among many of ours are read one by one", async () => {
      const crowd = Array.from({ length: 180 }, (_, n) => ours(n + 51));
      await start(fakeNode("n0"), ...crowd, ...many.slice(0, 30));
      await complete();
      expect([kept().length, gets().length, lists()]).toEqual([210, 30, 2]);
    });

    test("of many a few are read again at each refresh, and each has its turn", async () => {
      await start(fakeNode("n0"), ...many);
      await complete();
      await until("whole", () => nodes.whole);
      for (let turn = 1; turn <= 13; turn += 1) {
        nodes.refresh(stop.signal);
        await until("read again", () => gets().length >= 16 * turn);
        expect(gets().length).toBe(16 * turn);
      }
      expect([new Set(gets()).size, lists()]).toEqual([200, 3]);
    });

    test("again when its annotations change", async () => {
      await start(fakeNode("n0"), theirs(1));
      await complete();
      const changed = theirs(1);
      api.put({
        ...changed,
        metadata: {
          name: "n1",
          annotations: { ...changed.metadata.annotations, "wigglenet/node-ips": `["192.0.2.99"]` },
        },
      });
      await until("read again", () => kept()[0] === "n1 10.1.1.0/24 192.0.2.1 192.0.2.99");
      expect(gets()).toEqual(["get n1", "get n1"]);
    });

    test("again when it had no pod CIDRs yet: no annotation tells of their allocation", async () => {
      await start(fakeNode("n0"), { ...theirs(1), spec: {} });
      await complete();
      api.put(theirs(1));
      await until("the pod CIDR to be known", () => kept()[0] === "n1 10.1.1.0/24 192.0.2.1");
    });

    test("and at each refresh, as its status may have changed", async () => {
      await start(fakeNode("n0"), ours(1), theirs(2));
      await complete();
      api.put({ ...theirs(2), status: { addresses: [{ type: "InternalIP", address: "192.0.2.88" }] } });
      // What the watch tells of later was told of after that.
      api.put(ours(1, { podCidrs: ["10.7.0.0/24"] }));
      await until("the watch to have told of both", () => kept()[0] === "n1 10.7.0.0/24 192.0.2.1");
      expect(gets()).toEqual(["get n2"]);
      nodes.refresh(stop.signal);
      await until("read again", () => kept()[1] === "n2 10.1.2.0/24 192.0.2.88");
      expect(gets()).toEqual(["get n2", "get n2"]);
    });

    test("one that is gone when it is read is not waited for", async () => {
      api.intercept = (url) => (url.pathname.endsWith("/nodes/n2") ? failure(404, "not found") : undefined);
      await start(fakeNode("n0"), ours(1), theirs(2));
      await complete();
      expect(kept()).toEqual(["n1 10.1.1.0/24 192.0.2.1"]);
    });

    test("one that becomes one of ours, and back", async () => {
      await start(fakeNode("n0"), theirs(1));
      await complete();
      api.put(ours(1, { podCidrs: ["10.7.0.0/24"] }));
      await until("of our kind", () => kept()[0] === "n1 10.7.0.0/24 192.0.2.1");
      api.put(theirs(1));
      await until("of the other kind", () => kept()[0] === "n1 10.1.1.0/24 192.0.2.1");
      expect(gets()).toEqual(["get n1", "get n1"]);
    });
  });

  describe("nodes without an agent", () => {
    test("are not read, 5,000 of them", async () => {
      const crowd = Array.from({ length: 5_000 }, (_, n) => fakeNode(`n${n}`, { "other/key": "value" }));
      await start(...crowd, ours(7_000 % 256));
      await complete();
      expect([nodes.whole, kept()]).toEqual([true, ["n88 10.1.88.0/24 192.0.2.88"]]);
      nodes.refresh(stop.signal);
      api.put(fakeNode("n4", { "other/key": "another" }));
      api.put(ours(3));
      await until("the watch to have told of both", () => kept().length === 2);
      // Of those, 11 are pages, which a real cache gives as one.
      expect(api.requests.length).toBeLessThanOrEqual(15);
      expect(gets()).toEqual([]);
    });

    test("become known with their annotations; and without them stay as guards, with no key", async () => {
      await start(fakeNode("n0"), fakeNode("n1"), fakeNode("n2"));
      await complete();
      api.put(ours(1));
      api.put(theirs(2));
      await until("both", () => kept().length === 2);
      api.put(fakeNode("n1"));
      api.put(fakeNode("n2"));
      await until("without their keys", () => kept().every((node) => node.includes("!")));
      expect(kept()).toEqual(["n1! 10.1.1.0/24 192.0.2.1", "n2! 10.1.2.0/24 192.0.2.2"]);
      api.remove("n1");
      await until("gone", () => kept().length === 1);
    });
  });

  describe("a node that leaves", () => {
    test("is kept for a moment, then forgotten", async () => {
      await start(fakeNode("n0"), ours(1), theirs(2));
      await complete();
      const before = changes;
      api.remove("n1");
      api.remove("n2");
      await until("gone", () => kept().length === 0);
      expect(changes).toBe(before + 2);
    });

    // A peer that is taken away and put back has forgotten its session: 15 s of loss.
    test("and is made anew keeps its place, with its key all the while", async () => {
      grace = 1_000;
      await start(fakeNode("n0"), ours(1));
      await complete();
      const seen = new Set<string>();
      api.remove("n1");
      api.put(fakeNode("n1"));
      api.put(ours(3));
      await until("the watch to have told of it", () => kept().length === 2);
      seen.add(kept()[0] ?? "");
      api.put(ours(1));
      api.put(ours(2));
      await until("the last", () => kept().length === 3);
      await Bun.sleep(grace + 50);
      seen.add(kept()[0] ?? "");
      expect([...seen]).toEqual(["n1 10.1.1.0/24 192.0.2.1"]);
    });

    test("while the API server was away is missed in the new list", async () => {
      await start(fakeNode("n0"), ours(1), ours(2));
      await complete();
      await api.stop();
      api.remove("n1");
      api.compact();
      api.start();
      await until("gone", () => kept().join() === "n2 10.1.2.0/24 192.0.2.2");
    });

    test("of which only the key goes, as its agent was taken away", async () => {
      await start(fakeNode("n0"), ours(1));
      await complete();
      api.put(ours(1, { publicKey: null }));
      await until("without a key", () => kept()[0] === "n1! 10.1.1.0/24 192.0.2.1");
    });
  });

  test("the own annotations are patched, and nothing else", async () => {
    await start(fakeNode("n0"));
    await nodes.annotate({ "wigglenet/public-key": key(1), "wigglenet/agent": null });
    expect(api.said).toContain("patch n0");
    const patch = api.headers.find((headers) => headers.get("x-method") === "PATCH");
    expect(patch?.get("content-type")).toBe("application/merge-patch+json");
    expect(JSON.parse(api.bodies[0] ?? "")).toEqual({
      metadata: { annotations: { "wigglenet/public-key": key(1), "wigglenet/agent": null } },
    });
  });
});
