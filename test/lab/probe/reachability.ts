/** Who reaches whom in a cluster of whole nodes, by each family and protocol. */
import type { Family } from "../../../src/net/address.ts";
import type { Cluster, ClusterPod } from "../cluster/cluster.ts";
import type { Protocol, Reached } from "../cluster/place.ts";
import type { Addresses, Host } from "../kernel/namespace.ts";
import { until } from "../process.ts";

/** What is tried between two ends. */
export interface Path {
  /** Such as "pod → pod on another node". */
  kind: string;
  from: Host;
  to: { name: string; addresses: Addresses };
  port?: number;
  protocols: Protocol[];
  /** Those that both ends should have. */
  families: readonly Family[];
}

export interface Outcome extends Path {
  family: Family;
  protocol: Protocol;
  /** Round trip (tcp: with the connection's start), ms; undefined if nothing came back. */
  ms: number | undefined;
  /** The source that an echo server saw, or why nothing came back. */
  detail: string;
}

const echo = 7;
const nodePort = 30007;

/** Every path between pods of a Service's Deployment, nodes, the Service and `outside`. */
export async function paths(cluster: Cluster, pods: ClusterPod[], service = "web"): Promise<Path[]> {
  const { nodes, outside, families } = cluster;
  const { clusterIPs } = await cluster.service(service);
  const clusterIp = { name: `service ${service}`, addresses: byFamily(clusterIPs) };
  const all: Protocol[] = ["tcp", "udp", "icmp"];
  const behindProxy: Protocol[] = ["tcp", "udp"];
  const isOther = (pod: ClusterPod, host: Host) =>
    "node" in host ? host.node !== pod.node : host !== pod.node;
  const between = (kind: string, from: Host[], to: Host[], fits: (a: Host, b: Host) => boolean) =>
    from.flatMap((a) =>
      to.filter((b) => a !== b && fits(a, b)).map((b) => ({ kind, from: a, to: b, protocols: all })),
    );
  const own = (pod: Host, host: Host) => !isOther(pod as ClusterPod, host);
  const other = (pod: Host, host: Host) => isOther(pod as ClusterPod, host);
  return [
    ...between("pod → pod on another node", pods, pods, other),
    ...between("pod → its own node", pods, nodes, own),
    ...between("pod → another node", pods, nodes, other),
    ...between("node → pod of its own", nodes, pods, (node, pod) => own(pod, node)),
    ...between("node → pod on another node", nodes, pods, (node, pod) => other(pod, node)),
    ...between("pod → outside", pods, [outside], () => true),
    ...pods.map((from) => ({ kind: "pod → ClusterIP", from, to: clusterIp, protocols: behindProxy })),
    ...nodes.map((from) => ({ kind: "node → ClusterIP", from, to: clusterIp, protocols: behindProxy })),
    ...[outside, ...nodes].flatMap((from) =>
      nodes.map((to) => ({
        kind: from === outside ? "outside → NodePort" : "node → NodePort",
        from,
        to,
        port: nodePort,
        protocols: behindProxy,
      })),
    ),
  ].map((path) => ({ ...path, families }));
}

/**
 * Waits until kube-proxy on every node knows the Service, and lets each two nodes shake hands, begun by one of them:
 * when both begin in the same instant WireGuard drops both handshakes and waits 5 s for the next, which would be the
 * rule where everything is tried at once. And one that was rebooted has to begin: to the others the old session is
 * good for 15 s more.
 */
export async function settle(paths: Path[], pods: ClusterPod[]): Promise<void> {
  for (const from of pods) {
    for (const to of pods.filter((pod) => pod !== from)) {
      const address = to.addresses.ipv4 ?? to.addresses.ipv6;
      await from.place.reach({ protocol: "icmp", address: address!, timeout: 1000 });
    }
  }
  let still: string[] = [];
  const proxied = paths.filter(({ kind }) => /^(node → ClusterIP|outside → NodePort)$/.test(kind));
  const known = async () => {
    still = unreached(await reachability(proxied, 200));
    return still.length === 0;
  };
  await until("kube-proxy to know the Service", known, {
    timeout: 15_000,
    why: () => still.join("\n"),
  }).catch(() => {});
}

/** Tries all of them at once, by each of their families. */
export async function reachability(paths: Path[], timeout = 2000): Promise<Outcome[]> {
  const tries = paths.flatMap((path) => path.families.map((family) => tryOut(path, family, timeout)));
  return (await Promise.all(tries)).flat();
}

async function tryOut(path: Path, family: Family, timeout: number): Promise<Outcome[]> {
  const address = path.to.addresses[family];
  const lacking = [path.from, path.to].find(({ addresses }) => !addresses[family]);
  return await Promise.all(
    path.protocols.map(async (protocol) => {
      const reached: Reached =
        address && !lacking
          ? await path.from.place.reach({ protocol, address, port: path.port ?? echo, timeout })
          : { ok: false, reason: `${lacking?.name} has no address` };
      return reached.ok
        ? { ...path, family, protocol, ms: reached.ms, detail: reached.seen }
        : { ...path, family, protocol, ms: undefined, detail: reached.reason };
    }),
  );
}

/** One line for each that failed. */
export function unreached(outcomes: Outcome[]): string[] {
  return outcomes
    .filter(({ ms }) => ms === undefined)
    .map(({ kind, from, to, protocol, family, detail }) =>
      [`${kind}: ${from.name} → ${to.name}`, protocol, family, detail].join(", "),
    );
}

export function byFamily(addresses: string[]): Addresses {
  const of = (isFamily: (address: string) => boolean) => addresses.find(isFamily);
  const [ipv4, ipv6] = [of((address) => !address.includes(":")), of((address) => address.includes(":"))];
  return { ...(ipv4 && { ipv4 }), ...(ipv6 && { ipv6 }) };
}
