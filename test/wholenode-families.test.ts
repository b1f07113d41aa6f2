/** Clusters of one family: real kubelets on an underlay that has nothing else, each with the manifest that is for it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Cluster } from "./lab/cluster/cluster.ts";
import { Capture } from "./lab/probe/capture.ts";
import { paths, reachability, settle, unreached } from "./lab/probe/reachability.ts";

setDefaultTimeout(120_000);

test.each([
  ["ipv6", "deploy/manifest_ipv6_only.yaml"],
  ["ipv4", "deploy/manifest.yaml"],
] as const)(
  "%s alone, by %s: pods, nodes, outside and Services, through the tunnel",
  async (family, manifest) => {
    await using cluster = await Cluster.start({ nodes: 2, families: family });
    await cluster.kubectl`apply -f ${manifest}`;
    await cluster.ready();
    await cluster.kubectl`apply -f test/web.yaml`;
    const pods = await cluster.pods("app=web", 3);
    for (const host of [...cluster.nodes, ...pods, cluster.outside])
      expect([host.name, Object.keys(host.addresses)]).toEqual([host.name, [family]]);
    await using clear = await Capture.start(cluster.underlay);
    const all = await paths(cluster, pods);
    await settle(all, pods);
    const outcomes = await reachability(all);
    expect(unreached(outcomes)).toEqual([]);
    expect(new Set(outcomes.map((outcome) => outcome.family))).toEqual(new Set([family]));
    expect(await clear.stop()).toEqual([]);
  },
);
