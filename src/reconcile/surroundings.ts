/** What pods depend on and others may break: looked at after each pass, repaired where it is ours to, else named. */

import type { Config } from "../config/config.ts";
import { reportEarlier } from "../host/cnifolder.ts";
import type { Step } from "../host/command.ts";
import { HostPorts } from "../host/firewall/hostports.ts";
import { applyForwarding } from "../host/sysctls.ts";
import { familyOf } from "../net/address.ts";
import type { CniList } from "../plan/cni.ts";
import type { PodRange } from "../plan/podcidr/ranges.ts";
import type { Findings } from "../report/findings.ts";
import type { Host } from "./apply.ts";

export class Surroundings {
  readonly #config: Config;
  readonly #findings: Findings;
  readonly #hostPorts = new HostPorts();
  /** How often the firewall had been observed when hostPorts were looked at. */
  #firewallLooks = 0;

  constructor(config: Config, findings: Findings) {
    this.#config = config;
    this.#findings = findings;
  }

  /** Beside another plugin, which connects the pods, all of it is the other's. */
  async look(
    host: Host,
    own: {
      podRanges: readonly PodRange[];
      cni: CniList | undefined;
      /** Links that have to forward. */
      forwarding: readonly string[];
    },
  ): Promise<void> {
    const { procSysNet, cniConfigPath, firewallOnly } = this.#config;
    const findings = this.#findings;
    if (firewallOnly) return;
    const podFamilies = new Set(own.podRanges.map((range) => familyOf(range.subnet)));
    const perform = (steps: Step[]) => host.perform("forwarding", steps);
    await host.attempt("forwarding", () =>
      applyForwarding(procSysNet, podFamilies, own.forwarding, findings, perform),
    );
    const { cni } = own;
    if (cni !== undefined)
      await host.attempt("CNI folder", () => reportEarlier(findings, cniConfigPath, cni));
    if (host.firewallLooks === this.#firewallLooks) return;
    this.#firewallLooks = host.firewallLooks;
    await host.attempt("hostPorts", () => this.#hostPorts.report(findings));
  }
}
