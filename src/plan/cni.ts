/** The CNI file's content: our own plugins, and those that others have chained to them. */
import { familyOf } from "../net/address.ts";
import type { PodRange } from "./podcidr/ranges.ts";

/**
 * An empty file that the agent makes once the node is in sync. host-local reads it as `resolvConf` and gives out no
 * address without it, so that after a reboot no pod starts on what an earlier boot has set up (openshift-ansible#11409).
 * It lies on a tmpfs. Users read its name in the event of a pod that waits.
 */
export const gatePath = "/run/wigglenet/agent-in-sync";

/** One entry of `plugins`. */
export type CniPlugin = { type: string } & Record<string, unknown>;

/** A network configuration list (CNI 1.0.0). */
export interface CniList {
  cniVersion: string;
  name: string;
  plugins: CniPlugin[];
}

const defaultRoute = { ipv4: "0.0.0.0/0", ipv6: "::/0" };

/** Our own list: `ptp` with `host-local`, and `portmap` for hostPort. */
export function cniList(ranges: readonly PodRange[], mtu: number): CniList {
  const families = new Set(ranges.map((range) => familyOf(range.subnet)));
  return {
    cniVersion: "1.0.0",
    name: "wigglenet",
    plugins: [
      {
        type: "ptp",
        ipMasq: false,
        mtu,
        ipam: {
          type: "host-local",
          // On a tmpfs: over a reboot host-local would keep the addresses of pods that are gone (plugins#697).
          dataDir: "/run/cni-ipam-state",
          resolvConf: gatePath,
          routes: [...families].map((family) => ({ dst: defaultRoute[family] })),
          // A pod gets one address from each set. Several pod CIDRs of a family are one set: the next is used when
          // the first is full.
          ranges: [...families].map((family) =>
            ranges
              .filter((range) => familyOf(range.subnet) === family)
              .flatMap(({ subnet, gateway, stretches }) =>
                stretches.map(([rangeStart, rangeEnd]) => ({ subnet, rangeStart, rangeEnd, gateway })),
              ),
          ),
        },
      },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
  };
}

/** What a CNI file says, or undefined if it is no list of plugins. */
export function parseCniList(content: string | undefined): CniList | undefined {
  let parsed: unknown;
  try {
    parsed = JSON.parse(content ?? "");
  } catch {
    return undefined;
  }
  const { plugins } = (parsed ?? {}) as { plugins?: unknown };
  const listed = Array.isArray(plugins) && plugins.every((plugin) => typeof plugin?.type === "string");
  return listed ? (parsed as CniList) : undefined;
}

/** Whether pods wait for the agent with this list. */
export function isGated(list: CniList | undefined): boolean {
  return (list?.plugins ?? []).some(
    ({ ipam }) => (ipam as { resolvConf?: unknown } | undefined)?.resolvConf === gatePath,
  );
}

/**
 * Our own list with what others have added to the present one. Their plugins keep their places among ours: Istio,
 * Linkerd and tuning are chained in that way. Keys beside ours stay. A list of another network, without our first
 * plugin, is replaced.
 */
export function mergeCniList(own: CniList, present: CniList | undefined): CniList {
  const types = own.plugins.map(({ type }) => type);
  const presentTypes = (present?.plugins ?? []).map(({ type }) => type);
  if (present === undefined || (present.name !== own.name && !presentTypes.includes(types[0] ?? "")))
    return own;
  const places: (CniPlugin | "own")[] = present.plugins.flatMap((plugin, index) => {
    // What has addresses to give makes an interface of its own, which pods have already.
    if (!types.includes(plugin.type)) return plugin.ipam === undefined ? plugin : [];
    return presentTypes.indexOf(plugin.type) === index ? "own" : [];
  });
  types.forEach((type, index) => {
    // What is missing follows its predecessor; the first makes the interface that all others work on.
    const before = ownPlaces(places)[index - 1] ?? -1;
    if (!presentTypes.includes(type)) places.splice(before + 1, 0, "own");
  });
  const order = [...own.plugins];
  const plugins = places.flatMap((plugin) => (plugin === "own" ? (order.shift() ?? []) : plugin));
  return { ...present, ...own, plugins };
}

function ownPlaces(places: readonly (CniPlugin | "own")[]): number[] {
  return places.flatMap((plugin, index) => (plugin === "own" ? index : []));
}
