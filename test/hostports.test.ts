/** hostPorts that lose their rules, which the portmap plugin writes once, by any of its backends. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { builtPlugins } from "../deploy/plugins.ts";
import { families } from "../src/net/address.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let node: LightNode;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 1, env: { RESYNC_PERIOD: "1", HEALTH_BIND_ADDR: "127.0.0.1:24602" } });
  node = lab.nodes[0]!;
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const readyz = async () => (await node.$`curl -s http://127.0.0.1:24602/readyz`).stdout;
const ports = (["tcp", "udp"] as const).map((protocol) => ({ hostPort: 8080, containerPort: 7, protocol }));

/** What is reached of both protocols, by family. */
async function reached(): Promise<string[]> {
  const paths = lab.paths([[lab.outside, node]], { protocols: ["tcp", "udp"] });
  const tried = paths.map(async (path) => {
    const { ok } = await lab.reach(path.from, path.to, { ...path, port: 8080, timeout: 1000 });
    return ok ? [`${path.family} ${path.protocol}`] : [];
  });
  return (await Promise.all(tried)).flat().sort();
}
const all = families.flatMap((family) => [`${family} tcp`, `${family} udp`]);

/** Which iptables the programs of the node run; none: its portmap has to take nftables. */
async function iptablesIs(variant: "nft" | "legacy" | "none"): Promise<void> {
  for (const tool of ["iptables", "ip6tables"])
    await node.$`ln -sf ${`/usr/sbin/${tool}-${variant}`} /etc/alternatives/${tool}`;
}

const [ipv4, ipv6] = [all.slice(0, 2), all.slice(2)];
test.each<[backend: string, flushes: [flush: string, left: string[]][]]>([
  [
    "iptables-nft",
    [
      ["nft flush ruleset", []],
      ["iptables-nft -t nat -F", ipv6],
      ["ip6tables-nft -t nat -F", ipv4],
    ],
  ],
  [
    "iptables-legacy",
    [
      ["iptables-legacy -t nat -F", ipv6],
      ["ip6tables-legacy -t nat -F", ipv4],
    ],
  ],
  [
    "nftables",
    [
      ["nft flush ruleset", []],
      ["nft delete table ip cni_hostport", ipv6],
      ["nft delete table ip6 cni_hostport", ipv4],
    ],
  ],
])(
  "by %s: they are named with the remedy, until their pods have new ones or are gone",
  async (backend, flushes) => {
    await iptablesIs(
      backend === "nftables" ? "none" : (backend.slice("iptables-".length) as "nft" | "legacy"),
    );
    if (backend === "nftables") {
      // Debian's knows iptables alone.
      await node.$`mkdir -p /opt/cni/bin && cp ${`${await builtPlugins("amd64")}/portmap`} /opt/cni/bin/`;
    }
    await node.pod("plain");
    await node.pod("served", { ports });
    expect(await reached()).toEqual(all);
    if (backend === "nftables") expect((await node.$`nft list tables`).stdout).toContain("cni_hostport");
    for (const [flush, left] of flushes) {
      await node.$`/bin/sh -ec ${flush}`;
      const pattern =
        /^ok\nwarning: hostPorts of pods have lost their rules.*delete these pods.*tcp 8080, udp 8080/;
      await until("the loss to be named", async () => pattern.test(await readyz()), { why: readyz });
      expect(await reached()).toEqual(left);
      await node.pods.get("served")!.remove();
      await until("nothing to be said", async () => (await readyz()) === "ok\n", { why: readyz });
      await node.pod("served", { ports });
      expect(await reached()).toEqual(all);
      await until("a look at the new one", async () => (await readyz()) === "ok\n", { why: readyz });
    }
    for (const pod of [...node.pods.values()]) await pod.remove();
    await until("nothing to be said", async () => (await readyz()) === "ok\n", { why: readyz });
  },
  60_000,
);
