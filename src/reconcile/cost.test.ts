/** What a change costs in a cluster of 5,000 nodes: passes of an agent whose commands are written down, and not run. */
import { beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import pino from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import { readConfig } from "../config/config.ts";
import type { Command } from "../host/command.ts";
import { families } from "../net/address.ts";
import { gatePath } from "../plan/cni.ts";
import { crowd, tableOf } from "../plan/fixtures/input.ts";
import type { NodeRecord } from "../plan/overlay/node.ts";
import { address, recordedNode } from "./fixtures/node.ts";
import { noObserver } from "./observer.ts";
import { Reconciler } from "./reconciler.ts";

setDefaultTimeout(30_000);
const others = tableOf(crowd(5_000));
const ran: Command[] = [];
/** Files written and annotations made, in order. */
const published: string[] = [];

const links = [
  { ifname: "eth0", mtu: 1500, addr_info: [address("172.31.0.1", 12), address("2001:db8:1::ffff", 64)] },
  {
    ifname: "wigglenet",
    linkinfo: { info_kind: "wireguard" },
    flags: ["UP"],
    mtu: 1420,
    addr_info: [address("10.1.0.1", 32), address("fd00:1::1", 128)],
  },
];
/** Nothing of ours but the link, set up, with a peer: those of an empty one would be greeted later. */
const { reader, asked } = recordedNode({
  "ip -j -d address show": JSON.stringify(links),
  "wg show": "\t\t0\toff\nsomebody\t\t\t\t0",
  nft: '{ "nftables": [] }',
});

const nodes = { complete: true, whole: true, own: {}, ownIsThere: true, others };
let reconciler: Reconciler;
beforeAll(async () => {
  const own = {
    metadata: { name: "own", annotations: {} },
    spec: { podCIDRs: ["10.1.0.0/24", "fd00:1::/64"] },
    status: { addresses: links[0]!.addr_info.map(({ local }) => ({ type: "InternalIP", address: local })) },
  };
  reconciler = new Reconciler({
    // Whatever this machine has.
    config: { ...readConfig({ NODE_NAME: "own" }), families },
    nodes: Object.assign(nodes, { own }) as unknown as ClusterNodes,
    executor: {
      ...reader,
      dry: false,
      perform: async (steps) => {
        ran.push(...steps.filter((step) => step.kind === "run"));
        published.push(...steps.flatMap((step) => (step.kind === "write" ? [step.path] : [])));
      },
      createLink: () => Promise.reject(new Error("it is there")),
      annotate: async (annotations) => {
        own.metadata = { name: "own", annotations: { ...own.metadata.annotations, ...annotations } };
        published.push("annotations");
      },
    },
    publicKey: "key-own",
    version: "1.0.0",
    reserved: [],
    observer: noObserver,
    wake: () => undefined,
    log: pino({ level: "silent" }),
  });
  await reconciler.pass("cluster");
  expect(reconciler.unready()).toBe("not in sync yet");
  await Bun.sleep(1_100);
  await reconciler.pass("cluster");
  expect(reconciler.unready()).toBeUndefined();
  // Every node has been put in.
  const written = ran.map(({ argv, stdin = "" }) => `${argv.join(" ")} ${stdin}`).join("\n");
  for (const word of ["key-4999", "10.83.135.0/24 dev wigglenet", "10.83.135.0/24,", "172.16.19.135"])
    expect(written).toContain(word);
  expect(asked).toContain("wg show wigglenet dump");
});

/** What an nftables set is left with that loses an element: it is flushed and declared again. */
const redeclared =
  /(flush set inet wigglenet (\S+)\\nadd set inet wigglenet \2 \{ [^{]*)elements = \{[^}]*\}/g;

// Before others know whose they are, their packets to the pods would leave in the clear.
test("no pod starts until others have had a second to read which pod CIDRs are this node's", () => {
  expect([...new Set(published)]).toEqual(["annotations", "/etc/cni/net.d/10-wigglenet.conflist", gatePath]);
});

const one = others.get("n2000")!;
const addresses = ["172.17.0.1", "2001:db8:2::1"];
const podCidrs = ["10.200.0.0/24", "fd00:3::/64"];
test.each<[title: string, node: NodeRecord | undefined, most: number]>([
  ["does not change", one, 0],
  ["has another key", { ...one, publicKey: "another key" }, 8],
  ["has other pod CIDRs", { ...one, podCidrs }, 8],
  ["has other addresses", { ...one, addresses, endpoints: addresses }, 8],
  ["changes altogether", { ...one, publicKey: "a third key", podCidrs: ["10.201.0.0/24"] }, 8],
  ["leaves", undefined, 8],
  ["joins", one, 8],
])(
  "one node among 5,000 %s: a handful of short commands, and no look at the kernel",
  async (_, node, most) => {
    ran.length = 0;
    asked.length = 0;
    if (node) others.set(one.name, node);
    else others.delete(one.name);
    await reconciler.pass("cluster");
    expect(reconciler.unready()).toBeUndefined();
    expect(asked).toEqual([]);
    expect(ran.length).toBeLessThanOrEqual(most);
    expect(ran.length > 0).toBe(most > 0);
    expect(JSON.stringify(ran).replace(redeclared, "$1").length).toBeLessThan(2_000);
  },
);

test("while not all is known of the cluster nothing is taken away for what is missing, and no prefix from who has it", async () => {
  const [left, loser, winner] = ["n10", "n11", "n12"].map((name) => others.get(name)!) as NodeRecord[];
  const taken = loser!.podCidrs[0]!;
  const words = () => ran.map(({ argv, stdin = "" }) => `${argv.join(" ")}\n${stdin}`).join("\n");
  others.delete(left!.name);
  others.set(loser!.name, { ...loser!, podCidrs: [] });
  others.set(winner!.name, { ...winner!, podCidrs: [taken] });
  others.set("n6000", {
    ...one,
    name: "n6000",
    publicKey: "key-6000",
    podCidrs,
    addresses: [],
    endpoints: [],
  });
  for (const whole of [false, true]) {
    ran.length = 0;
    nodes.whole = whole;
    await reconciler.pass("cluster");
    expect(reconciler.unready()).toBeUndefined();
    if (!whole) {
      // What is new goes in.
      expect(words()).toContain("key-6000");
      expect(words()).toContain(`${podCidrs[0]} dev wigglenet`);
      expect(words()).not.toMatch(/\b(del|delete|remove|flush)\b/);
      expect(words()).not.toContain(`peer ${winner!.publicKey}`);
    } else {
      expect(words()).toContain(`peer ${left!.publicKey} remove`);
      expect(words()).toMatch(new RegExp(`peer ${winner!.publicKey} .*${taken}`));
      for (const prefix of left!.podCidrs) expect(words()).toContain(`route delete ${prefix} dev wigglenet`);
    }
  }
});
