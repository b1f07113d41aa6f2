/** What is wrong with what this node is given: its Node, its links and its settings, as findings. */

import { mostClaims } from "../plan/overlay/node.ts";
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
