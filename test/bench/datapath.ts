/**
 * What our firewall costs a packet: TCP throughput and small UDP packets a second from a pod to a pod of another node,
 * through our rules and through connection tracking alone. A veth named as the tunnel's link stands in for the tunnel, so
 * that encryption, which takes far longer, does not hide the rules.
 */

import { perform } from "../../src/host/command.ts";
import { nodeReader } from "../../src/host/executor.ts";
import {
  type Backend,
  diffFirewall,
  observeFirewall,
  removeFirewall,
} from "../../src/host/firewall/firewall.ts";
import { crowd, input, plan } from "../../src/plan/fixtures/input.ts";
import { ensurePackages } from "../lab/install.ts";
import { Namespace } from "../lab/kernel/namespace.ts";

export interface DataPath {
  /** Our rules beside connection tracking alone, pair by pair: 1 is as fast. */
  tcp: number[];
  udp: number[];
}

const podLink = "veth00000001";
const tunnel = "wigglenet";
/** The own node's pod CIDR in `input`, and that of another node. */
const [pod, remote] = ["10.1.0.2", "10.64.1.2"];
const seconds = 1;

/** @param pairs how often both are measured, one right after the other, as the machine's speed drifts */
export async function measureDataPath(backend: Backend, pairs: number): Promise<DataPath> {
  await ensurePackages(["iperf3"]);
  const [node, client, server] = await Promise.all(["node", "client", "server"].map(Namespace.create));
  try {
    await connect(node!, client!, server!);
    const worker = [process.execPath, import.meta.path, backend];
    const rules = (which: string) => node!.run([...worker, which]);
    const listening = server!.start("iperf3", ["iperf3", "-s"], "/dev/null");
    const result: DataPath = { tcp: [], udp: [] };
    try {
      for (let pair = 0; pair < pairs; pair += 1) {
        await rules("none");
        const bare = { tcp: await tcp(client!), udp: await udp(client!) };
        await rules("ours");
        result.tcp.push((await tcp(client!)) / bare.tcp);
        result.udp.push((await udp(client!)) / bare.udp);
      }
    } finally {
      await listening.stop("SIGKILL");
    }
    return result;
  } finally {
    await Promise.all([node, client, server].map((each) => each!.place.close()));
  }
}

async function connect(node: Namespace, client: Namespace, server: Namespace): Promise<void> {
  await node.ip(
    "link set lo up",
    `link add ${podLink} type veth peer name eth0 netns ${client.pid}`,
    `link add ${tunnel} type veth peer name eth0 netns ${server.pid}`,
    `link set ${podLink} up`,
    `link set ${tunnel} up`,
    `addr add 10.1.0.1/24 dev ${podLink}`,
    `addr add 10.64.1.1/24 dev ${tunnel}`,
  );
  await node.sysctl({ "net.ipv4.ip_forward": 1 });
  await client.ip("link set eth0 up", `addr add ${pod}/24 dev eth0`, "route add default via 10.1.0.1");
  await server.ip("link set eth0 up", `addr add ${remote}/24 dev eth0`, "route add default via 10.64.1.1");
}

/** Bits a second. */
async function tcp(client: Namespace): Promise<number> {
  const { end } = await iperf(client, []);
  return end.sum_received!.bits_per_second;
}

/** Packets a second that arrived. */
async function udp(client: Namespace): Promise<number> {
  const { sum } = (await iperf(client, ["-u", "-b", "0", "-l", "64"])).end;
  return (sum!.packets - sum!.lost_packets) / sum!.seconds;
}

interface IperfResult {
  end: {
    sum_received?: { bits_per_second: number };
    sum?: { packets: number; lost_packets: number; seconds: number };
  };
}

async function iperf(client: Namespace, flags: string[]): Promise<IperfResult> {
  const argv = ["iperf3", "-J", "-c", remote, "-t", String(seconds), "--connect-timeout", "2000", ...flags];
  return JSON.parse(await client.run(argv)) as IperfResult;
}

/** In the node's namespace: puts our rules of a cluster of 5,000 nodes there, or what tracks connections and no more. */
async function setRules(backend: Backend, which: string): Promise<void> {
  const tracking = "inet tracking";
  const lines =
    which === "ours"
      ? [`add table ${tracking}`, `delete table ${tracking}`]
      : [
          `add table ${tracking}`,
          `add chain ${tracking} forward { type filter hook forward priority 0; }`,
          `add rule ${tracking} forward ct state invalid drop`,
        ];
  const { firewall } = plan(input({ nodes: crowd(5_000) }));
  const observed = await observeFirewall(nodeReader, backend);
  await perform([
    { kind: "run", argv: ["nft", "-f", "-"], stdin: `${lines.join("\n")}\n` },
    ...(which === "ours" ? diffFirewall(backend, firewall, observed) : removeFirewall(observed)),
  ]);
}

if (import.meta.main) await setRules(Bun.argv[2] as Backend, Bun.argv[3]!);
