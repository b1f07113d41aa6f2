/** Nodes that are no more than what their agents would have published: peers by the hundred, for one agent that runs. */
import { version } from "../../../package.json";
import { annotationsOf } from "../../../src/plan/overlay/node.ts";
import type { Api } from "./api.ts";

/** @param n from 0 to 255: what it claims lies beside what the lab gives its own nodes */
export async function announce(api: Api, n: number): Promise<void> {
  // IPv6 with the same digits: what is said of two nodes differs in numbers alone.
  const addresses = [`172.30.1.${n}`, `fd30::1:${n}`];
  const annotations = annotationsOf({
    version,
    publicKey: Buffer.alloc(32, `peer ${n}`).toString("base64"),
    podCidrs: [`10.200.${n}.0/24`, `fd00:200:${n}::/64`],
    addresses,
    endpoints: addresses,
  });
  await api.create({ apiVersion: "v1", kind: "Node", metadata: { name: `other-${n}`, annotations } });
}
