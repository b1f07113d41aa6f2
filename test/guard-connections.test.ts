/**
 * What decides that a connection was in the tunnel, whatever others do to its mark: one that was does not leave with a
 * pod's address, and one that was not goes on.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
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
});
