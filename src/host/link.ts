/** Links and their addresses: what the node has, and the tunnel's own link with its addresses and MTU. */
import { existsSync } from "node:fs";
import type { Logger } from "pino";
import { compareAddresses, parseAddress } from "../net/address.ts";
import type { NodeLink } from "../plan/own.ts";
import { batch, type Command, CommandError, command, execute } from "./command.ts";
import type { Reader } from "./executor.ts";
import { parseObjects } from "./iproute.ts";
import { Kept, type Reason, type Resource } from "./resource.ts";

export interface Link extends NodeLink {
  up: boolean;
}

interface IpLink {
  ifname?: string;
  flags?: string[];
  mtu?: number;
  linkinfo?: { info_kind?: string };
  addr_info?: {
    local?: string;
    prefixlen?: number;
    scope?: string;
    temporary?: boolean;
    deprecated?: boolean;
    dadfailed?: boolean;
  }[];
}

/** All links of the node. */
export async function observeLinks({ $ }: Reader): Promise<Link[]> {
  return parseLinks(await $`ip -j -d address show`);
}

/** Parses `ip -j -d address show`. */
export function parseLinks(output: string): Link[] {
  return parseObjects<IpLink>(output).flatMap(({ ifname, flags, mtu, linkinfo, addr_info }) =>
    ifname === undefined
      ? []
      : {
          name: ifname,
          kind: linkinfo?.info_kind,
          mtu: mtu ?? 0,
          up: flags?.includes("UP") ?? false,
          addresses: (addr_info ?? []).flatMap((entry) => {
            const address = parseAddress(entry.local ?? "");
            return address === undefined
              ? []
              : {
                  address,
                  length: entry.prefixlen ?? 0,
                  global: entry.scope === "global",
                  flaw: entry.temporary
                    ? "temporary"
                    : entry.deprecated
                      ? "deprecated"
                      : entry.dadfailed
                        ? "duplicate"
                        : undefined,
                };
          }),
        },
  );
}

/** Sets the link up, its MTU and its addresses; an address is added before another goes. */
export function diffLink(
  name: string,
  desired: { mtu: number; addresses: readonly string[] },
  link: Link,
): Command[] {
  const present = link.addresses
    .filter((entry) => entry.global)
    .map((entry) => `${entry.address}/${entry.length}`);
  const missing = desired.addresses.filter((address) => !present.includes(address));
  const surplus = present.filter((address) => !desired.addresses.includes(address)).sort(compareAddresses);
  const settings = [
    ...(link.mtu === desired.mtu ? [] : ["mtu", String(desired.mtu)]),
    ...(link.up ? [] : ["up"]),
  ];
  return [
    ...(settings.length > 0 ? [command`ip link set dev ${name} ${settings}`] : []),
    ...batch(
      ["ip", "-batch", "-"],
      [
        ...missing.map(
          (address) => `address add ${address} dev ${name}${address.includes(":") ? " nodad" : ""}`,
        ),
        ...surplus.map((address) => `address delete ${address} dev ${name}`),
      ],
    ),
  ];
}

export type WireGuardMode = "auto" | "kernel" | "userspace";

/**
 * Why an existing link cannot be the tunnel, or undefined if it can.
 */
export function unfit(link: Link, mode: WireGuardMode): string | undefined {
  if (link.kind !== "wireguard" && link.kind !== "tun")
    return `link ${link.name} exists and is of kind ${link.kind ?? "device"}, not wireguard: remove it, or set WIGGLENET_IFACE_NAME to another name`;
  if (link.kind === "tun" && mode === "kernel")
    return `link ${link.name} is served by a wireguard-go and WIREGUARD=kernel: stop that program, or set WIREGUARD=auto`;
  if (link.kind === "wireguard" && mode === "userspace")
    return `link ${link.name} is the kernel's and WIREGUARD=userspace: remove it with "ip link delete ${link.name}", or set WIREGUARD=auto`;
  return undefined;
}

/** Creates the tunnel's link: in the kernel, or else by a wireguard-go that outlives this process but not its container. */
export async function createLink(name: string, mode: WireGuardMode, log: Logger): Promise<void> {
  if (mode !== "userspace") {
    try {
      await execute(createKernelLink(name));
      log.info({ link: name }, "link created, WireGuard of the kernel");
      return;
    } catch (error) {
      const unsupported =
        error instanceof CommandError && /Unknown device type|not supported/i.test(error.stderr);
      if (!unsupported) throw error;
      if (mode === "kernel")
        throw new Error(
          `the kernel has no WireGuard and WIREGUARD=kernel (${error.message}): load its module with "modprobe wireguard", or set WIREGUARD=auto`,
        );
    }
  }
  if (!Bun.which("wireguard-go"))
    throw new Error(
      `link ${name}: the kernel has no WireGuard, and there is no wireguard-go: load the kernel's module with "modprobe wireguard", or install wireguard-go`,
    );
  // A file, as it goes on when we and a pipe to us are gone.
  const said = Bun.file(`/run/wigglenet/${name}.log`);
  await Bun.write(said, "");
  const child = Bun.spawn(["wireguard-go", "-f", name], {
    stdin: "ignore",
    stdout: said,
    stderr: said,
    detached: true,
    // Of the same name as ours, and its debug log would fill /run.
    env: { ...process.env, LOG_LEVEL: "error" },
  });
  child.unref();
  for (let waited = 0; waited < 5_000; waited += 20) {
    if (existsSync(`/var/run/wireguard/${name}.sock`)) {
      log.info(
        { link: name, pid: child.pid },
        "link created by a wireguard-go started here, as the kernel has no WireGuard: in a container the tunnel ends with it; a wireguard-go run as a service of the node would stay",
      );
      return;
    }
    if (child.exitCode !== null) break;
    await Bun.sleep(20);
  }
  child.kill();
  const last = (await said.text()).trim().split("\n").at(-1);
  throw new Error(
    `wireguard-go cannot serve ${name}: ${last || "no socket after 5 s"}; it needs /dev/net/tun and NET_ADMIN`,
  );
}

export function createKernelLink(name: string): Command {
  return command`ip link add dev ${name} type wireguard`;
}

/** All links of the node, with their addresses. */
export class Links implements Resource<unknown> {
  readonly #links: Kept<Link[]>;

  constructor(reader: Reader) {
    this.#links = new Kept(() => observeLinks(reader));
  }

  invalidate(reason: Reason): void {
    if (reason !== "firewall") this.#links.forget();
  }

  observe(): Promise<Link[]> {
    return this.#links.get();
  }

  async find(name: string): Promise<Link | undefined> {
    return (await this.observe()).find((link) => link.name === name);
  }

  /** In a dry run: one that would be there. */
  async assume(link: Link): Promise<void> {
    this.#links.set([...(await this.observe()), link]);
  }
}
