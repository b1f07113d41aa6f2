/** What one node adds to the desired state: its peer, its routes, its part of the firewall's sets. */
import { contains, type Family, familyOf, hostPrefix } from "../net/address.ts";
import type { PrefixIndex } from "../net/lookup.ts";
import type { SetName } from "./firewall/model.ts";
import type { SettledNode } from "./overlay/claims.ts";
import { wayTo } from "./overlay/keys.ts";
import { nodeTable, podTable, type Route } from "./overlay/routes.ts";

export interface Peer {
  /** Name of its node, for the log. */
  node: string;
  publicKey: string;
  /** `address:port`, IPv6 in brackets; undefined if no family is common: the peer may still come to us. */
  endpoint: string | undefined;
  allowedIps: readonly string[];
}

export interface Contribution {
  peer: Peer | undefined;
  routes: readonly Route[];
  sets: Partial<Record<SetName, readonly string[]>>;
  /** Contested prefixes with one of its endpoints in them, once for each. */
  blocked: readonly string[];
}

/** What a node's contribution follows from beside the node. */
export interface Surroundings {
  port: number;
  /** Families in which this node can reach a peer. */
  reaches: readonly Family[];
  /** Families whose pods are in the tunnel. */
  tunnelled: readonly Family[];
  /** Pod CIDRs that several nodes claim and none holds, of families in the tunnel. */
  contested: PrefixIndex<{ prefix: string }>;
  /** Addresses that are no pods', wherever they lie: gateways of this node, the API server's. */
  excepted: ReadonlySet<string>;
}

const none: readonly string[] = [];

export function contributionOf(node: SettledNode, surroundings: Surroundings): Contribution {
  const { tunnelled: families, contested, excepted } = surroundings;
  const inTunnel = (value: string) => families.includes(familyOf(value));
  const { record, podCidrs, addresses, allowedIps } = node;
  const peer = families.length > 0 ? peerOf(node, surroundings, inTunnel) : undefined;
  // A tunnel that we cannot open stands for the node's pods, which may open it, and not for what works without it.
  const reached = peer?.endpoint === undefined ? none : those(addresses, inTunnel);
  const blocked = record.endpoints.flatMap((address) =>
    Array.from(contested.around(address), ({ prefix }) => ({ address, prefix })),
  );
  const unpassable = new Set(blocked.map(({ address }) => address));
  const inside = [...record.endpoints, ...addresses].filter((address) =>
    podCidrs.some((prefix) => contains(prefix, address)),
  );
  const tunnelled = podCidrs.filter(inTunnel);
  const routes: Route[] = tunnelled.map((prefix) => ({ type: "unreachable", prefix, table: podTable }));
  // The tunnel's own packets, and node↔node traffic, must not follow the pod CIDR that contains their address.
  for (const address of [...inside.filter(inTunnel), ...unpassable])
    routes.push({ type: "throw", prefix: hostPrefix(address), table: podTable });
  if (node.publicKey !== undefined)
    for (const prefix of tunnelled) routes.push({ type: "tunnel", prefix, table: podTable });
  for (const address of reached) {
    const prefix = hostPrefix(address);
    // The string that there is already: a large cluster has thousands of them.
    routes.push({
      type: "tunnel",
      prefix: allowedIps.find((each) => each === prefix) ?? prefix,
      table: nodeTable,
    });
  }
  const native = record.endpoints.filter((address) => !inTunnel(address));
  // Pods' packets to what has no route in the tunnel are dropped.
  const dropped = [...unpassable].filter((address) => !excepted.has(address));
  return {
    peer,
    routes,
    sets: {
      remote: podCidrs,
      ...(inside.length > 0 ? { hosts: inside } : {}),
      nodes: dropped.length > 0 ? [...reached, ...dropped] : reached,
      ...(native.length > 0 ? { native } : {}),
      ...(record.clearToNodes ? { unencrypted: podCidrs } : {}),
    },
    blocked: blocked.length > 0 ? blocked.map(({ prefix }) => prefix) : none,
  };
}

/** Those for which it is true; if it is for all, the very same list. */
function those(values: readonly string[], isOne: (value: string) => boolean): readonly string[] {
  return values.every(isOne) ? values : values.filter(isOne);
}

function peerOf(
  { publicKey, record, allowedIps }: SettledNode,
  { port, reaches }: Surroundings,
  inTunnel: (value: string) => boolean,
): Peer | undefined {
  if (publicKey === undefined) return undefined;
  const address = wayTo(record, reaches);
  const endpoint = address && (familyOf(address) === "ipv6" ? `[${address}]:${port}` : `${address}:${port}`);
  return { node: record.name, publicKey, endpoint, allowedIps: those(allowedIps, inTunnel) };
}
