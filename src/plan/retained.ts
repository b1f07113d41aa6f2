/** While not all is known of the cluster: a desired state in which nothing is missing that is there. */
import { compareAddresses } from "../net/address.ts";
import { outermost } from "../net/outermost.ts";
import { type ReadonlyTable, Table } from "../net/table.ts";
import type { Desired, Peer } from "./desired.ts";
import type { Firewall, SetName } from "./firewall/model.ts";
import { type Route, type Rule, routePlace, ruleKey } from "./overlay/routes.ts";

/** What is there of ours. */
export interface Present {
  peers: ReadonlyMap<string, { endpoint: string | undefined; allowedIps: readonly string[] }>;
  routes: readonly Route[];
  rules: readonly Rule[];
}

/** The name of the node of a peer of which nothing else is known. */
export const unknownNode = "";

/** Nothing that is present goes, and no prefix leaves the peer that has it. */
export function retain(desired: Desired, present: Present): Desired {
  const routes = new Table<Route>();
  // Of a route that is to lead another way there can be but one.
  for (const route of [...present.routes, ...desired.routes.values()]) routes.set(routePlace(route), route);
  return {
    ...desired,
    peers: retainPeers(desired.peers, present.peers),
    routes,
    rules: [...new Map([...desired.rules, ...present.rules].map((rule) => [ruleKey(rule), rule])).values()],
  };
}

function retainPeers(desired: ReadonlyTable<Peer>, present: Present["peers"]): Table<Peer> {
  const owners = new Map(
    [...present].flatMap(([key, { allowedIps }]) => allowedIps.map((prefix) => [prefix, key] as const)),
  );
  const peers = new Table<Peer>();
  for (const [publicKey, peer] of desired.entries()) {
    const free = peer.allowedIps.filter((prefix) => (owners.get(prefix) ?? publicKey) === publicKey);
    peers.set(publicKey, { ...peer, allowedIps: free });
  }
  for (const [publicKey, { endpoint, allowedIps }] of present) {
    const peer = peers.get(publicKey) ?? { node: unknownNode, publicKey, endpoint, allowedIps: [] };
    const all = new Set([...peer.allowedIps, ...allowedIps]);
    peers.set(publicKey, { ...peer, allowedIps: [...all].sort(compareAddresses) });
  }
  return peers;
}

/** Sets of what others have. */
const ofOthers: SetName[] = ["remote", "hosts", "nodes", "native", "unencrypted"];

/** A firewall whose sets have what they have now, too. */
export function retainElements(firewall: Firewall, present: (set: SetName) => readonly string[]): Firewall {
  const sets = { ...firewall.sets };
  // Others may have put ranges there, which are none of ours.
  for (const name of ofOthers)
    sets[name] = outermost([...sets[name], ...present(name).filter((each) => !each.includes("-"))]);
  return { ...firewall, sets };
}
