/** What the agent writes to its own Node counts as soon as the API server has taken it, however late its watch is. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { FakeApi, fakeNode, until } from "./fake-api.ts";
import { ClusterNodes } from "./nodes.ts";

let api: FakeApi;
let nodes: ClusterNodes;
let stop: AbortController;
let running: Promise<void>;

beforeEach(async () => {
  api = new FakeApi(fakeNode("n0", { other: "1" }));
  stop = new AbortController();
  nodes = new ClusterNodes({
    client: api.client(),
    ownName: "n0",
    log: api.log,
    changed: () => undefined,
  });
  running = nodes.run(stop.signal);
  await until("watching both", () => api.watching === 2);
});

afterEach(async () => {
  stop.abort();
  await running;
  await api[Symbol.asyncDispose]();
});

const own = () => nodes.own?.metadata.annotations;

test("it is known before the watch tells of it, and what the watch tells late does not undo it", async () => {
  api.freezeCache();
  // Of before.
  api.put({ ...fakeNode("n0", { other: "1" }), spec: { podCIDRs: ["10.9.0.0/24"] } });
  await nodes.annotate({ "wigglenet/pod-cidrs": "[]" });
  expect(own()).toEqual({ other: "1", "wigglenet/pod-cidrs": "[]" });
  const seen: object[] = [];
  const poll = setInterval(() => seen.push({ ...own() }), 1);
  api.thawCache();
  api.put(fakeNode("n0", { other: "2", "wigglenet/pod-cidrs": "[]" }));
  await until("the last change", () => own()?.other === "2");
  clearInterval(poll);
  expect(seen.filter((each) => !("wigglenet/pod-cidrs" in each))).toEqual([]);
  await nodes.annotate({ "wigglenet/pod-cidrs": null });
  expect(own()).toEqual({ other: "2" });
});

test("an admission webhook that takes it away is named, not answered by the same again", async () => {
  api.intercept = (_, request) =>
    request.method === "PATCH" ? Response.json(fakeNode("n0", { "wigglenet/agent": "x" })) : undefined;
  await expect(nodes.annotate({ "wigglenet/agent": "x", "wigglenet/node-ips": "[]" })).rejects.toThrow(
    "the API server takes wigglenet/node-ips and does not keep it as it is: an admission webhook or policy changes annotations of Nodes; have it leave those of wigglenet/ alone",
  );
});
