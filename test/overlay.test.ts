/** Who reaches whom, over which family, and what the underlay sees of it. */
import { expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import type { Families } from "./lab/kernel/underlay.ts";
import { Lab } from "./lab/lab.ts";
import { anythingClear } from "./lab/probe/capture.ts";
import { until } from "./lab/process.ts";

/** Every pair of places of different nodes of which at least one is a pod, and of the same node too. */
function pairs(nodes: LightNode[], pods: Host[]): [Host, Host][] {
  const all: Host[] = [...nodes, ...pods];
  return all.flatMap((from) =>
    all
      .filter((to) => to !== from && (pods.includes(from) || pods.includes(to)))
      .map((to): [Host, Host] => [from, to]),
  );
}

const dual = "ipv4,ipv6";
const grounds: [pods: Families, underlay: Families, toPods: string, toNodes: string][] = [
  ["dual", "dual", dual, dual],
  ["ipv4", "dual", "ipv4", "ipv4"],
  ["ipv6", "dual", "ipv6", "ipv6"],
  ["dual", "ipv4", dual, "ipv4"],
  ["dual", "ipv6", dual, "ipv6"],
  ["ipv4", "ipv4", "ipv4", "ipv4"],
  ["ipv6", "ipv6", "ipv6", "ipv6"],
];

test.each(grounds)(
  "%s pods on a %s underlay: all pairs, all protocols, WireGuard only",
  async (families, underlay, toPods, toNodes) => {
    await using lab = await Lab.start({ nodes: 3, families, underlay });
    // Before a node has any pod, its own route to one of another node has to work: no CNI plugin has touched it yet.
    const first = await lab.nodes[0]!.pod("first");
    await until("n2 to know n1", async () => (await lab.unreached([[lab.nodes[1]!, first]])).length === 0);

    const pods = [first, ...(await Promise.all(lab.nodes.slice(1).map((node) => node.pod("p"))))];
    await lab.shakeHands();
    await using capture = await lab.capture();
    await using clear = await lab.capture(anythingClear);
    const all = pairs(lab.nodes, pods);
    for (const [from, to] of all) {
      const tried = new Set(lab.paths([[from, to]]).map(({ family }) => family));
      expect([...tried].join()).toBe(lab.nodes.some((node) => node === to) ? toNodes : toPods);
    }
    expect(await lab.unreached(all)).toEqual([]);
    expect(await lab.unreached(all, { size: 1400 })).toEqual([]);
    // The tunnel's MTU is 80 below the underlay's 1500.
    const full = { protocols: ["icmp" as const], size: 1420, dontFragment: true };
    expect(await lab.unreached(all, full)).toEqual([]);
    expect(await capture.stop()).toEqual([]);
    expect(await clear.stop()).toEqual([]);
  },
);
