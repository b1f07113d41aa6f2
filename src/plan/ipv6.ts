/** A plan for a node that has lost a family, as IPv6 that somebody has switched off: the other one goes on. */
import { type Family, familyOf, isUsable } from "../net/address.ts";
import { cniList } from "./cni.ts";
import type { Desired } from "./desired.ts";
import { routeTable } from "./overlay/routes.ts";
import { type NodeLink, nodeLinks } from "./own.ts";
import type { PodRange } from "./podcidr/ranges.ts";

/** Where a node has IPv6. */
export interface Ipv6 {
  /** In its kernel at all: not if it was booted with ipv6.disable=1. */
  present: boolean;
  /** On links that are to come, so on those of new pods. */
  newLinks: boolean;
  /** On the tunnel's link, if IPv6 is in the tunnel. */
  tunnel: boolean;
}

/**
 * The families by which packets can leave: those in which a link has an address that others can reach. All of them while
 * none has, as it may be back in a moment.
 */
export function leavingFamilies(
  links: readonly NodeLink[],
  tunnel: string,
  all: readonly Family[],
): readonly Family[] {
  const addresses = nodeLinks(links, tunnel).flatMap((link) => link.addresses.map(({ address }) => address));
  const present = new Set(addresses.filter(isUsable).map(familyOf));
  const leaving = all.filter((family) => present.has(family));
  return leaving.length > 0 ? leaving : all;
}

/** While pods cannot have it, the prefixes that they had. */
export function prefixesBefore(
  { newLinks }: Ipv6,
  podRanges: readonly PodRange[] = [],
): ReadonlyMap<Family, readonly string[]> {
  const prefixes = podRanges.map(({ subnet }) => subnet).filter((prefix) => familyOf(prefix) === "ipv6");
  return new Map(newLinks ? [] : [["ipv6", prefixes]]);
}

/**
 * What the kernel would refuse is left out: addresses and routes on a link without IPv6, and a pod's IPv6 address, without
 * which a new pod starts. Guards stay, so that nothing goes in the clear, and so does what other nodes are told, so that
 * nothing of theirs changes.
 */
export function withoutIpv6(desired: Desired, ipv6: Ipv6, podRanges: readonly PodRange[]): Desired {
  if (ipv6.present && ipv6.newLinks && ipv6.tunnel) return desired;
  const isKept = (family: Family, needed: boolean) => family === "ipv4" || needed;
  const { link, routes, rules, cni } = desired;
  const ranges = podRanges.filter(({ subnet }) => isKept(familyOf(subnet), ipv6.newLinks));
  return {
    ...desired,
    link: link && {
      ...link,
      addresses: link.addresses.filter((address) => isKept(familyOf(address), ipv6.tunnel)),
    },
    routes: routeTable(
      [...routes.values()].filter(({ prefix, type }) =>
        isKept(familyOf(prefix), type === "tunnel" ? ipv6.tunnel : ipv6.present),
      ),
    ),
    rules: rules.filter(({ family }) => isKept(family, ipv6.present)),
    cni: cni && ranges.length > 0 ? cniList(ranges, mtuOf(cni)) : undefined,
  };
}

function mtuOf({ plugins }: NonNullable<Desired["cni"]>): number {
  return Number(plugins[0]?.mtu);
}
