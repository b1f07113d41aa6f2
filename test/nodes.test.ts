/** What a node tells of itself, and what it finds wanting. */
import { expect, test } from "bun:test";
import { Lab } from "./lab/lab.ts";
import type { LightNode } from "./lab/lightnode.ts";
import type { Host } from "./lab/namespace.ts";
import { until } from "./lab/process.ts";

test("addresses of NODE_IP_INTERFACES are reached by the tunnel; forwarding that is off is named", async () => {
  await using lab = await Lab.start({
    nodes: [{ env: { NODE_IP_INTERFACES: "lan0" } }, { forwarding: false }],
    agents: false,
  });
  const [n1, n2] = lab.nodes as [LightNode, LightNode];
  const addresses = { ipv4: "192.0.2.77", ipv6: "2001:db8:77::1" };
  await n1.namespace.ip(
    "link add lan0 type bridge",
    "link set lan0 up",
    `addr add ${addresses.ipv4}/32 dev lan0`,
    `addr add ${addresses.ipv6}/128 dev lan0 nodad`,
  );
  await lab.startAgents();
  const forwarding = (node: LightNode) =>
    node.agentLog().find((line) => String(line.msg).startsWith("forwarding is off"));
  await until("forwarding to be named", () => forwarding(n2));
  expect(forwarding(n2)?.off).toEqual(["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);

  const pod = await n2.pod("p");
  await lab.shakeHands();
  expect(forwarding(n1)).toBeUndefined();
  const lan: Host = { name: "lan0 of n1", addresses, place: n1.place };
  await using capture = await lab.capture(`host ${addresses.ipv4} or host ${addresses.ipv6}`);
  expect(await lab.unreached([[pod, lan]])).toEqual([]);
  expect(await capture.stop()).toEqual([]);
});
