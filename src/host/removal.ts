/** What an agent leaves standing when it ends, taken away: the CNI file first, so that no pod starts any more. */
import { existsSync } from "node:fs";
import { families } from "../net/address.ts";
import { diffCni, observeCni } from "./cni.ts";
import { command, type Step } from "./command.ts";
import { nodeReader } from "./executor.ts";
import { observeFirewall, removeFirewall } from "./firewall/firewall.ts";
import { observeLinks } from "./link.ts";
import { observeRoutes } from "./routelist.ts";
import { diffRoutes } from "./routes.ts";

/**
 * The steps that remove what is there, in order.
 * @param files further ones to remove, at the end
 */
export async function removal(of: { link: string; cniConfigPath: string; files: string[] }): Promise<Step[]> {
  const present = families.filter((family) => existsSync(`/proc/sys/net/${family}`));
  const [cni, links, routes, firewall] = await Promise.all([
    observeCni(nodeReader, of.cniConfigPath),
    observeLinks(nodeReader),
    observeRoutes(nodeReader, of.link, present),
    observeFirewall(nodeReader, "nftables"),
  ]);
  const ours = links.some(({ name, kind }) => name === of.link && ["wireguard", "tun"].includes(kind ?? ""));
  return [
    ...diffCni(of.cniConfigPath, undefined, cni),
    ...diffRoutes(of.link, { routes: [], rules: [] }, routes).remove,
    ...removeFirewall(firewall),
    // A wireguard-go that serves it ends with it.
    ...(ours ? [command`ip link delete dev ${of.link}`] : []),
    ...(existsSync("/run/wigglenet") ? [command`rm -r /run/wigglenet`] : []),
    ...of.files.filter((path) => existsSync(path)).map((path) => command`rm ${path}`),
  ];
}
