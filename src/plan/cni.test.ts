import { describe, expect, test } from "bun:test";
import {
  type CniList,
  type CniPlugin,
  cniList,
  gatePath,
  isGated,
  mergeCniList,
  parseCniList,
} from "./cni.ts";
import { podRange } from "./podcidr/ranges.ts";

interface Ipam {
  routes: { dst: string }[];
  ranges: Record<"subnet" | "rangeStart" | "rangeEnd" | "gateway", string>[][];
}
const ipamOf = (list: CniList) => list.plugins[0]!.ipam as Ipam;

describe("our own list", () => {
  const ranges = (...subnets: string[]) => subnets.map((subnet) => podRange(subnet, []));

  test("dual-stack", () => {
    expect(
      JSON.stringify(cniList(ranges("10.1.0.0/24", "fd00:1::/64"), 1420), null, 2),
    ).toMatchInlineSnapshot(`
      "{
        "cniVersion": "1.0.0",
        "name": "wigglenet",
        "plugins": [
          {
            "type": "ptp",
            "ipMasq": false,
            "mtu": 1420,
            "ipam": {
              "type": "host-local",
              "dataDir": "/run/cni-ipam-state",
              "resolvConf": "/run/wigglenet/agent-in-sync",
              "routes": [
                {
                  "dst": "0.0.0.0/0"
                },
                {
                  "dst": "::/0"
                }
              ],
              "ranges": [
                [
                  {
                    "subnet": "10.1.0.0/24",
                    "rangeStart": "10.1.0.1",
                    "rangeEnd": "10.1.0.254",
                    "gateway": "10.1.0.1"
                  }
                ],
                [
                  {
                    "subnet": "fd00:1::/64",
                    "rangeStart": "fd00:1::1",
                    "rangeEnd": "fd00:1::ffff:ffff:ffff:ffff",
                    "gateway": "fd00:1::1"
                  }
                ]
              ]
            }
          },
          {
            "type": "portmap",
            "capabilities": {
              "portMappings": true
            }
          }
        ]
      }"
    `);
  });

  const ipam = (...subnets: string[]) => ipamOf(cniList(ranges(...subnets), 1420));

  test.each<[title: string, subnets: string[], routes: string[], sets: string[][]]>([
    ["IPv4 only", ["10.1.0.0/24"], ["0.0.0.0/0"], [["10.1.0.0/24"]]],
    ["IPv6 only", ["fd00:1::/64"], ["::/0"], [["fd00:1::/64"]]],
    // One set a family: a pod gets one address from each set.
    [
      "several of a family",
      ["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64", "fd00:2::/64"],
      ["0.0.0.0/0", "::/0"],
      [
        ["10.1.0.0/24", "10.2.0.0/24"],
        ["fd00:1::/64", "fd00:2::/64"],
      ],
    ],
  ])("%s", (_, subnets, routes, sets) => {
    const given = ipam(...subnets);
    expect(given.routes.map((route) => route.dst)).toEqual(routes);
    expect(given.ranges.map((set) => set.map((range) => range.subnet))).toEqual(sets);
  });

  test("a node's address inside: two ranges of one set, with one gateway", () => {
    const list = cniList([podRange("2001:db8::/64", ["2001:db8::5"])], 1420);
    expect(ipamOf(list).ranges).toEqual([
      [
        {
          subnet: "2001:db8::/64",
          rangeStart: "2001:db8::1",
          rangeEnd: "2001:db8::4",
          gateway: "2001:db8::1",
        },
        {
          subnet: "2001:db8::/64",
          rangeStart: "2001:db8::6",
          rangeEnd: "2001:db8::ffff:ffff:ffff:ffff",
          gateway: "2001:db8::1",
        },
      ],
    ]);
  });
});

describe("with what others have added", () => {
  const own = cniList([podRange("10.1.0.0/24", [])], 1420);
  const [ptp, portmap] = own.plugins as [CniPlugin, CniPlugin];
  const [istio, tuning]: CniPlugin[] = [{ type: "istio-cni", log_level: "info" }, { type: "tuning" }];
  const list = (...plugins: unknown[]) => ({ ...own, plugins }) as CniList;
  const stale = { ...ptp, mtu: 1 };

  test.each<[title: string, present: CniList | undefined, plugins: unknown[]]>([
    ["nothing there", undefined, [ptp, portmap]],
    ["nothing added", own, [ptp, portmap]],
    ["appended", list(ptp, portmap, istio, tuning), [ptp, portmap, istio, tuning]],
    ["between ours", list(ptp, tuning, portmap, istio), [ptp, tuning, portmap, istio]],
    ["two of a type", list(ptp, portmap, istio, istio), [ptp, portmap, istio, istio]],
    ["ours changed", list(stale, { ...portmap, snat: false }, istio), [ptp, portmap, istio]],
    ["ours twice", list(ptp, portmap, istio, ptp, portmap), [ptp, portmap, istio]],
    ["ours in another order", list(portmap, istio, ptp), [ptp, istio, portmap]],
    ["ours gone", list(istio, tuning), [ptp, portmap, istio, tuning]],
    ["the first of ours gone", list(istio, portmap, tuning), [ptp, istio, portmap, tuning]],
    ["the second of ours gone", list(ptp, istio), [ptp, portmap, istio]],
    ["an empty list", list(), [ptp, portmap]],
    ["0.7's version", { ...list(stale, portmap, istio), cniVersion: "0.3.1" }, [ptp, portmap, istio]],
    // It would make an interface of its own in each pod, after ours.
    ["ours made another", list({ ...ptp, type: "bridge" }, portmap, istio), [ptp, portmap, istio]],
    ["a second interface", list(ptp, portmap, istio, { type: "x", ipam: {} }), [ptp, portmap, istio]],
    ["renamed", { ...list(ptp, portmap, istio), name: "k8s-pod-network" }, [ptp, portmap, istio]],
    ["another network", { ...list({ type: "calico" }, portmap), name: "k8s-pod-network" }, [ptp, portmap]],
  ])("%s", (_, present, plugins) => {
    const merged = mergeCniList(own, present);
    expect(merged).toEqual({ ...own, plugins: plugins as CniPlugin[] });
    // A file that was merged is as it should be, and pods wait at it.
    expect(mergeCniList(own, merged)).toEqual(merged);
    expect(isGated(merged)).toBe(true);
  });

  test("keys beside ours stay", () => {
    const present = { disableCheck: true, ...list(ptp, portmap) };
    expect(mergeCniList(own, present)).toEqual(present);
  });

  test.each<[content: string | undefined]>([
    [undefined],
    [""],
    ["{"],
    ["null"],
    ["[]"],
    ['"ptp"'],
    ['{ "type": "bridge" }'],
    ['{ "plugins": {} }'],
    ['{ "plugins": [null] }'],
    ['{ "plugins": ["ptp"] }'],
    ['{ "plugins": [{ "type": 1 }] }'],
  ])("%j is no list", (content) => {
    expect(parseCniList(content)).toBeUndefined();
  });

  test.each<[plugins: unknown[], gated: boolean]>([
    [[ptp], true],
    [[{ type: "ptp", ipam: { type: "host-local", resolvConf: "" } }], false],
    [[{ type: "ptp", ipam: null }], false],
    [[portmap, { type: "ptp", ipam: { resolvConf: gatePath } }], true],
    [[], false],
  ])("%j: pods wait: %p", (plugins, gated) => {
    expect(isGated(list(...plugins))).toBe(gated);
  });
});
