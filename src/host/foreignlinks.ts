/** What another network plugin left, or another program made, where this node's pods have their addresses. */
import { compareAddresses, contains, overlaps, parsePrefix } from "../net/address.ts";
import type { Findings } from "../report/findings.ts";
import type { Link, Links } from "./link.ts";
import type { Resource } from "./resource.ts";
import type { HostRoute, Underlay } from "./underlay.ts";

interface Desired {
  podCidrs: readonly string[];
  /** Links of the node, of its pods and of the tunnel. */
  forwarding: readonly string[];
}

/** Of the routes to single addresses so many are named: there is one for each pod. */
const mostRoutes = 5;

/**
 * Networks on links of others, and addresses behind them, that overlap the pod CIDRs: `host-local` gives the same ones to
 * our pods. A single address on a link does no harm, as no pod gets it.
 * @param forwarding links of the node, of its pods and of the tunnel
 */
export function foreignPlaces(
  podCidrs: readonly string[],
  forwarding: readonly string[],
  links: readonly Link[],
  hostRoutes: readonly HostRoute[],
): string[] {
  const networks = links
    .filter(({ name }) => !forwarding.includes(name))
    .flatMap(({ name, addresses }) =>
      addresses.flatMap(({ address, length }) => {
        const prefix = parsePrefix(`${address}/${length}`);
        const single = length === (address.includes(":") ? 128 : 32);
        const meets = prefix !== undefined && podCidrs.some((each) => overlaps(each, prefix));
        return meets && !single ? [`${name} has ${address}/${length}`] : [];
      }),
    );
  const behind = hostRoutes
    .filter(
      ({ address, link }) => !forwarding.includes(link) && podCidrs.some((each) => contains(each, address)),
    )
    .toSorted((a, b) => compareAddresses(a.address, b.address))
    .map(({ address, link }) => `${address} is behind ${link}`);
  const more = behind.length - mostRoutes;
  return [...networks, ...behind.slice(0, mostRoutes), ...(more > 0 ? [`and ${more} more`] : [])];
}

/** Links of others: none of ours to change, they are named. */
export class ForeignLinks implements Resource<Desired> {
  readonly #links: Links;
  readonly #underlay: Underlay;
  readonly #findings: Findings;

  constructor(links: Links, underlay: Underlay, findings: Findings) {
    this.#links = links;
    this.#underlay = underlay;
    this.#findings = findings;
  }

  /** Nothing is kept here. */
  invalidate(): void {}

  async add({ podCidrs, forwarding }: Desired): Promise<void> {
    const { hostRoutes } = await this.#underlay.main();
    const found = foreignPlaces(podCidrs, forwarding, await this.#links.observe(), hostRoutes);
    this.#findings.report(
      "foreign links",
      found.length > 0
        ? {
            severity: "warning",
            message:
              "links of another network plugin, or of another program, have addresses of this node's pods, and new pods may get the same ones: delete the pods that it made, and these links, or reboot the node once the other plugin is gone from the cluster",
            found,
          }
        : undefined,
    );
  }
}
