/** What other programs of this host do that may break the overlay. */
import type { Findings } from "../findings.ts";
import type { ObservedFirewall } from "./firewall.ts";

/** @param port UDP port of the tunnel */
export function reportForeign(
  findings: Findings,
  { closed, hidden }: Pick<ObservedFirewall, "closed" | "hidden">,
  port: number,
): void {
  findings.report(
    "foreign firewall",
    closed.length > 0
      ? {
          severity: "warning",
          message:
            "a firewall of this host drops what it does not accept: have it accept the UDP port of the tunnel, and pods' traffic from and to the tunnel's link",
          chains: closed,
          port,
        }
      : undefined,
  );
  findings.report(
    "iptables-legacy",
    hidden !== undefined
      ? {
          severity: "warning",
          message:
            "the tables of iptables-legacy are in use and cannot be read: where their FORWARD policy is DROP, give the agent NET_RAW and /run/xtables.lock, or accept pods' traffic there",
          reason: hidden,
        }
      : undefined,
  );
}
