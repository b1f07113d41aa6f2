/** An API server that is restored from a backup: what nodes say now is older than what is known of them. */
import { expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

test("a revision that goes back is noticed, nothing known is pruned or lost, and new nodes are reached", async () => {
  await using lab = await Lab.start({ nodes: 2 });
  const [n1, n2] = lab.nodes as [LightNode, LightNode];
  const [a, b] = (await Promise.all([n1, n2].map((node) => node.pod("p")))) as [Pod, Pod];
  await lab.shakeHands();
  await lab.controlPlane.backUp();

  const join = async (index: number): Promise<Pod> => {
    const node = await lab.addNode({ podCIDRs: [`10.244.${index}.0/24`, `fd00:10:244:${index}::/64`] });
    await node.ready();
    const pod = await node.pod("p");
    await until(
      `${node.name} to be reached`,
      async () => (await lab.unreached([a, b].map((from): [Pod, Pod] => [from, pod]))).length === 0,
      { timeout: 45_000 },
    );
    return pod;
  };
  // Its Node is not in the backup.
  const c = await join(77);
  // Heartbeats, as many as it takes for a watch from the present to hear of nothing for long after the restore.
  for (let beat = 0; beat < 300; beat += 1)
    await n1.patch({ metadata: { annotations: { beat: `${beat}` } } });
  const peers = () => Promise.all([n1, n2].map(async (node) => (await stateOf(node)).wireguard));
  const before = await peers();
  const probes = await Promise.all([
    lab.probe(a, c, { family: "ipv4" }),
    lab.probe(b, c, { family: "ipv6" }),
  ]);

  await lab.controlPlane.restore();
  const noticed = (node: LightNode) =>
    node.agentLog().filter(({ msg }) => String(msg).startsWith("the API server's revision went back"));
  await until("both to notice", () => [n1, n2].every((node) => noticed(node).length > 0), {
    timeout: 45_000,
  });
  await join(78);
  const after = await peers();
  for (const [index, lines] of before.entries())
    expect(after[index]!.filter((line) => lines.includes(line))).toEqual(lines);
  for (const probe of probes) expect((await probe.stop()).lost).toBe(0);
  for (const node of [n1, n2]) expect(noticed(node)).toHaveLength(1);
}, 180_000);
