/** Everything on a light node that its agent answers for, as plain data that compares: what changed, and what did not. */
import { lstatSync, readlinkSync } from "node:fs";
import { gatePath } from "../../../src/plan/cni.ts";
import { cniFile, type LightNode } from "../cluster/lightnode.ts";

export interface NodeState {
  link: string[];
  sysctls: string[];
  routes: string[];
  rules: string[];
  /** The tunnel's own line, then its peers, without counters and times. */
  wireguard: string[];
  nftables: string[];
  /** Its file, and whether pods may start. */
  cni: { target: string | undefined; content: string | undefined; open: boolean };
  annotations: Record<string, string>;
}

const separator = "--8<--";

const script = [
  "cd /proc/sys/net; grep . ipv4/ip_forward ipv4/conf/{default,wigglenet}/forwarding ipv6/conf/all/forwarding ipv4/conf/wigglenet/rp_filter ipv6/conf/default/accept_dad; cat ipv4/conf/{eth0,veth*}/forwarding | sort -u",
  "ip -o link show dev wigglenet; ip -o address show dev wigglenet scope global",
  'for f in -4 -6; do ip $f route show table all proto 246 | sed "s/^/$f /"; done',
  'for f in -4 -6; do ip $f rule show | sed "s/^/$f /"; done',
  "wg show wigglenet dump",
  "nft -s list table inet wigglenet",
].join(`; echo '${separator}'; `);

/** What is gone is left out: a state while things are broken is a state too. */
export async function stateOf(node: LightNode): Promise<NodeState> {
  const [{ stdout }, object] = await Promise.all([
    node.$`/bin/bash -c ${script}`.nothrow(),
    node.object().catch(() => undefined),
  ]);
  const parts = stdout.split(`${separator}\n`);
  const [sysctls = [], link = [], routes = [], rules = [], wireguard = []] = parts.map((part) =>
    part.split("\n").filter(Boolean),
  );
  const ours = Object.entries(object?.metadata.annotations ?? {}).filter(([key]) =>
    key.startsWith("wigglenet/"),
  );
  return {
    // Its number and its queue change when it is made anew.
    link: link.map((line) => line.replace(/^\d+: /, "").replace(/ qdisc \S+/, "")).sort(),
    sysctls,
    routes: routes.map((line) => line.trimEnd()).sort(),
    rules: rules.map((line) => line.trimEnd()),
    wireguard: wireguard.map((line) => withoutCounters(line.split("\t"))).sort(),
    nftables: [
      ...(/^table .*/.exec(parts[5] ?? "") ?? []),
      ...objectsOf(parts[5] ?? "").flatMap((object) => object.split("\n")),
    ],
    cni: {
      target: targetOf(node, cniFile),
      content: node.read(cniFile),
      open: node.read(gatePath) === "",
    },
    annotations: Object.fromEntries(ours.sort()),
  };
}

/** What a table has, without the order in which it was made. */
export function objectsOf(listing: string): string[] {
  const objects = listing.replaceAll(/^table .*\n|^}\n?/gm, "").split("\n\n");
  return objects
    .map((object) => object.trim())
    .filter(Boolean)
    .sort();
}

/** Of a peer's line: latest handshake, bytes received and sent. */
function withoutCounters(fields: string[]): string {
  if (fields.length < 8) return fields.join(" ");
  const [key, preshared, endpoint, allowedIps = "", , , , keepalive] = fields;
  return [key, preshared, endpoint, allowedIps.split(",").sort().join(","), keepalive].join(" ");
}

/** A file of the node as it lies there, a symbolic link itself: what tells whether it was written again. */
export function fileIdentity(node: LightNode, path: string): string {
  const { ino, mtimeMs, ctimeMs, mode } = lstatSync(`/proc/${node.namespace.pid}/root${path}`);
  return `${path}: inode ${ino}, mode ${mode.toString(8)}, written ${mtimeMs}, changed ${ctimeMs}`;
}

function targetOf(node: LightNode, path: string): string | undefined {
  try {
    return readlinkSync(`/proc/${node.namespace.pid}/root${path}`);
  } catch {
    return undefined;
  }
}
