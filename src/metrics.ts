/**
 * What Prometheus is told. Nothing has a label for each node. Names that the Go implementation has for the same thing
 * are kept, so that its dashboards go on.
 */
import { Counter, Gauge, Histogram } from "prom-client";
import { handshakeLimit, observeTunnel } from "./host/wireguard.ts";

export const buildInfo = new Gauge({
  name: "wigglenet_build_info",
  help: "Always 1; the agent's version and the firewall backend that it uses.",
  labelNames: ["version", "firewall_backend"],
});
export const passDuration = new Histogram({
  name: "wigglenet_pass_duration_seconds",
  help: "Passes over all resources of the node: how many, and how long they took.",
  buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30],
});
export const changes = new Counter({
  name: "wigglenet_changes_total",
  help: "Commands that changed the node, by what they were for.",
  labelNames: ["what"],
});
export const failures = new Counter({
  name: "wigglenet_failures_total",
  help: "Failed attempts to bring a resource to its desired state.",
  labelNames: ["resource"],
});
export const inSync = new Gauge({
  name: "wigglenet_in_sync",
  help: "1 while /readyz says yes: the node is as it should be, and has told the others so.",
});
export const nodes = new Gauge({
  name: "wigglenet_nodes",
  help: "Other nodes of the cluster that are known.",
});
export const nodesWithProblems = new Gauge({
  name: "wigglenet_nodes_with_problems",
  help: "Nodes of whose claims something is left out; the log says what and why.",
});
export const podCidrs = new Gauge({
  name: "wigglenet_pod_cidrs_total",
  help: "Pod CIDRs of all nodes, the own ones among them.",
});
export const peers = new Gauge({
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

let look: { at: number; done: Promise<void> } | undefined;

/** Looks at the tunnel, which others may have changed. Whoever asks within a second shares one look: it is a process. */
export async function observeHandshakes(link: string, now: number): Promise<void> {
  if (look === undefined || now - look.at >= 1) look = { at: now, done: observeOnce(link, now) };
  await look.done;
}

async function observeOnce(link: string, now: number): Promise<void> {
  const tunnel = await observeTunnel(link).catch(() => undefined);
  const handshakes = [...(tunnel?.peers.values() ?? [])].map((peer) => peer.latestHandshake);
  peersConnected.set(handshakes.filter((at) => at > 0 && now - at <= handshakeLimit).length);
  lastHandshake.set(handshakes.reduce((latest, at) => Math.max(latest, at), 0));
}
