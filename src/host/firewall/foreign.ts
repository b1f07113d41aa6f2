/** What other programs of this host do that may break the overlay. */
import type { Findings } from "../../report/findings.ts";
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

/**
 * Names what takes pods' packets out of the tunnel, by what our own rule has counted: to look for such a rule would be to
 * read all of others' rules, however many there are.
 */
export class TranslatedPackets {
  readonly #findings: Findings;
  #before: number | undefined;

  constructor(findings: Findings) {
    this.#findings = findings;
  }

  /** @param passed packets so far, fewer after the rule was made anew; undefined if nobody has looked since */
  report(passed: number | undefined): void {
    if (passed === undefined) return;
    const more = passed - (this.#before ?? passed);
    this.#before = passed;
    this.#findings.report(
      "pods' packets outside of the tunnel",
      more > 0
        ? {
            severity: "warning",
            message:
              "pods' packets to other nodes leave with this node's own address as their source, outside of the tunnel and not encrypted: exempt the nodes' addresses from the SNAT rule that translates them; connections that are older than the other node's tunnel do so until they end",
            context: { packets: more },
          }
        : undefined,
    );
  }
}
