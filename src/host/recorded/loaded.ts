import type { FirewallInput } from "../../plan/fixtures/firewall.ts";

/** What was loaded when the listings here were made: the whole of a dual-stack node with a tunnel. */
export function loaded(tweak: Partial<FirewallInput> = {}): FirewallInput {
  return {
    link: "wigglenet",
    ownPodCidrs: ["10.1.0.0/24", "fd00:1::/64"],
    remotePodCidrs: ["10.1.1.0/24", "10.1.2.7/32", "fd00:1:0:1::/64"],
    hosts: [],
    nodes: ["192.0.2.1", "2001:db8::1"],
    native: [],
    unencrypted: ["10.1.1.0/24"],
    tunnelled: ["ipv4", "ipv6"],
    masquerade: { ipv4: true, ipv6: true },
    masqueradeRandomFully: true,
    nonMasqueradeCidrs: ["172.20.0.0/16", "2001:db8:9::9/128"],
    filter: { ipv4: true, ipv6: true },
    flowtable: undefined,
    ...tweak,
  };
}
