/** What goes wrong with what is followed: a cache that is behind, a restored API server, a follower that throws. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { failure, fakeNode, until } from "./fake-api.ts";
import { followedNodes } from "./fixtures/followed.ts";

setDefaultTimeout(30_000);

const nodes = followedNodes();

describe("a cache that is behind", () => {
  test("its list counts as complete once the watch has reached the revision: by an event", async () => {
    nodes.api.freezeCache();
    nodes.api.remove("n1");
    nodes.api.put(fakeNode("n4"));
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.told).toEqual(["?n1,n2,n3"]);
    nodes.api.thawCache();
    await nodes.toBeTold("?n1,n2,n3", "=n2,n3,n4");
    nodes.api.put(fakeNode("n5"));
    await nodes.toBeTold("?n1,n2,n3", "=n2,n3,n4", "+n5");
  });

  test("or by a bookmark, for which the watch is short; then by one of the usual length", async () => {
    nodes.api.freezeCache();
    nodes.api.advance();
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.thawCache();
    nodes.api.bookmark();
    await nodes.toBeTold("?n1,n2,n3", "=n1,n2,n3");
    nodes.api.end();
    await until("watching again", () => nodes.api.said.at(-1) === "watch from 104");
    const seconds = nodes.api.requests.map((url) => url.searchParams.get("timeoutSeconds")).filter(Boolean);
    expect(seconds.map((each) => Number(each) > 1)).toEqual([false, true]);
  });

  test("in the place of a watch that expired nothing of its list is told before, and events are kept", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.freezeCache();
    nodes.api.remove("n2");
    nodes.api.put(fakeNode("n4"));
    nodes.api.put(fakeNode("n5"));
    nodes.api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("listed again", () => nodes.lists() === 2);
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.told).toEqual(["=n1,n2,n3"]);
    nodes.api.thawCache();
    await nodes.toBeTold("=n1,n2,n3", "=n1,n3,n4,n5");
  });

  test("that never says how far it is leaves what is known as it is", async () => {
    nodes.api.freezeCache();
    nodes.api.advance();
    nodes.start();
    for (let round = 0; round < 3; round += 1) {
      await until("watching", () => nodes.api.watching === 1);
      nodes.api.end();
    }
    await until("watching", () => nodes.api.watching === 1);
    expect([nodes.told, nodes.lists()]).toEqual([["?n1,n2,n3"], 1]);
  });
});

describe("a revision that went back, as after a restore", () => {
  const back = "warn: the API server's revision went back";
  const warned = () => nodes.api.logged.filter((line) => line.startsWith(back));

  test("is noticed when the connection ends, and what nodes say is taken over when they had time to say it anew", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => nodes.api.watching === 1);
    const backup = nodes.api.snapshot();
    nodes.api.put(fakeNode("n4"));
    nodes.api.put(fakeNode("n5"));
    nodes.api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n5", "-n1");
    const before = nodes.told.length;
    nodes.api.restore(backup);
    await until("noticed", () => warned().length === 1);
    await until("watching", () => nodes.api.watching === 1);
    // Its kubelet registers n4 anew.
    nodes.api.put(fakeNode("n4"));
    nodes.api.remove("n2");
    await Bun.sleep(150);
    expect(nodes.told.slice(before)).toEqual(["?n1,n2,n3", "?n4"]);
    await until("watching", () => nodes.api.watching === 1);
    await until("taken over", () => {
      nodes.api.advance();
      nodes.api.bookmark();
      return nodes.told.at(-1)?.startsWith("=") === true;
    });
    expect(nodes.told.at(-1)).toBe("=n1,n3,n4");
    nodes.api.put(fakeNode("n6"));
    await until("on", () => nodes.told.at(-1) === "+n6");
    expect(warned()).toHaveLength(1);
  });

  test("is noticed after a silence, too, where the connection stays", async () => {
    nodes.start({ silence: 300 });
    await until("watching", () => nodes.api.watching === 1);
    for (let n = 4; n < 9; n += 1) nodes.api.put(fakeNode(`n${n}`));
    await until("told", () => nodes.told.at(-1) === "+n8");
    // The server answers by what it has now, and the watch hears of nothing.
    nodes.api.intercept = (url) =>
      url.searchParams.has("watch")
        ? undefined
        : Response.json({ items: [fakeNode("n2")], metadata: { resourceVersion: "90" } });
    await until("noticed", () => warned().length === 1);
    await until("taken over", () => nodes.told.at(-1) === "=n2");
  });

  test("is told by the versions of the objects where the revision was set ahead, as etcd's manual has it", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => nodes.api.watching === 1);
    const backup = nodes.api.snapshot();
    nodes.api.put(fakeNode("n4"));
    // A heartbeat.
    nodes.api.put(fakeNode("n2"));
    nodes.api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n2", "-n1");
    const before = nodes.told.length;
    nodes.api.restoreAhead(backup);
    await until("noticed", () => warned().length === 1);
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    await Bun.sleep(150);
    expect(nodes.told.slice(before)).toEqual(["?n1,n2,n3", "?n4"]);
    // Another list meanwhile begins no other time.
    nodes.api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("listed again", () => nodes.lists() === 3);
    await until("taken over", () => {
      nodes.api.advance();
      nodes.api.bookmark();
      return nodes.told.at(-1)?.startsWith("=") === true;
    });
    expect([nodes.told.at(-1), warned().length]).toEqual(["=n1,n2,n3,n4", 1]);
  });

  test("and so where the list has to wait for the watch", async () => {
    nodes.start({ restored: 10_000 });
    await until("watching", () => nodes.api.watching === 1);
    const backup = nodes.api.snapshot();
    nodes.api.put(fakeNode("n2"));
    await nodes.toBeTold("=n1,n2,n3", "+n2");
    nodes.api.restoreAhead(backup);
    nodes.api.freezeCache();
    nodes.api.advance();
    await until("listed again", () => nodes.lists() === 2);
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.thawCache();
    nodes.api.bookmark();
    await until("noticed", () => warned().length === 1);
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n2", "?n1,n2,n3", "?n4");
  });

  test("is noticed where the watch had expired before, too", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => nodes.api.watching === 1);
    const backup = nodes.api.snapshot();
    for (let n = 4; n < 9; n += 1) nodes.api.put(fakeNode(`n${n}`));
    await until("told", () => nodes.told.at(-1) === "+n8");
    const before = nodes.told.length;
    nodes.api.intercept = (url) =>
      url.searchParams.has("watch") ? undefined : Response.json({ message: "away" }, { status: 500 });
    nodes.api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("failing", () => nodes.api.logged.some((line) => line.includes("cannot follow")));
    nodes.api.restore(backup);
    nodes.api.intercept = () => undefined;
    await until("noticed", () => warned().length === 1);
    await until("watching", () => nodes.api.watching === 1);
    expect(nodes.told.slice(before)).toEqual(["?n1,n2,n3"]);
  });

  test("a list of a server that is behind the others is none, after a watch that expired", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    const earlier = nodes.api.snapshot();
    nodes.api.put(fakeNode("n2"));
    await nodes.toBeTold("=n1,n2,n3", "+n2");
    nodes.api.freezeCache(earlier);
    nodes.api.put(fakeNode("n4"));
    nodes.api.compact();
    nodes.api.end();
    await until("listed again", () => nodes.lists() === 2);
    nodes.api.thawCache();
    nodes.api.bookmark();
    await nodes.toBeTold("=n1,n2,n3", "+n2", "=n1,n2,n3,n4");
    expect(warned()).toEqual([]);
  });

  test("a server that is only behind the others is none", async () => {
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
    nodes.api.freezeCache();
    nodes.api.put(fakeNode("n5"));
    nodes.api.end();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.thawCache();
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n5");
    expect([warned(), nodes.lists()]).toEqual([[], 1]);
  });
});

describe("a follower that throws", () => {
  const faults = () => nodes.api.logged.filter((line) => line.startsWith("error: "));

  test("is logged once, and has the event again; others are told meanwhile", async () => {
    let broken = true;
    nodes.fault = (word) => {
      if (word === "+n4" && broken) throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    for (const name of ["n5", "n6", "n7"]) nodes.api.put(fakeNode(name));
    await nodes.toBeTold("=n1,n2,n3", "+n5", "+n6", "+n7");
    expect(faults()).toHaveLength(1);
    broken = false;
    nodes.api.put(fakeNode("n8"));
    await nodes.toBeTold("=n1,n2,n3", "+n5", "+n6", "+n7", "+n4", "+n8");
    expect([faults().length, nodes.waits, nodes.lists()]).toEqual([1, [], 1]);
  });

  test("of one object it has what is newest", async () => {
    nodes.fault = (word) => {
      if (word === "+n4") throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    nodes.api.put(fakeNode("n4"));
    nodes.api.remove("n4");
    nodes.api.put(fakeNode("n5"));
    await nodes.toBeTold("=n1,n2,n3", "-n4", "+n5");
  });

  test("at a list: it has the list again, with what happened meanwhile", async () => {
    let broken = true;
    nodes.fault = (word) => {
      if (word.startsWith("=") && broken) throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => nodes.api.watching === 1);
    expect([nodes.told, faults().length]).toEqual([[], 1]);
    nodes.api.put(fakeNode("n4"));
    broken = false;
    await until("told again", () => {
      nodes.api.advance();
      nodes.api.bookmark();
      return nodes.told.length > 0;
    });
    expect([nodes.told, faults().length, nodes.lists()]).toEqual([["=n1,n2,n3,n4"], 1, 1]);
  });
});

describe("why it cannot be followed", () => {
  const list = () => Response.json({ metadata: { resourceVersion: "1" } });
  const page = () => new Response("<html>Log in, please</html>");
  const half = () => new Response('{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"n1');

  test.each<[title: string, answer: (attempt: number, path: string) => Response, said: string[]]>([
    [
      "is told once for each reason",
      (attempt) => (attempt % 2 === 1 ? failure(503, "not yet") : failure(403, "nodes is forbidden")),
      ["HTTP 403: nodes is forbidden", "HTTP 503: not yet"],
    ],
    [
      "is one reason where numbers alone differ",
      (attempt) => failure(500, `took ${attempt} ms`),
      ["HTTP 500: took 0 ms"],
    ],
    [
      "is a proxy's page where the revision was asked for",
      page,
      ["GET /api/v1/nodes?limit=1: the answer is no JSON, but <html>Log in, please</html>"],
    ],
    [
      "is a proxy's page where a list was asked for",
      (_, path) => (path.includes("limit=1") ? list() : page()),
      ["GET /api/v1/nodes?resourceVersion=0: the answer is no JSON, but <html>Log in, please</html>"],
    ],
    [
      "is half a list",
      (_, path) => (path.includes("limit=1") ? list() : half()),
      ["GET /api/v1/nodes?resourceVersion=0: the answer breaks off"],
    ],
    ["is nothing at all", () => new Response(""), ["GET /api/v1/nodes?limit=1: the answer is empty"]],
  ])("%s", async (_, answer, said) => {
    nodes.api.intercept = (url) => answer(nodes.waits.length, url.pathname + url.search);
    nodes.start();
    await until("several attempts", () => nodes.waits.length > 5);
    const warned = nodes.api.lines.filter(({ level }) => level === 40).map(({ error }) => error);
    expect(warned).toEqual(said.map((part) => expect.stringContaining(part)));
    expect(nodes.told).toEqual([]);
  });
});
