/** The tunnel's own link: made, set up, and removed. What WireGuard has in it is in wireguard.ts. */
import { command } from "./command.ts";
import type { Executor, Perform } from "./executor.ts";
import { diffLink, type Links, unfit, type WireGuardMode } from "./link.ts";
import { diffPeers } from "./peers.ts";
import type { Resource } from "./resource.ts";
import { observeTunnel } from "./wireguard.ts";

/** What a desired state says of it; undefined: there should be none. */
interface DesiredLink {
  link: { mtu: number; addresses: readonly string[] } | undefined;
}

interface Means {
  name: string;
  links: Links;
  executor: Executor;
  perform: Perform;
}

/** Whether the link is there. */
export class TunnelLink implements Resource<DesiredLink> {
  readonly #means: Means & { mode: WireGuardMode; changed: () => void };

  /** @param means `changed` is called when the link was made or removed */
  constructor(means: Means & { mode: WireGuardMode; changed: () => void }) {
    this.#means = means;
  }

  /** Nothing is kept here. */
  invalidate(): void {}

  async add({ link }: DesiredLink): Promise<void> {
    const { name, mode, links, executor, changed } = this.#means;
    if (link === undefined) return;
    const present = await links.find(name);
    const reason = present && unfit(present, mode);
    if (reason) throw new Error(reason);
    if (present) return;
    await executor.createLink(name, mode);
    if (executor.dry) await links.assume({ name, kind: "wireguard", mtu: 0, up: false, addresses: [] });
    else changed();
  }

  /** Of an earlier configuration with a tunnel. */
  async remove({ link }: DesiredLink): Promise<void> {
    const { name, links, executor, perform, changed } = this.#means;
    const present = link === undefined ? await links.find(name) : undefined;
    if (present?.kind === "wireguard") await perform("link removed", [command`ip link delete dev ${name}`]);
    // One that a wireguard-go serves, which may be a service of the node, stays with that: empty.
    else if (present?.kind === "tun" && present.addresses.some((entry) => entry.global))
      await perform("link emptied", [
        ...diffPeers(name, [], await observeTunnel(executor, name), new Map(), 0).remove,
        ...diffLink(name, { mtu: present.mtu, addresses: [] }, present),
      ]);
    else return;
    changed();
  }
}

/** The link's addresses and its MTU, and that it is up. */
export class LinkSettings implements Resource<DesiredLink> {
  readonly #means: Means;

  constructor(means: Means) {
    this.#means = means;
  }

  /** Nothing is kept here. */
  invalidate(): void {}

  async add({ link }: DesiredLink): Promise<void> {
    const { name, links, executor, perform } = this.#means;
    const present = link && (await links.find(name));
    if (!link || !present) return;
    const steps = diffLink(name, link, present);
    await perform("link set up", steps, link);
    if (steps.length > 0 && !executor.dry) links.invalidate("links");
  }
}
