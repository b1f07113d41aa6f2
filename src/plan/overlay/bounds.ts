/** What no other node may have, whoever claims it: the least that a claim has to be, by itself. */
import { contains, familyOf, hostPrefix, lengthOf, unusableAs } from "../../net/address.ts";

export interface Bounds {
  /** Addresses that this node's links have. */
  ownAddresses: readonly string[];
  /** Of this node's routes. */
  gateways: readonly string[];
  /** Of this node's default routes. */
  defaultGateways: readonly string[];
  /** Of the API server: the one that this node talks to, and the endpoints of its Service. */
  apiServer: readonly string[];
  /** Prefixes on links of this node. */
  onLink: readonly string[];
  /** ALLOWED_POD_CIDRS; empty: all. */
  allowed: readonly string[];
}

/** The shortest prefix that a pod CIDR may have. */
const shortest = { ipv4: 8, ipv6: 20 } as const;

/** Says why a claim is out of bounds; undefined if it is not. */
export type Check = (kind: "pod CIDR" | "address", value: string) => string | undefined;

/** Why a prefix can be no pod CIDR, of this node or another; undefined if it can. */
export function podCidrProblem(prefix: string, allowed: readonly string[]): string | undefined {
  const special = unusableAs(prefix);
  if (special) return `it is ${special}`;
  const least = shortest[familyOf(prefix)];
  if (lengthOf(prefix) < least) return `it is shorter than /${least}`;
  if (allowed.length > 0 && !allowed.some((each) => contains(each, prefix)))
    return `it is not inside of ALLOWED_POD_CIDRS (${allowed.join(", ")})`;
  return undefined;
}

export function boundsCheck(bounds: Bounds): Check {
  const own = new Set(bounds.ownAddresses);
  const defaultGateways = new Set(bounds.defaultGateways);
  const reached = new Map([
    ...bounds.gateways.map((address) => [hostPrefix(address), "a gateway of this node"] as const),
    ...bounds.apiServer.map((address) => [hostPrefix(address), "an address of the API server"] as const),
    ...bounds.ownAddresses.map((address) => [hostPrefix(address), "this node's own address"] as const),
  ]);
  return (kind, value) => {
    if (kind === "pod CIDR") {
      const taken = reached.get(value);
      return taken ? `it is ${taken}` : podCidrProblem(value, bounds.allowed);
    }
    // The API server's may be a node's: claimed by one, it is reached by the tunnel like any other.
    if (own.has(value)) return "it is this node's own";
    if (defaultGateways.has(value)) return "it is this node's default gateway";
    const special = unusableAs(value);
    return special && `it is ${special}`;
  };
}
