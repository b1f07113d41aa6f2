/** What the firewall of this node should do. */
import { chainsOf, type Settings } from "./chains.ts";
import type { Firewall, SetKind, SetName } from "./model.ts";

export const setKinds: Readonly<Record<SetName, SetKind>> = {
  own: "prefixes",
  remote: "prefixes",
  hosts: "addresses",
  nodes: "addresses",
  native: "addresses",
  unencrypted: "prefixes",
  keep: "prefixes",
};

/** What a firewall but for the members of its sets follows from. */
export interface FirewallSettings extends Omit<Settings, "packetsOver"> {
  /** Links that are there, of those whose flows are to be offloaded, and after how many packets. */
  flowtable: { devices: readonly string[]; packets: number } | undefined;
}

/** All but the members of its sets. */
export function firewall(settings: FirewallSettings): Omit<Firewall, "sets"> {
  return {
    chains: chainsOf({ ...settings, packetsOver: settings.flowtable?.packets }),
    kinds: setKinds,
    maps: {},
    devices: settings.flowtable && [...settings.flowtable.devices].sort(),
  };
}
