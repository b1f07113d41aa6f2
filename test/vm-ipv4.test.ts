/** A kernel that was booted without IPv6 (`ipv6.disable=1`), in a virtual machine of its own. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { Lab } from "./lab/lab.ts";

test("a kernel without IPv6: pods and nodes reach each other by IPv4, with nothing wrong to tell", async () => {
  expect(existsSync("/proc/sys/net/ipv6")).toBe(false);
  await using lab = await Lab.start({ nodes: 2, families: "ipv4", underlay: "ipv4" });
  const pods = await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.shakeHands();
  expect(await lab.unreached([...lab.nodes, ...pods])).toEqual([]);
  expect(await lab.unreached(pods.map((pod): [Host, Host] => [pod, lab.outside]))).toEqual([]);
  for (const node of lab.nodes) {
    expect(atLeast("warn", node.agentLog())).toEqual([]);
  }
}, 300_000);
