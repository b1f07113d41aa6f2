/** What this node is: its pod CIDRs and addresses, from its Node, its links and the configuration. */
import type { Logger } from "pino";
import type { Config } from "../config/config.ts";
import type { Reader } from "../host/executor.ts";
import type { Link } from "../host/link.ts";
import type { OwnNode as PlannedNode } from "../plan/desired.ts";
import { type KnownAddresses, nodeAddresses, publishedAddresses } from "../plan/identity.ts";
import { type Ipv6, prefixesBefore } from "../plan/ipv6.ts";
import { mostClaims, type NodeObject } from "../plan/overlay/node.ts";
import { matchingLinks, nodeLinks, ownPodRanges } from "../plan/own.ts";
import type { PodRange } from "../plan/podcidr/ranges.ts";
import type { Findings } from "../report/findings.ts";
import type { Failures } from "./failures.ts";
import { lackingIpv6, leftOutAddresses, missingLinks, noPodCidrsYet, surplusPodCidrs } from "./inputs.ts";

interface Means {
  config: Config;
  reader: Reader;
  /** Of the tunnel; null if there is none. */
  publicKey: string | null;
  failures: Failures;
  findings: Findings;
  /** An address of this node left its links: connections that come from it die silently. */
  addressLeft: () => void;
  log: Logger;
}

export class OwnNode {
  readonly #means: Means;
  #podRanges: PodRange[] | undefined;
  /** Undefined before the first pass. */
  #known: KnownAddresses | undefined;
  /** The node's own that its links have, and those that it has no more in its Node but its links still have. */
  addresses: ReadonlySet<string> = new Set();

  constructor(means: Means) {
    this.#means = means;
  }

  /**
   * @param gateways of the node's routes
   * @param reserved addresses of API servers
   * @returns undefined while its pod CIDRs are not known
   */
  async look(
    node: NodeObject,
    links: readonly Link[],
    ipv6: Ipv6,
    gateways: readonly string[],
    reserved: readonly string[],
  ): Promise<PlannedNode | undefined> {
    const { config, publicKey, findings } = this.#means;
    const podRanges = await this.#ownPodRanges(node, links, ipv6, [...gateways, ...reserved]);
    findings.report("IPv6", lackingIpv6(ipv6, podRanges, config));
    if (podRanges === undefined) return undefined;
    const addresses = nodeAddresses(node, links, config, this.#known ?? publishedAddresses(node));
    this.#known = addresses;
    findings.report("addresses", leftOutAddresses(addresses.leftOut));
    this.#followAddresses(links, addresses.addresses);
    return { name: config.nodeName, publicKey, podRanges, ...addresses };
  }

  /** What the configuration says of flows to offload, with the links that are there. */
  flowtable(links: readonly Link[]): Config["flowtable"] {
    const { config, findings } = this.#means;
    const { flowtable, linkName } = config;
    if (flowtable === undefined) return undefined;
    const named = flowtable.devices.filter((name) => !name.endsWith("*") && name !== linkName);
    findings.report("FLOWTABLE_DEVICES", missingLinks("FLOWTABLE_DEVICES", named, links));
    return { ...flowtable, devices: matchingLinks(links, flowtable.devices) };
  }

  #followAddresses(links: readonly Link[], addresses: readonly string[]): void {
    const { config, findings, addressLeft } = this.#means;
    const own = nodeLinks(links, config.linkName);
    const present = new Set(own.flatMap((link) => link.addresses.map((entry) => entry.address)));
    if ([...this.addresses].some((address) => !present.has(address))) addressLeft();
    this.addresses = new Set([...this.addresses, ...addresses].filter((address) => present.has(address)));
    findings.report("NODE_IP_INTERFACES", missingLinks("NODE_IP_INTERFACES", config.nodeIpInterfaces, own));
  }

  /** @returns undefined while nothing is known; a source that fails later leaves what it gave before */
  async #ownPodRanges(
    node: NodeObject,
    links: readonly Link[],
    ipv6: Ipv6,
    taken: readonly string[],
  ): Promise<PodRange[] | undefined> {
    const { config, reader, failures, findings, log } = this.#means;
    const { podCidrSourcePath: path, podCidrSource } = config;
    const fromFile = path !== undefined && Object.values(podCidrSource).includes("file");
    const compute = async () => {
      const podCidrFile = fromFile ? { path, content: await reader.readFile(path) } : undefined;
      const before = prefixesBefore(ipv6, this.#podRanges);
      return ownPodRanges(node, links, { ...config, podCidrFile, before }, taken);
    };
    const computed = await (this.#podRanges === undefined
      ? compute()
      : failures.attempt("pod CIDRs", compute));
    if (computed !== undefined && (computed.length > 0 || config.firewallOnly)) {
      if (!Bun.deepEquals(computed.slice(0, mostClaims), this.#podRanges))
        log.info({ podCidrs: computed.map((range) => range.subnet) }, "own pod CIDRs");
      this.#podRanges = computed.slice(0, mostClaims);
      findings.report("pod CIDRs", undefined);
      const surplus = computed.slice(mostClaims).map((range) => range.subnet);
      findings.report("surplus pod CIDRs", surplusPodCidrs(surplus));
    } else if (this.#podRanges === undefined) findings.report("pod CIDRs", noPodCidrsYet(config.nodeName));
    return this.#podRanges;
  }
}
