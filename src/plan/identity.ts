/** What this node is to others: its addresses, and the MTU of the links that they are reached by. */
import { isUsable } from "./address.ts";
import { type NodeObject, statusAddresses } from "./node.ts";
import { type NodeLink, nodeLinks, type OwnSettings } from "./own.ts";

export interface NodeAddresses {
  /** On its own links: InternalIPs, then those of NODE_IP_INTERFACES. */
  addresses: string[];
  /** All, best first: the former, then what only others can see, such as ExternalIPs behind 1:1 NAT. */
  endpoints: string[];
  /** All that its links have, temporary ones too. */
  onLinks: string[];
}

export function nodeAddresses(
  node: NodeObject,
  links: readonly NodeLink[],
  settings: Pick<OwnSettings, "linkName" | "nodeIpInterfaces">,
): NodeAddresses {
  const own = nodeLinks(links, settings.linkName);
  const entries = own.flatMap((link) => link.addresses);
  const onLink = new Set(entries.filter((entry) => entry.lasting).map((entry) => entry.address));
  const { internal, external } = statusAddresses(node);
  const byInterface = settings.nodeIpInterfaces.flatMap((name) =>
    (own.find((link) => link.name === name)?.addresses ?? [])
      .filter((entry) => entry.global && entry.lasting && isUsable(entry.address))
      .map((entry) => entry.address),
  );
  const addresses = [
    ...internal.filter((address) => onLink.has(address)),
    ...byInterface.filter((address) => !external.includes(address)),
  ];
  return {
    addresses: [...new Set(addresses)],
    endpoints: [...new Set([...addresses, ...internal, ...external])],
    onLinks: entries.map((entry) => entry.address),
  };
}

/** Smallest MTU of the links that have the node's addresses; of all that have a global one if none has. In bytes. */
export function underlayMtu(
  links: readonly NodeLink[],
  { endpoints }: Pick<NodeAddresses, "endpoints">,
  tunnel: string,
): number {
  const own = nodeLinks(links, tunnel);
  const carrying = own.filter((link) => link.addresses.some((entry) => endpoints.includes(entry.address)));
  const candidates =
    carrying.length > 0 ? carrying : own.filter((link) => link.addresses.some((entry) => entry.global));
  return Math.min(
    ...candidates.map((link) => link.mtu),
    candidates.length > 0 ? Number.POSITIVE_INFINITY : 1500,
  );
}
