/** The policy of values on a real API server: what an agent may say of its own Node, and each kind of lie. */
import { afterAll, beforeAll, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { annotationsOf } from "../src/plan/overlay/node.ts";
import { type Api, refusal } from "./lab/cluster/api.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

setDefaultTimeout(60_000);

const key = `${"A".repeat(42)}E=`;
const podCIDRs = ["10.77.1.0/24", "fd77:0:0:1::/64"];
/** More than anybody needs: what the API server spends on a request is limited. */
const others = Array.from({ length: 200 }, (_, index) => `198.18.${index}.0/24`);
const allowed = {
  podCidrs: [...others, "10.60.0.0/16", "2001:db8::/32"],
  nodeIps: [...others, "192.0.2.0/25", "2001:db8:99::/48"],
};
/** In the Node's status, the first two as InternalIPs; the light node's own addresses are added to them. */
const status = [
  { type: "InternalIP", address: "10.1.2.3" },
  { type: "InternalIP", address: "FD00:1::0:3" },
  { type: "ExternalIP", address: "203.0.113.9" },
  { type: "Hostname", address: "n1" },
  { type: "InternalDNS", address: "n1.internal" },
];

let lab: Lab;
let admin: Api;
let agent: Api;

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{ podCIDRs }], agents: false, allowed });
  admin = lab.controlPlane.api;
  agent = admin.withToken(await lab.nodes[0]!.renewToken());
  await admin.patch("/api/v1/nodes/n1/status", { status: { addresses: status } });
  // What it lets pass before that would be unchanged afterwards.
  let attempt = 0;
  await until(
    "the policy to be in force",
    async () =>
      (await written({ "wigglenet/pod-cidrs": String(attempt++) })) !== undefined &&
      // Where labs share an API server, the policy of the one before is in force for a moment more.
      (await written({ "wigglenet/pod-cidrs": list("10.60.0.0/16") })) === undefined,
  );
});
afterAll(() => lab?.[Symbol.asyncDispose]());

const none = {
  "wigglenet/public-key": null,
  "wigglenet/node-ips": null,
  "wigglenet/pod-cidrs": null,
  "wigglenet/agent": null,
};
beforeEach(() => give(none));

/** Why the API server does not let the agent write this; undefined if it does. */
function written(annotations: Record<string, string | null>): Promise<string | undefined> {
  return refusal(agent.patch("/api/v1/nodes/n1", { metadata: { annotations } }));
}

/** By an admin, who is held to nothing. */
async function give(annotations: Record<string, string | null>): Promise<void> {
  await admin.patch("/api/v1/nodes/n1", { metadata: { annotations } });
}

const list = (...entries: string[]) => JSON.stringify(entries);
const many = (count: number) => Array.from({ length: count }, (_, index) => `10.60.${index}.0/24`);

test.each<[what: string, podCidrs: string]>([
  ["the Node's own", list(...podCIDRs)],
  ["in another order, as the Go implementation has it", list(...podCIDRs.toReversed())],
  ["one family of them", list(podCIDRs[1]!)],
  ["a part of one", list("10.77.1.128/25", "fd77:0:0:1:8000::/65")],
  ["none", "[]"],
  ["none, as the Go implementation wrote it", "null"],
  ["within the allowed prefixes", list("10.60.7.0/24", "2001:db8:7::/64")],
  ["a whole allowed prefix", list("10.60.0.0/16", "2001:db8::/32")],
  ["as many as an agent publishes", list(...many(16))],
  ["of both", list("10.77.1.0/24", "2001:db8:7:0:1::/80")],
])("pod-cidrs: %s", async (_, podCidrs) => {
  expect(await written({ "wigglenet/pod-cidrs": podCidrs })).toBeUndefined();
});

const elsewhere = "neither within the Node's spec.podCIDRs nor within an allowed prefix";
const form = "must be a JSON list of at most 16";
test.each<[what: string, podCidrs: string, why: string]>([
  ["another node's", list("10.77.2.0/24"), elsewhere],
  ["another node's, beside its own", list(...podCIDRs, "fd77:0:0:2::/64"), "fd77:0:0:2::/64 is neither"],
  ["what contains its own", list("10.77.0.0/16"), elsewhere],
  ["what contains an allowed one", list("2001:db8::/31"), elsewhere],
  ["a third of everything", list("128.0.0.0/3"), elsewhere],
  ["everything", list("0.0.0.0/0", "::/0"), elsewhere],
  ["a default gateway", list("172.30.0.1/32"), elsewhere],
  ["17 entries", list(...many(17)), form],
  ["200 kB of its own", list(...Array(15_000).fill("10.77.1.0/24")), form],
  ["200 kB of digits", `["10.77.1.0/${"2".repeat(200_000)}"]`, form],
  ["an escape", '["10.77.1.0\\u002f24"]', form],
  ["text after the list", `${list("10.77.1.0/24")}["0.0.0.0/0"]`, form],
  ["a line after the list", `${list("10.77.1.0/24")}\n`, form],
  ["a list in the list", '[["10.77.1.0/24"]]', form],
  ["spaces", '[ "10.77.1.0/24" ]', form],
  ["an object", '{"a":"10.77.1.0/24"}', form],
  ["a text", '"10.77.1.0/24"', form],
  ["no text", "[1]", form],
  ["host bits", list("10.77.1.1/24"), elsewhere],
  ["upper case", list("FD77:0:0:1::/64"), form],
  ["a long form", list("fd77:0:0:1:0:0:0:0/64"), elsewhere],
  ["leading zeros", list("10.77.01.0/24"), elsewhere],
  ["a length with a zero before it", list("10.77.1.0/024"), elsewhere],
  ["an IPv4-mapped prefix", list("::ffff:10.77.1.0/120"), elsewhere],
  ["an address without a length", list("10.77.1.0"), form],
  ["two in one entry", '["10.77.1.0/24,0.0.0.0/0"]', form],
])("pod-cidrs: %s is refused", async (_, podCidrs, why) => {
  expect(await written({ "wigglenet/pod-cidrs": podCidrs })).toContain(why);
  expect((await admin.node("n1")).metadata.annotations ?? {}).toEqual({});
});

test.each<[what: string, nodeIps: string]>([
  ["InternalIPs and ExternalIPs of the Node", list("10.1.2.3", "fd00:1::3", "203.0.113.9")],
  ["within the allowed prefixes", list("192.0.2.5", "2001:db8:99:1::5")],
  ["as many as an agent publishes", list(...Array.from({ length: 16 }, (_, index) => `192.0.2.${index}`))],
  ["none", "[]"],
])("node-ips: %s", async (_, nodeIps) => {
  expect(await written({ "wigglenet/node-ips": nodeIps })).toBeUndefined();
});

const notOwn = "neither in the Node's status.addresses nor within an allowed prefix";
test.each<[what: string, nodeIps: string, why: string]>([
  ["another node's", list("10.1.2.4"), notOwn],
  ["another's beside its own", list("10.1.2.3", "172.30.0.1"), "172.30.0.1 is neither"],
  ["just outside of an allowed prefix", list("192.0.2.128"), notOwn],
  ["a whole prefix", list("10.1.2.3/32"), form],
  ["upper case", list("FD00:1::3"), form],
  ["a long form", list("fd00:1:0:0:0:0:0:3"), notOwn],
  ["an IPv4-mapped address", list("::ffff:10.1.2.3"), notOwn],
  ["with a zone", list("fe80::1%eth0"), form],
  ["leading zeros", list("10.1.2.03"), notOwn],
  ["an escape", '["10.1.2.3\\u0030"]', form],
  ["17 entries", list(...Array.from({ length: 17 }, (_, index) => `192.0.2.${index}`)), form],
  ["a name", list("n1"), form],
])("node-ips: %s is refused", async (_, nodeIps, why) => {
  expect(await written({ "wigglenet/node-ips": nodeIps })).toContain(why);
});

const says = (addresses: string[], endpoints: string[], version = "1.0.0") =>
  annotationsOf({ version, publicKey: key, podCidrs: podCIDRs, addresses, endpoints });

test("what an agent says of its Node, and a newer one of the same", async () => {
  expect(await written(says(["10.1.2.3", "fd00:1::3"], ["203.0.113.9"]))).toBeUndefined();
  expect(await written(says(["10.1.2.3", "fd00:1::3"], ["203.0.113.9"], "2.0.0-rc.1+build"))).toBeUndefined();
  expect(await written(none)).toBeUndefined();
});

test.each<[what: string, annotations: Record<string, string | null>, why: string]>([
  [
    "an ExternalIP that goes through the tunnel",
    says(["10.1.2.3", "203.0.113.9"], []),
    "203.0.113.9 is an ExternalIP",
  ],
  ["a key that is none", { "wigglenet/public-key": "key" }, "must be base64 of 32 bytes"],
  ["200 kB of a key", { "wigglenet/public-key": "A".repeat(200_000) }, "must be base64 of 32 bytes"],
  ["an agent of another form", { "wigglenet/agent": "1.0.0" }, "must be the agent's version"],
  [
    "an agent that says one thing twice",
    { "wigglenet/agent": `{"version":"1","nodeIps":"${"0".repeat(16)}","tunnelled":0,"tunnelled":9}` },
    "must be the agent's version",
  ],
  ["200 kB of a version", says(["10.1.2.3"], [], "1".repeat(200_000)), "must be the agent's version"],
])("%s is refused", async (_, annotations, why) => {
  expect(await written(annotations)).toContain(why);
});

test("what has not changed passes, whatever it is, and so does an entry that was there before", async () => {
  const strange = {
    "wigglenet/pod-cidrs": "?",
    "wigglenet/node-ips": '["198.51.100.1"]',
    "wigglenet/public-key": "?",
  };
  await give({ ...strange, "wigglenet/agent": "?" });
  expect(await written({ ...strange, "wigglenet/agent": null })).toBeUndefined();
  // Its Node does not list it for a while.
  expect(await written({ "wigglenet/node-ips": list("198.51.100.1", "10.1.2.3") })).toBeUndefined();
  expect(await written({ "wigglenet/node-ips": list("10.1.2.3") })).toBeUndefined();
  expect(await written({ "wigglenet/node-ips": list("198.51.100.1") })).toContain(notOwn);
});

test("a Node without pod CIDRs and addresses has none of its own", async () => {
  await admin.create({ apiVersion: "v1", kind: "Node", metadata: { name: "bare" }, spec: {} });
  const { uid } = (await admin.node("bare")).metadata;
  const { status } = await admin.request<{ status: { token: string } }>(
    "POST",
    "/api/v1/namespaces/kube-system/serviceaccounts/wigglenet/token",
    {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: { boundObjectRef: { apiVersion: "v1", kind: "Node", name: "bare", uid } },
    },
  );
  const bare = (annotations: object) =>
    refusal(admin.withToken(status.token).patch("/api/v1/nodes/bare", { metadata: { annotations } }));
  expect(await bare({ "wigglenet/pod-cidrs": list("10.77.1.0/24") })).toContain(elsewhere);
  expect(await bare({ "wigglenet/node-ips": list("10.1.2.3") })).toContain(notOwn);
  expect(await bare({ "wigglenet/pod-cidrs": list("10.60.1.0/24") })).toBeUndefined();
});
