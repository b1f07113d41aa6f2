import { expect, test } from "bun:test";
import { chainOf, type HostPortPod, parseCacheEntry, withoutRules } from "./hostports.ts";

const entry = (tweak: object = {}) => ({
  kind: "cniCacheV1",
  containerId: "c1",
  cniArgs: [
    ["IgnoreUnknown", "1"],
    ["K8S_POD_NAMESPACE", "default"],
    ["K8S_POD_NAME", "web"],
  ],
  capabilityArgs: {
    portMappings: [
      { containerPort: 7, hostPort: 8080, protocol: "tcp" },
      { containerPort: 7, hostPort: 8081, protocol: "udp", hostIP: "" },
    ],
  },
  result: {
    interfaces: [{ name: "veth1" }, { name: "eth0", sandbox: "/run/netns/x" }],
    ips: [{ address: "10.1.0.2/24" }, { address: "fd00:1::2/64" }],
  },
  ...tweak,
});
const whole: HostPortPod = {
  containerId: "c1",
  name: "default/web",
  ports: ["tcp 8080", "udp 8081"],
  families: ["ipv4", "ipv6"],
  links: ["veth1"],
};
const mapped = (...portMappings: object[]) => ({ capabilityArgs: { portMappings } });

test.each<[title: string, tweak: object, pod: Partial<HostPortPod> | undefined]>([
  ["two ports, both families", {}, {}],
  ["a runtime that tells no names", { cniArgs: null }, { name: "c1" }],
  ["no capabilities", { capabilityArgs: null }, undefined],
  ["no ports", mapped(), undefined],
  ["a container's port alone", mapped({ containerPort: 7, hostPort: 0 }), undefined],
  ["no container", { containerId: undefined }, undefined],
  [
    "on one address of the host",
    mapped({ hostPort: 80, protocol: "tcp", hostIP: "192.0.2.1" }),
    { ports: ["tcp 80"], families: ["ipv4"] },
  ],
  ["on :: alone", mapped({ hostPort: 80, hostIP: "::" }), { ports: ["tcp 80"], families: ["ipv6"] }],
  [
    "IPv6 alone",
    { result: { interfaces: [{ name: "veth1" }], ips: [{ address: "fd00:1::2/64" }] } },
    { families: ["ipv6"] },
  ],
  ["no result", { result: undefined }, { families: [], links: [] }],
])("%s", (_, tweak, pod) => {
  expect(parseCacheEntry(JSON.stringify(entry(tweak)))).toEqual(pod && { ...whole, ...pod });
});

test.each(["", "{", '{ "kind": "cniCacheV1", "contain'])("half written: %j", (content) => {
  expect(() => parseCacheEntry(content)).toThrow();
});

test("a container's chain is named as portmap names it", () => {
  expect(chainOf("cnitool-4480164b42f42d04b8db")).toBe("CNI-DN-86d7cfb44fd68b5e1b73d");
});

test.each<[rules: Parameters<typeof withoutRules>[1], lost: boolean]>([
  [{ ipv4: 'id: "c1"', ipv6: 'id: "c1"' }, false],
  [{ ipv4: `jump ${chainOf("c1")}`, ipv6: 'id: "c1"' }, false],
  [{ ipv4: "", ipv6: 'id: "c1"' }, true],
  [{ ipv4: 'id: "c1"', ipv6: 'id: "c2"' }, true],
  [{ ipv4: "", ipv6: "" }, true],
  // What cannot be read is not known to be gone.
  [{ ipv4: undefined, ipv6: undefined }, false],
])("rules %j: lost is %p", (rules, lost) => {
  expect(withoutRules([whole], rules)).toEqual(lost ? [whole] : []);
});
