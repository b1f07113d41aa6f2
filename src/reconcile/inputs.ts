/** What is wrong with what this node is given: its Node, its links and its settings, as findings. */

import type { Config } from "../config/config.ts";
import { type Family, familyOf } from "../net/address.ts";
import type { Ipv6 } from "../plan/ipv6.ts";
import { mostClaims } from "../plan/overlay/node.ts";
import type { PodRange } from "../plan/podcidr/ranges.ts";
import type { Finding } from "../report/findings.ts";

export function leftOutAddresses(leftOut: ReadonlyMap<string, string>): Finding | undefined {
  if (leftOut.size === 0) return undefined;
  return {
    severity: "warning",
    message:
      "addresses that the Node lists do not go through the tunnel: have kubelet (--node-ip) or the cloud provider list lasting unicast addresses of this node's links",
    leftOut: Object.fromEntries(leftOut),
  };
}

export function surplusPodCidrs(podCidrs: readonly string[]): Finding | undefined {
  if (podCidrs.length === 0) return undefined;
  return {
    severity: "warning",
    message: `this node has more than ${mostClaims} pod CIDRs, and others take no more: these are left out; give it fewer and larger ones`,
    podCidrs,
  };
}

/** Most Nodes get them within a second; until then the agent is not in sync. */
export function noPodCidrsYet(node: string): Finding {
  return {
    severity: "warning",
    message:
      "the Node has no spec.podCIDRs yet: waiting for the controller manager (--allocate-node-cidrs) to set them; or set POD_CIDR_SOURCE_IPV4 and POD_CIDR_SOURCE_IPV6",
    node,
  };
}

/** A mistyped name, or a link that is still to come. */
export function missingLinks(
  variable: string,
  names: readonly string[],
  links: readonly { name: string }[],
): Finding | undefined {
  const missing = names.filter((name) => !links.some((link) => link.name === name));
  if (missing.length === 0) return undefined;
  return {
    severity: "warning",
    message: `${variable} names links that are not there: they count once they are`,
    missing,
    context: { links: links.map((link) => link.name) },
  };
}

/** IPv6 that pods of this node should have, and cannot. */
export function lackingIpv6(
  ipv6: Ipv6,
  podRanges: readonly PodRange[] = [],
  { linkName: link, firewallOnly }: Pick<Config, "linkName" | "firewallOnly">,
): Finding | undefined {
  const has = (family: Family) => podRanges.some(({ subnet }) => familyOf(subnet) === family);
  if (firewallOnly || !has("ipv6") || (ipv6.present && ipv6.newLinks && ipv6.tunnel)) return undefined;
  const severity = has("ipv4") ? "warning" : "unready";
  const pods = has("ipv4") ? "pods have IPv4 alone" : "pods, which have no IPv4, cannot start";
  const meant = "or, if that is meant, set POD_CIDR_SOURCE_IPV6=none";
  if (!ipv6.present)
    return {
      severity,
      message: `this node's kernel was booted without IPv6, and ${pods}: boot it without ipv6.disable=1, ${meant}`,
    };
  const off = [...(ipv6.newLinks ? [] : ["default"]), ...(ipv6.tunnel ? [] : [link])];
  return {
    severity,
    message: ipv6.newLinks
      ? `IPv6 is switched off by sysctl on the tunnel's link, where the agent cannot write it, and pods reach other nodes by IPv4 alone: set net.ipv6.conf.${link}.disable_ipv6=0, or give the agent a PROC_SYS_NET_PATH that is the host's and writable`
      : `IPv6 is switched off by sysctl, and ${pods}: set net.ipv6.conf.all.disable_ipv6=0 in /etc/sysctl.d, ${meant}`,
    off: off.map((place) => `net.ipv6.conf.${place}.disable_ipv6`),
  };
}
