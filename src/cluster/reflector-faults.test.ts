/** What goes wrong with what is followed: a cache that is behind, a restored API server, a follower that throws. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type FakeApi, fakeNode, until } from "./fake-api.ts";
import { FollowedNodes } from "./fixtures/followed.ts";

setDefaultTimeout(30_000);

let nodes: FollowedNodes;
let api: FakeApi;
let told: string[];
let waits: number[];

beforeEach(() => {
  nodes = new FollowedNodes();
  ({ api, told, waits } = nodes);
});

afterEach(() => nodes[Symbol.asyncDispose]());

describe("a cache that is behind", () => {
  test("its list counts as complete once the watch has reached the revision: by an event", async () => {
    api.freezeCache();
    api.remove("n1");
    api.put(fakeNode("n4"));
    nodes.start();
    await until("watching", () => api.watching === 1);
    expect(told).toEqual(["?n1,n2,n3"]);
    api.thawCache();
    await nodes.toBeTold("?n1,n2,n3", "=n2,n3,n4");
    api.put(fakeNode("n5"));
    await nodes.toBeTold("?n1,n2,n3", "=n2,n3,n4", "+n5");
  });

  test("or by a bookmark, for which the watch is short; then by one of the usual length", async () => {
    api.freezeCache();
    api.advance();
    nodes.start();
    await until("watching", () => api.watching === 1);
    api.thawCache();
    api.bookmark();
    await nodes.toBeTold("?n1,n2,n3", "=n1,n2,n3");
    api.end();
    await until("watching again", () => api.said.at(-1) === "watch from 104");
    const seconds = api.requests.map((url) => url.searchParams.get("timeoutSeconds")).filter(Boolean);
    expect(seconds.map((each) => Number(each) > 1)).toEqual([false, true]);
  });

  test("in the place of a watch that expired nothing of its list is told before, and events are kept", async () => {
    nodes.start();
    await until("watching", () => api.watching === 1);
    api.freezeCache();
    api.remove("n2");
    api.put(fakeNode("n4"));
    api.put(fakeNode("n5"));
    api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("listed again", () => nodes.lists() === 2);
    await until("watching", () => api.watching === 1);
    expect(told).toEqual(["=n1,n2,n3"]);
    api.thawCache();
    await nodes.toBeTold("=n1,n2,n3", "=n1,n3,n4,n5");
  });

  test("that never says how far it is leaves what is known as it is", async () => {
    api.freezeCache();
    api.advance();
    nodes.start();
    for (let round = 0; round < 3; round += 1) {
      await until("watching", () => api.watching === 1);
      api.end();
    }
    await until("watching", () => api.watching === 1);
    expect([told, nodes.lists()]).toEqual([["?n1,n2,n3"], 1]);
  });
});

describe("a revision that went back, as after a restore", () => {
  const back = "warn: the API server's revision went back";
  const warned = () => api.logged.filter((line) => line.startsWith(back));

  test("is noticed when the connection ends, and what nodes say is taken over when they had time to say it anew", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => api.watching === 1);
    const backup = api.snapshot();
    api.put(fakeNode("n4"));
    api.put(fakeNode("n5"));
    api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n5", "-n1");
    const before = told.length;
    api.restore(backup);
    await until("noticed", () => warned().length === 1);
    await until("watching", () => api.watching === 1);
    // Its kubelet registers n4 anew.
    api.put(fakeNode("n4"));
    api.remove("n2");
    await Bun.sleep(150);
    expect(told.slice(before)).toEqual(["?n1,n2,n3", "?n4"]);
    await until("watching", () => api.watching === 1);
    await until("taken over", () => {
      api.advance();
      api.bookmark();
      return told.at(-1)?.startsWith("=") === true;
    });
    expect(told.at(-1)).toBe("=n1,n3,n4");
    api.put(fakeNode("n6"));
    await until("on", () => told.at(-1) === "+n6");
    expect(warned()).toHaveLength(1);
  });

  test("is noticed after a silence, too, where the connection stays", async () => {
    nodes.start({ silence: 300 });
    await until("watching", () => api.watching === 1);
    for (let n = 4; n < 9; n += 1) api.put(fakeNode(`n${n}`));
    await until("told", () => told.at(-1) === "+n8");
    // The server answers by what it has now, and the watch hears of nothing.
    api.intercept = (url) =>
      url.searchParams.has("watch")
        ? undefined
        : Response.json({ items: [fakeNode("n2")], metadata: { resourceVersion: "90" } });
    await until("noticed", () => warned().length === 1);
    await until("taken over", () => told.at(-1) === "=n2");
  });

  test("is told by the versions of the objects where the revision was set ahead, as etcd's manual has it", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => api.watching === 1);
    const backup = api.snapshot();
    api.put(fakeNode("n4"));
    // A heartbeat.
    api.put(fakeNode("n2"));
    api.remove("n1");
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n2", "-n1");
    const before = told.length;
    api.restoreAhead(backup);
    await until("noticed", () => warned().length === 1);
    await until("watching", () => api.watching === 1);
    api.put(fakeNode("n4"));
    await Bun.sleep(150);
    expect(told.slice(before)).toEqual(["?n1,n2,n3", "?n4"]);
    // Another list meanwhile begins no other time.
    api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("listed again", () => nodes.lists() === 3);
    await until("taken over", () => {
      api.advance();
      api.bookmark();
      return told.at(-1)?.startsWith("=") === true;
    });
    expect([told.at(-1), warned().length]).toEqual(["=n1,n2,n3,n4", 1]);
  });

  test("and so where the list has to wait for the watch", async () => {
    nodes.start({ restored: 10_000 });
    await until("watching", () => api.watching === 1);
    const backup = api.snapshot();
    api.put(fakeNode("n2"));
    await nodes.toBeTold("=n1,n2,n3", "+n2");
    api.restoreAhead(backup);
    api.freezeCache();
    api.advance();
    await until("listed again", () => nodes.lists() === 2);
    await until("watching", () => api.watching === 1);
    api.thawCache();
    api.bookmark();
    await until("noticed", () => warned().length === 1);
    api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n2", "?n1,n2,n3", "?n4");
  });

  test("is noticed where the watch had expired before, too", async () => {
    nodes.start({ restored: 400 });
    await until("watching", () => api.watching === 1);
    const backup = api.snapshot();
    for (let n = 4; n < 9; n += 1) api.put(fakeNode(`n${n}`));
    await until("told", () => told.at(-1) === "+n8");
    const before = told.length;
    api.intercept = (url) =>
      url.searchParams.has("watch") ? undefined : Response.json({ message: "away" }, { status: 500 });
    api.say(`{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}\n`);
    await until("failing", () => api.logged.some((line) => line.includes("cannot follow")));
    api.restore(backup);
    api.intercept = () => undefined;
    await until("noticed", () => warned().length === 1);
    await until("watching", () => api.watching === 1);
    expect(told.slice(before)).toEqual(["?n1,n2,n3"]);
  });

  test("a list of a server that is behind the others is none, after a watch that expired", async () => {
    nodes.start();
    await until("watching", () => api.watching === 1);
    const earlier = api.snapshot();
    api.put(fakeNode("n2"));
    await nodes.toBeTold("=n1,n2,n3", "+n2");
    api.freezeCache(earlier);
    api.put(fakeNode("n4"));
    api.compact();
    api.end();
    await until("listed again", () => nodes.lists() === 2);
    api.thawCache();
    api.bookmark();
    await nodes.toBeTold("=n1,n2,n3", "+n2", "=n1,n2,n3,n4");
    expect(warned()).toEqual([]);
  });

  test("a server that is only behind the others is none", async () => {
    nodes.start();
    await until("watching", () => api.watching === 1);
    api.put(fakeNode("n4"));
    await nodes.toBeTold("=n1,n2,n3", "+n4");
    api.freezeCache();
    api.put(fakeNode("n5"));
    api.end();
    await until("watching", () => api.watching === 1);
    api.thawCache();
    await nodes.toBeTold("=n1,n2,n3", "+n4", "+n5");
    expect([warned(), nodes.lists()]).toEqual([[], 1]);
  });
});

describe("a follower that throws", () => {
  const faults = () => api.logged.filter((line) => line.startsWith("error: "));

  test("is logged once, and has the event again; others are told meanwhile", async () => {
    let broken = true;
    nodes.fault = (word) => {
      if (word === "+n4" && broken) throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => api.watching === 1);
    api.put(fakeNode("n4"));
    for (const name of ["n5", "n6", "n7"]) api.put(fakeNode(name));
    await nodes.toBeTold("=n1,n2,n3", "+n5", "+n6", "+n7");
    expect(faults()).toHaveLength(1);
    broken = false;
    api.put(fakeNode("n8"));
    await nodes.toBeTold("=n1,n2,n3", "+n5", "+n6", "+n7", "+n4", "+n8");
    expect([faults().length, waits, nodes.lists()]).toEqual([1, [], 1]);
  });

  test("of one object it has what is newest", async () => {
    nodes.fault = (word) => {
      if (word === "+n4") throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => api.watching === 1);
    api.put(fakeNode("n4"));
    api.remove("n4");
    api.put(fakeNode("n5"));
    await nodes.toBeTold("=n1,n2,n3", "-n4", "+n5");
  });

  test("at a list: it has the list again, with what happened meanwhile", async () => {
    let broken = true;
    nodes.fault = (word) => {
      if (word.startsWith("=") && broken) throw new Error("a bug");
    };
    nodes.start();
    await until("watching", () => api.watching === 1);
    expect([told, faults().length]).toEqual([[], 1]);
    api.put(fakeNode("n4"));
    broken = false;
    await until("told again", () => {
      api.advance();
      api.bookmark();
      return told.length > 0;
    });
    expect([told, faults().length, nodes.lists()]).toEqual([["=n1,n2,n3,n4"], 1, 1]);
  });
});
