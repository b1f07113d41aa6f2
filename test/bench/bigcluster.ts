/** A cluster of many nodes for measurements: Node objects as real kubelets and our agents write them, 15 kB each. */
import { createHash, randomBytes } from "node:crypto";
import { annotationsOf } from "../../src/plan/overlay/node.ts";
import type { Api } from "../lab/cluster/api.ts";

/** Requests to the API server that are under way at the same time. */
const atOnce = 64;

/** What node number `index` claims. It fits none of the lab's own addresses. */
export function claimsOf(index: number) {
  const [high, low] = [index >> 8, index & 255];
  return {
    podCidrs: [`10.${100 + high}.${low}.0/24`, `fd00:2:${(index + 1).toString(16)}::/64`],
    addresses: [`172.29.${high}.${low}`, `2001:db8:1::${(index + 1).toString(16)}`],
  };
}

export const nodeName = (index: number) => `crowd-${index}`;

/** Runs `each` for the numbers from `from` to `to`, exclusive, many at a time. */
export async function inParallel(from: number, to: number, each: (index: number) => Promise<unknown>) {
  let next = from;
  const worker = async () => {
    while (next < to) await each(next++);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** Creates the nodes with numbers from `from` to `to`, exclusive. */
export async function createNodes(api: Api, from: number, to: number): Promise<void> {
  await inParallel(from, to, (index) => api.create(nodeObject(index)));
}

/** A heartbeat: kubelet writes the conditions of its Node every few minutes, or at each change of one. */
export async function heartbeat(api: Api, index: number): Promise<void> {
  const lastHeartbeatTime = new Date().toISOString();
  await api.request(
    "PATCH",
    `/api/v1/nodes/${nodeName(index)}/status`,
    { status: { conditions: [{ ...conditions[0], lastHeartbeatTime }] } },
    "application/strategic-merge-patch+json",
  );
}

/** Gives a node other pod CIDRs by its annotation. */
export async function changePodCidrs(api: Api, index: number, podCidrs: readonly string[]): Promise<void> {
  const annotations = { "wigglenet/pod-cidrs": JSON.stringify(podCidrs) };
  await api.patch(`/api/v1/nodes/${nodeName(index)}`, { metadata: { annotations } });
}

const conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map((type) => ({
  type,
  status: type === "Ready" ? "True" : "False",
  reason: `Kubelet${type}`,
  message: `kubelet has looked at ${type} and reports what it found`,
  lastHeartbeatTime: "2026-01-01T00:00:00Z",
  lastTransitionTime: "2026-01-01T00:00:00Z",
}));

// 50 images of two names each, as kubelet reports them by default: most of a Node's size.
const images = Array.from({ length: 50 }, (_, index) => {
  const digest = createHash("sha256").update(String(index)).digest("hex");
  const name = `registry.example/team-${index % 7}/application-with-a-name-${index}`;
  return { names: [`${name}@sha256:${digest}`, `${name}:v1.${index}.0`], sizeBytes: 1_000_000 * (index + 1) };
});

function nodeObject(index: number) {
  const { podCidrs, addresses } = claimsOf(index);
  const name = nodeName(index);
  return {
    apiVersion: "v1",
    kind: "Node",
    metadata: {
      name,
      labels: Object.fromEntries(
        Array.from({ length: 15 }, (_, label) => [`example.com/label-${label}`, `value-${label}-of-${name}`]),
      ),
      annotations: {
        "node.alpha.kubernetes.io/ttl": "0",
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        ...annotationsOf({
          version: "1.0.0",
          publicKey: randomBytes(32).toString("base64"),
          podCidrs,
          addresses,
          endpoints: addresses,
        }),
      },
    },
    spec: { podCIDR: podCidrs[0], podCIDRs: podCidrs },
    status: {
      addresses: [
        ...addresses.map((address) => ({ type: "InternalIP", address })),
        { type: "Hostname", address: name },
      ],
      conditions,
      images,
    },
  };
}
