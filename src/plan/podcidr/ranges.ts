/** How the pods of this node get their addresses: which of a pod CIDR's are theirs. */
import { contains, familyOf, indexIn, nthAddress, sizeOf } from "../../net/address.ts";

/** One pod CIDR as host-local takes it. */
export interface PodRange {
  subnet: string;
  /** The pods' gateway, and the address of our link: the source of node→pod traffic. */
  gateway: string;
  /** First and last address of each stretch to give out; together the whole prefix but for what is excluded. */
  stretches: [string, string][];
}

/**
 * @param excluded addresses of the node itself: inside the prefix they are left out (a whole on-link /64 as pod CIDR)
 * @throws Error if nothing is left for a gateway and a pod
 */
export function podRange(subnet: string, excluded: readonly string[]): PodRange {
  // As host-local: the first address is the network's (the subnet-router anycast address, RFC 4291 2.6.1), and
  // IPv4's last is broadcast.
  const last = sizeOf(subnet) - (familyOf(subnet) === "ipv4" ? 2n : 1n);
  const taken = [
    ...new Set(
      excluded.filter((address) => contains(subnet, address)).map((address) => indexIn(subnet, address)),
    ),
  ]
    .filter((index) => index >= 1n && index <= last)
    .sort((a, b) => (a < b ? -1 : 1));
  const stretches: [bigint, bigint][] = [];
  let next = 1n;
  for (const index of [...taken, last + 1n]) {
    if (index > next) stretches.push([next, index - 1n]);
    next = index + 1n;
  }
  const [first] = stretches;
  const left = last - BigInt(taken.length);
  if (first === undefined || left < 2n || sizeOf(subnet) < 4n) {
    const why =
      taken.length > 0
        ? ` besides the node's own ${excluded.filter((address) => contains(subnet, address)).join(", ")}`
        : "";
    throw new Error(
      `pod CIDR ${subnet} has no room for a gateway and a pod${why}: give this node a larger one`,
    );
  }
  return {
    subnet,
    gateway: nthAddress(subnet, first[0]),
    stretches: stretches.map(([from, to]) => [nthAddress(subnet, from), nthAddress(subnet, to)]),
  };
}
