/** The demo's cluster, from its start to Ctrl-C. */
import { families } from "../src/net/address.ts";
import { kubernetesDir } from "./lab/cache.ts";
import { Cluster } from "./lab/cluster/cluster.ts";
import { Capture, wireguardPort } from "./lab/probe/capture.ts";
import { type Outcome, paths, reachability, settle, unreached } from "./lab/probe/reachability.ts";

const begin = performance.now();
const step = (line: string) =>
  console.log(`${((performance.now() - begin) / 1000).toFixed(1).padStart(6)} s  ${line}`);
const stopped = new Promise<void>((resolve) => process.once("SIGTERM", resolve));

process.exit((await demo()) ? 0 : 1);

async function demo(): Promise<boolean> {
  await using cluster = await Cluster.start({ nodes: 3, say: step });
  const shown = show(cluster);
  // what is under way when the cluster goes fails, and nobody wants to know
  shown.catch(() => {});
  const ok = await Promise.race([shown, stopped.then(() => false)]);
  if (!Bun.argv.includes("--exit")) await stopped;
  return ok;
}

/** Whether everything reached what it should, and nothing crossed the underlay in the clear. */
async function show(cluster: Cluster): Promise<boolean> {
  step("nodes registered, NotReady: they have no network yet. kubectl apply -f deploy/manifest.yaml");
  await cluster.kubectl`apply -f deploy/manifest.yaml`;
  await cluster.ready();
  step("nodes Ready. kubectl apply -f test/web.yaml: a pod on each, and a Service");
  await cluster.kubectl`apply -f test/web.yaml`;
  const pods = await cluster.pods("app=web");
  step("trying who reaches whom");
  await using encrypted = await Capture.start(cluster.underlay, `udp port ${wireguardPort}`);
  await using clear = await Capture.start(cluster.underlay);
  const all = await paths(cluster, pods);
  await settle(all, pods);
  const outcomes = await reachability(all);
  const seen = { encrypted: (await encrypted.stop()).length, clear: (await clear.stop()).length };
  step("done\n");

  console.log(`${(await cluster.kubectl`get nodes,pods -A -o wide`).stdout}`);
  const failures = unreached(outcomes);
  printTable(outcomes);
  for (const line of failures) console.log(`  FAILED  ${line}`);
  console.log(`
On the underlay meanwhile: ${seen.encrypted} WireGuard packets, ${seen.clear} packets in the clear with a pod's address.
`);
  const ok = failures.length === 0 && seen.clear === 0;
  printHints(cluster, (await cluster.service("web")).clusterIPs);
  return ok;
}

function printTable(outcomes: Outcome[]): void {
  console.log(`${"who reaches whom, by TCP, UDP and ping".padEnd(44)}${"IPv4".padEnd(24)}IPv6`);
  for (const [kind, tried] of Map.groupBy(outcomes, ({ kind }) => kind)) {
    const cells = families.map((family) => cell(tried.filter((outcome) => outcome.family === family)));
    console.log(
      `  ${kind.padEnd(42)}${cells
        .map((text) => text.padEnd(24))
        .join("")
        .trimEnd()}`,
    );
  }
}

function cell(tried: Outcome[]): string {
  const times = tried.flatMap(({ ms }) => ms ?? []).sort((a, b) => a - b);
  const median = times[Math.floor(times.length / 2)];
  return `${times.length} of ${tried.length}${median === undefined ? "" : `, ${median.toFixed(1)} ms`}`;
}

function printHints({ controlPlane, nodes, underlay }: Cluster, clusterIps: string[]): void {
  const service = clusterIps.map((ip) => (ip.includes(":") ? `http://[${ip}]` : `http://${ip}`))[0];
  const node = nodes[0]!;
  console.log(`Look around, in another terminal (as root):
  export KUBECONFIG=${controlPlane.kubeconfig} PATH=${kubernetesDir}/bin:$PATH
  kubectl get pods -A -o wide
  kubectl -n kube-system logs ds/wigglenet                     # what the agent did and why
  kubectl exec deploy/web -- wget -qO- ${service}
  nsenter -t ${node.namespace.pid} -m -u -i -n -p -C bash                    # a shell in ${node.name}; try: wg; ip route show table all proto 246; nft list table inet wigglenet
  nsenter -t ${underlay.router.pid} -n tcpdump -ni br0                      # the underlay

Ctrl-C takes everything down.`);
}
