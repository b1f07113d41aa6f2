import { describe, expect, test } from "bun:test";
import { link } from "../plan/fixtures/links.ts";
import { lackingEnds, type PodLink, parsePodLink, restored } from "./podlinks.ts";

const entry = {
  kind: "cniCacheV1",
  containerId: "c1",
  networkName: "wigglenet",
  ifName: "eth0",
  result: {
    cniVersion: "1.0.0",
    interfaces: [
      { mac: "ce:26:33:e0:3f:b5", name: "veth24a45307" },
      { mac: "96:06:cb:43:a4:5f", name: "eth0", sandbox: "/proc/71/ns/net" },
    ],
    ips: [
      { address: "10.244.0.2/24", gateway: "10.244.0.1", interface: 1 },
      { address: "FD00:10:244::2/64", gateway: "fd00:10:244:0::1", interface: 1 },
    ],
  },
};
const pod: PodLink = {
  name: "veth24a45307",
  ends: [
    { address: "10.244.0.2", gateway: "10.244.0.1" },
    { address: "fd00:10:244::2", gateway: "fd00:10:244::1" },
  ],
};

test("a pod's link, of libcni's record", () => {
  expect(parsePodLink(JSON.stringify(entry))).toEqual(pod);
});

test.each([
  ["null", undefined],
  ["{}", undefined],
  [JSON.stringify({ result: { interfaces: [{ name: "eth0", sandbox: "/x" }] } }), undefined],
  [JSON.stringify({ result: { interfaces: [{ name: "veth1" }] } }), { name: "veth1", ends: [] }],
  [
    JSON.stringify({ result: { interfaces: [{ name: "veth1" }], ips: [{ address: "10.0.0.1/24" }, {}] } }),
    { name: "veth1", ends: [] },
  ],
])("an odd record: %s", (content, expected) => {
  expect(parsePodLink(content)).toEqual(expected);
});

test("no JSON, as while it is being written", () => {
  expect(() => parsePodLink(`{"kind":`)).toThrow();
});

describe("what a link lacks", () => {
  const both = ["10.244.0.0/24", "fd00:10:244::/64"];
  const addresses = ["10.244.0.1/32", "fd00:10:244::1/128"];
  const up = (name: string, ...list: string[]) => ({ ...link(name, ...list), up: true });
  test.each<[title: string, links: ReturnType<typeof up>[], podCidrs: string[], expected: PodLink[]]>([
    ["nothing", [up(pod.name, ...addresses)], both, []],
    ["its IPv6 address: all is put back, as routes may be gone", [up(pod.name, addresses[0]!)], both, [pod]],
    ["its IPv6 address, which it cannot have", [up(pod.name, addresses[0]!)], both.slice(0, 1), []],
    ["all", [up(pod.name)], both, [pod]],
    ["it is down", [{ ...up(pod.name), up: false }], both, []],
    ["it is gone", [up("veth99999999")], both, []],
    ["of another network", [up(pod.name)], ["10.1.0.0/24"], []],
  ])("%s", (_, links, podCidrs, expected) => {
    expect(lackingEnds([pod], links, podCidrs)).toEqual(expected);
  });
});

test("addresses and routes are as ptp makes them", () => {
  expect(restored(pod)).toEqual([
    "address replace 10.244.0.1/32 dev veth24a45307",
    "route replace 10.244.0.2/32 dev veth24a45307 scope host",
    "address replace fd00:10:244::1/128 dev veth24a45307 nodad",
    "route replace fd00:10:244::2/128 dev veth24a45307",
  ]);
});
