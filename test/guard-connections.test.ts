/**
 * What decides that a connection was in the tunnel, whatever others do to its mark: one that was does not leave with a
 * pod's address, and one that was not goes on.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";
import { icmpError, icmpErrors } from "./lab/probe/icmperror.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let nodes: [LightNode, LightNode];
let pods: [Pod, Pod];

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2, env: { RESYNC_PERIOD: "600" } });
  nodes = lab.nodes as typeof nodes;
  pods = [await nodes[0].pod("p"), await nodes[1].pod("p")];
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

const families = ["ipv4", "ipv6"] as const;

async function restart(env: Record<string, string>): Promise<void> {
  await nodes[0].stopAgent();
  nodes[0].startAgent(env);
  await nodes[0].inSync();
}

/** Connections of the first pod, as conntrack lists them on its node. */
async function connections(family: string, ...filter: string[]): Promise<string[]> {
  const { stdout } = await nodes[0].$`conntrack -L -f ${family} ${filter} 2>/dev/null || true`;
  return stdout.split("\n").filter(Boolean);
}

describe.each(["nftables", "iptables"])("%s", (backend) => {
  describe("pods with their own addresses outside", () => {
    beforeAll(async () => {
      await restart({ FIREWALL_BACKEND: backend, MASQUERADE_IPV4: "0", MASQUERADE_IPV6: "0" });
      for (const prefix of await nodes[0].podCIDRs())
        await lab.underlay.router.ip(
          `route replace ${prefix} via ${nodes[0].addresses[prefix.includes(":") ? "ipv6" : "ipv4"]}`,
        );
    });

    test.each(icmpErrors)(
      "an ICMP error that comes by the tunnel does not mark what it is about: %s",
      async (kind) => {
        for (const family of families) {
          const [from, to] = [pods[0].addresses[family]!, lab.outside.addresses[family]!];
          const port = 40_000 + icmpErrors.indexOf(kind);
          await using stream = await lab.probe(pods[0], lab.outside, { family, source: `:${port}` });
          const flow = ["-p", "udp", "-s", from, "-d", to, "--sport", String(port)];
          expect(await connections(family, ...flow)).toEqual([expect.stringContaining("mark=0 ")]);
          const packet = { family, from, fromPort: port, to, toPort: 7 };
          await pods[1].place.raw(from, icmpError(kind, packet));
          // The last of them is told to the program: then all have arrived.
          await pods[1].place.raw(from, icmpError("unreachable", packet));
          await until(
            "the pod to be told",
            async () => (await stream.count()).error === "Connection refused",
          );
          await stream.flowing(10);
          expect(await connections(family, ...flow)).toEqual([expect.stringContaining("mark=0 ")]);
          expect((await stream.stop()).lost).toBe(0);
        }
      },
    );
  });

  describe("another program overwrites every connection's mark", () => {
    const rules = (verb: string) => {
      const places = ["iptables-nft", "ip6tables-nft"].flatMap((program) =>
        ["PREROUTING", "POSTROUTING"].map((chain) => `${program} -t mangle ${verb} ${chain}`),
      );
      return nodes[0].$`/bin/sh -ec ${places.map((place) => `${place} -j CONNMARK --set-mark 7`).join("\n")}`;
    };
    beforeAll(async () => {
      await restart({ FIREWALL_BACKEND: backend });
      await rules("-A");
    });
    afterAll(async () => void (await rules("-D")));

    test("a masqueraded pod's connection to a node whose address leaves the tunnel does not go on outside", async () => {
      const node = nodes[1];
      const { addresses } = node;
      const others = { ipv4: "172.30.0.77", ipv6: "fd30::77" };
      const tunnelled = async () => {
        const { stdout } = await nodes[0].$`ip route show table 24601; ip -6 route show table 24601`;
        return families.filter((family) => stdout.includes(`${addresses[family]} dev wigglenet`)).length;
      };
      const start = (to: Host) =>
        Promise.all(
          (["tcp", "udp", "icmp"] as const).flatMap((protocol) =>
            families.map((family) => lab.probe(pods[0], to, { family, protocol })),
          ),
        );
      const counts = () => Promise.all(stopping.map((stream) => stream.count()));
      const [stopping, staying] = await Promise.all([start(node), start(lab.outside)]);
      await using capture = await lab.capture();
      await node.namespace.ip(
        `address replace ${others.ipv4}/24 dev eth0`,
        `address replace ${others.ipv6}/64 dev eth0 nodad`,
      );
      await node.publishAddresses(others);
      await until("the addresses to leave the tunnel", async () => (await tunnelled()) === 0);
      const before = await counts();
      await until("more packets to be sent", async () =>
        (await counts()).every((count, index) => count.sent > before[index]!.sent + 20),
      );
      expect(await capture.stop()).toEqual([]);
      for (const family of families)
        expect(await lab.reach(pods[0], node, { family })).toMatchObject({
          seen: nodes[0].addresses[family]!,
        });
      await node.publishAddresses(addresses);
      await until("the addresses to be in the tunnel again", async () => (await tunnelled()) === 2);
      for (const stream of stopping) await stream.flowing(5);
      for (const stream of stopping) await stream.stop(0);
      for (const stream of staying) expect(await stream.stop()).toMatchObject({ lost: 0 });
    }, 60_000);
  });

  test("pods' packets that another program keeps from connection tracking do not go outside", async () => {
    await restart({ FIREWALL_BACKEND: backend });
    const rules = (verb: string) =>
      nodes[0].$`/bin/sh -ec ${["iptables-nft", "ip6tables-nft"]
        .map((program) => `${program} -t raw ${verb} PREROUTING -i veth+ -j CT --notrack`)
        .join("\n")}`;
    await rules("-A");
    await using capture = await lab.capture();
    for (const family of families)
      for (const protocol of ["tcp", "udp", "icmp"] as const)
        expect(await lab.reach(pods[0], lab.outside, { family, protocol, timeout: 300 })).toMatchObject({
          ok: false,
        });
    expect(await capture.stop()).toEqual([]);
    await rules("-D");
    expect(await lab.unreached([[pods[0], lab.outside]])).toEqual([]);
  });
});
