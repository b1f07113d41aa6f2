/** Rolling updates of the DaemonSet on whole nodes, by the commands of docs/migration.md, under probe. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { version } from "../package.json";
import { kubernetesDir, repository } from "./lab/cache.ts";
import { Cluster, type ClusterPod } from "./lab/cluster/cluster.ts";
import { goManifest } from "./lab/cluster/gomanifest.ts";
import { nextImage, nextVersion } from "./lab/cluster/nextbuild.ts";
import type { WholeNode } from "./lab/cluster/wholenode.ts";
import { commandBlocks } from "./lab/documents.ts";
import { agentImage } from "./lab/image/image.ts";
import { probes } from "./lab/probe/probes.ts";
import { paths, settle } from "./lab/probe/reachability.ts";
import { run, until } from "./lab/process.ts";

setDefaultTimeout(180_000);

const documented = commandBlocks("docs/migration.md");
const daemonSet = "/apis/apps/v1/namespaces/kube-system/daemonsets/wigglenet";

let cluster: Cluster;
let pods: ClusterPod[];

beforeAll(async () => {
  cluster = await Cluster.start({ nodes: 3 });
  await cluster.kubectl`apply -f deploy/manifest.yaml`;
  await cluster.ready();
  await cluster.kubectl`apply -f test/web.yaml`;
  pods = await cluster.pods("app=web");
  await settle(await paths(cluster, pods), pods);
});
afterAll(() => cluster[Symbol.asyncDispose]());

/** As an admin would type it. */
function admin(commands: string): Promise<string> {
  return run(["/bin/bash", "-ec", `cd ${repository}; ${commands}`], {
    env: { KUBECONFIG: cluster.controlPlane.kubeconfig, PATH: `${kubernetesDir}/bin:${process.env.PATH}` },
  });
}

test("what the README says to verify an installation by says that it is right", async () => {
  const readme = commandBlocks("README.md");
  const said = await admin(readme.find(({ text }) => text.includes("rollout status"))!.text);
  expect(said).toContain("successfully rolled out");
  for (const node of cluster.nodes) {
    const { podCIDRs } = (await cluster.api.node(node.name)).spec;
    expect(said).toMatch(new RegExp(`^${node.name} .*"version":"${version}".*${podCIDRs![0]}`, "m"));
  }
  expect(said.match(/"in sync"/g)).toHaveLength(cluster.nodes.length);
  const shown = readme.find(({ text }) => text.includes("wg show"))!.text;
  const onNode = (await cluster.nodes[0]!.$`/bin/bash -ec ${shown}`).stdout;
  for (const part of ["latest handshake", "dev wigglenet", "unreachable", "chain srcnat"])
    expect(onNode).toContain(part);
});

async function versions(): Promise<string[]> {
  const nodes = await cluster.api.nodes();
  return nodes.map(({ metadata }) => JSON.parse(metadata.annotations!["wigglenet/agent"]!).version as string);
}

test("a rolling update to the next image and back loses no packet between pods", async () => {
  const next = await nextImage(await agentImage());
  await Promise.all(cluster.nodes.map((node) => node.$`ctr -n k8s.io images import ${next.archive}`));
  const update = documented.find(({ text }) => text.includes("set image"))!.text;

  const running = await probes([pods[0]!, pods[1]!]);
  const begin = performance.now();
  await admin(update.replace("IMAGE", next.name));
  await until("every node's agent to be the next", async () =>
    (await versions()).every((each) => each === nextVersion),
  );
  await admin("kubectl -n kube-system rollout undo daemonset/wigglenet");
  await admin("kubectl -n kube-system rollout status daemonset/wigglenet");
  await until("every node's agent to be the old one", async () =>
    (await versions()).every((each) => each === version),
  );
  console.log(`there and back: ${((performance.now() - begin) / 1000).toFixed(1)} s`);
  expect(await running.lost()).toEqual([]);
});

/** What the agent has left on a node and said of it. */
async function left(node: WholeNode): Promise<string[]> {
  const { stdout } = await node.$`
    ls -lR --full-time /etc/cni/net.d /etc/wigglenet /run/wigglenet
    ip rule; ip -6 rule; ip route show table all proto 246; ip -6 route show table all proto 246
    nft list table inet wigglenet; wg show wigglenet allowed-ips | sort`;
  return [stdout, JSON.stringify((await cluster.api.node(node.name)).metadata.annotations)];
}

test("our manifest over the DaemonSet of the Go implementation loses none either", async () => {
  const running = await probes([pods[0]!, pods[2]!]);
  const { uid } = (await cluster.api.get(daemonSet)).metadata;
  const go = {
    apiVersion: "v1",
    kind: "List",
    items: goManifest({ image: (await agentImage()).name, args: ["-v=4"] }),
  };
  const before = await Promise.all(cluster.nodes.map(left));
  await cluster.controlPlane.kubectl({ input: JSON.stringify(go) })`apply -f -`;
  const refusal = await until(
    "our agent to refuse to start there",
    async () => {
      const { stdout } = await cluster.kubectl`-n kube-system logs -l app=wigglenet --tail=-1`.nothrow();
      return /^wigglenet: wrong configuration:\n( {2}.*\n)+/m.exec(stdout)?.[0];
    },
    { timeout: 60_000 },
  );
  for (const says of [
    "/proc/sys/net",
    "/run/wigglenet",
    "memory limit of 50 MiB",
    "NETWORK_POLICY",
    "kubectl apply",
  ])
    expect(refusal).toContain(says);
  expect(await Promise.all(cluster.nodes.map(left))).toEqual(before);
  await admin(documented.find(({ text }) => text.includes("apply -f deploy/manifest.yaml"))!.text);
  expect((await cluster.api.get(daemonSet)).metadata.uid).toBe(uid);
  expect(await running.lost()).toEqual([]);
});
