/**
 * What Prometheus is told. Names that the Go implementation has for the same thing are kept, so that its dashboards go
 * on. Series of single peers are bounded, see peer-metrics.ts.
 */
import { Counter, Gauge, Histogram } from "prom-client";
import { $ } from "../host/command.ts";
import { handshakeLimit } from "../host/wireguard.ts";
import { type ReadonlyTable, Table } from "../net/table.ts";
import type { Observer } from "../reconcile/observer.ts";
import { type Peer, PeerTraffic, parsePeerTraffic } from "./peer-metrics.ts";

const buildInfo = new Gauge({
  name: "wigglenet_build_info",
  help: "Always 1; the agent's version and the firewall backend that it uses.",
  labelNames: ["version", "firewall_backend"],
});
const passDuration = new Histogram({
  name: "wigglenet_pass_duration_seconds",
  help: "Passes over all resources of the node: how many, and how long they took.",
  buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
});
const changes = new Counter({
  name: "wigglenet_changes_total",
  help: "Commands that changed the node, by what they were for.",
  labelNames: ["what"],
});
const failures = new Counter({
  name: "wigglenet_failures_total",
  help: "Failed attempts to bring a resource to its desired state.",
  labelNames: ["resource"],
});
export const inSync = new Gauge({
  name: "wigglenet_in_sync",
  help: "1 while /readyz says yes: the node is as it should be, and has told the others so.",
});
const nodes = new Gauge({
  name: "wigglenet_nodes",
  help: "Other nodes of the cluster that are known.",
});
const nodesWithProblems = new Gauge({
  name: "wigglenet_nodes_with_problems",
  help: "Nodes of whose claims something is left out; the log says what and why.",
});
let countPodCidrs = () => 0;
new Gauge({
  name: "wigglenet_pod_cidrs_total",
  help: "Pod CIDRs of all nodes, the own ones among them.",
  // Counted when somebody asks, and not after each change.
  collect() {
    this.set(countPodCidrs());
  },
});
const peers = new Gauge({
  name: "wigglenet_peers_total",
  help: "Peers of the tunnel that there should be.",
});
const peersConnected = new Gauge({
  name: "wigglenet_peers_connected",
  help: "Peers of the tunnel with a handshake in the last three minutes; one that nobody talks to has none.",
});
const lastHandshake = new Gauge({
  name: "wigglenet_last_handshake_timestamp_seconds",
  help: "When the tunnel last shook hands with any peer, in seconds since 1970; 0 if it has not.",
});

const peersSilent = new Gauge({
  name: "wigglenet_peers_silent",
  help: "Peers of the tunnel that something was sent to within three minutes, and without a handshake for longer.",
});

const ofPeer = { labelNames: ["public_key", "endpoint", "node"] as const };
const peerHandshake = new Gauge({
  ...ofPeer,
  name: "wigglenet_peer_last_handshake_seconds",
  help: "Seconds since the last handshake with this peer.",
});
const peerReceived = new Counter({
  ...ofPeer,
  name: "wigglenet_peer_receive_bytes_total",
  help: "Bytes received from this peer.",
});
const peerSent = new Counter({
  ...ofPeer,
  name: "wigglenet_peer_transmit_bytes_total",
  help: "Bytes sent to this peer.",
});

const firewallSyncs = new Counter({
  name: "wigglenet_firewall_sync_total",
  help: "Changes of the firewall, by whether they succeeded.",
  labelNames: ["backend", "status"],
});
const firewallDuration = new Histogram({
  name: "wigglenet_firewall_sync_duration_seconds",
  help: "How long changes of the firewall took.",
  labelNames: ["backend"],
});

/** Which agent this is; the series of its firewall begin at 0. */
function setBuildInfo(version: string, backend: string): void {
  buildInfo.set({ version, firewall_backend: backend }, 1);
  for (const status of ["success", "error"]) firewallSyncs.inc({ backend, status }, 0);
  // Zeroing would forget what was observed.
  if (!zeroed.has(backend)) firewallDuration.zero({ backend });
  zeroed.add(backend);
}
const zeroed = new Set<string>();

/** By public key, the peers that there should be. */
let desiredPeers: ReadonlyTable<{ node: string }> = new Table();
const traffic = new PeerTraffic();

let look: { at: number; done: Promise<void> } | undefined;

/** Looks at the tunnel, which others may have changed. Whoever asks within a second shares one look: it is a process. */
export async function observePeers(link: string, now: number): Promise<void> {
  if (look === undefined || now - look.at >= 1) look = { at: now, done: observeOnce(link, now) };
  await look.done;
}

async function observeOnce(link: string, now: number): Promise<void> {
  const output = await $`wg show ${link} dump`.catch(() => "");
  const all = parsePeerTraffic(output, { get: (key) => desiredPeers.get(key)?.node });
  peersConnected.set(all.filter(({ handshake }) => now - handshake <= handshakeLimit).length);
  lastHandshake.set(all.reduce((latest, { handshake }) => Math.max(latest, handshake), 0));
  const { shown, silent } = traffic.look(all, now);
  peersSilent.set(silent);
  for (const metric of [peerHandshake, peerReceived, peerSent]) metric.reset();
  for (const peer of shown) show(peer, now);
}

function show({ publicKey, endpoint, node, handshake, received, sent }: Peer, now: number): void {
  const labels = { public_key: publicKey, endpoint, node };
  if (handshake > 0) peerHandshake.set(labels, now - handshake);
  peerReceived.inc(labels, received);
  peerSent.inc(labels, sent);
}

/** Counts what passes do. @param version of the agent */
export function metricsObserver(version: string): Observer {
  return {
    passed: (seconds) => passDuration.observe(seconds),
    failed: (resource) => failures.inc({ resource }),
    changed({ what, commands, seconds, succeeded, details: { backend } }) {
      if (succeeded) changes.inc({ what }, commands);
      if (what !== "firewall" || backend === undefined) return;
      firewallSyncs.inc({ backend, status: succeeded ? "success" : "error" });
      firewallDuration.observe({ backend }, seconds);
    },
    planned(plan, others, ownPodCidrs) {
      nodes.set(others.size);
      nodesWithProblems.set(plan.problems.size);
      peers.set(plan.peers.size);
      desiredPeers = plan.peers;
      countPodCidrs = () => {
        let sum = ownPodCidrs;
        for (const node of others.values()) sum += node.podCidrs.length;
        return sum;
      };
    },
    choseBackend: (backend) => setBuildInfo(version, backend),
  };
}
