import { afterEach, expect, test } from "bun:test";
import { followApiServers } from "./apiservers.ts";
import { FakeApi, failure } from "./fake-api.ts";

let api: FakeApi | undefined;
afterEach(async () => {
  await api?.[Symbol.asyncDispose]();
});

/** Follows until `count` answers were told or tried, with an API server that answers so. */
async function told(answer: () => Response, until: (state: { told: string[][]; asked: number }) => boolean) {
  const stop = new AbortController();
  const state = { told: [] as string[][], asked: 0 };
  api = new FakeApi();
  api.intercept = (url) => {
    if (!url.pathname.endsWith("/endpointslices/kubernetes")) return new Response("{}", { status: 500 });
    state.asked += 1;
    return answer();
  };
  const { ended } = followApiServers(
    api.client(),
    api.log,
    (addresses) => {
      state.told.push(addresses);
    },
    stop.signal,
    { refused: 5 },
  );
  while (!until(state)) await Bun.sleep(2);
  stop.abort();
  await ended;
  return { ...state, log: api.logged };
}

test("the endpoints of the Service default/kubernetes, canonical, whether they are ready or not", async () => {
  const slice = {
    metadata: { name: "kubernetes", resourceVersion: "7" },
    endpoints: [
      { addresses: ["192.0.2.1"] },
      { addresses: ["2001:DB8::1", "192.0.2.1"], conditions: { ready: false } },
      { addresses: ["not-an-address"] },
      {},
    ],
  };
  const { told: all } = await told(
    () => Response.json(slice),
    (state) => state.told.length > 0,
  );
  expect(all[0]).toEqual(["192.0.2.1", "2001:db8::1"]);
});

test("what may not be read is said once, with the remedy, and tried again now and then", async () => {
  const { told: all, log } = await told(
    () => Response.json({ message: "forbidden" }, { status: 403 }),
    (state) => state.asked > 3,
  );
  expect(all).toEqual([]);
  expect(log.filter((line) => line.includes("EndpointSlice"))).toEqual([
    expect.stringContaining("apply the Role wigglenet of namespace default, see deploy/manifest.yaml"),
  ]);
});

test.each<[title: string, answers: () => (Response | undefined)[], tried: boolean]>([
  ["that they may not be read", () => [failure(403, "forbidden")], true],
  ["that there are none", () => [failure(404, "not found")], true],
  ["an error, then what they are", () => [failure(500, "no"), Response.json({ metadata: {} })], true],
  ["nothing, for a while", () => [], false],
])("whoever has to know them first waits until that was tried: the answer is %s", async (_, given, tried) => {
  const stop = new AbortController();
  api = new FakeApi();
  const answers = given();
  const silent = new Response(new ReadableStream());
  api.intercept = () => answers.shift() ?? silent;
  const begin = performance.now();
  const servers = followApiServers(api.client(), api.log, () => undefined, stop.signal, { patience: 700 });
  await servers.tried;
  expect(performance.now() - begin >= 695).toBe(!tried);
  stop.abort();
  await servers.ended;
});
