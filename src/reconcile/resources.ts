/** The resources of a node, and what a pass wants of them. In which order they act is in phases.ts. */
import type { Logger } from "pino";
import type { ClusterNodes } from "../cluster/nodes.ts";
import type { Config } from "../config/config.ts";
import { CniFile } from "../host/cni.ts";
import { CniFolder } from "../host/cnifolder.ts";
import type { Executor, Perform } from "../host/executor.ts";
import { FlowTable } from "../host/firewall/flowtable.ts";
import { HostPorts } from "../host/firewall/hostports.ts";
import { HostFirewall } from "../host/firewall/resource.ts";
import { ForeignLinks } from "../host/foreignlinks.ts";
import { ForeignRoutes } from "../host/foreignroutes.ts";
import { ForeignRules } from "../host/foreignrules.ts";
import { Ipv6Sysctls } from "../host/ipv6.ts";
import { Links } from "../host/link.ts";
import { Peers } from "../host/peers.ts";
import { PodLinks } from "../host/podlinks.ts";
import type { Reason } from "../host/resource.ts";
import { Routes } from "../host/routes.ts";
import { Forwarding, Sysctls } from "../host/sysctls.ts";
import { LinkSettings, TunnelLink } from "../host/tunnel.ts";
import { Underlay } from "../host/underlay.ts";
import { Identity, WireGuard } from "../host/wireguard.ts";
import type { Family } from "../net/address.ts";
import type { Desired } from "../plan/desired.ts";
import type { Findings } from "../report/findings.ts";
import { Annotations } from "./annotations.ts";
import type { Failures } from "./failures.ts";
import { Greeter } from "./greeting.ts";

/** What a pass wants: the plan, and what follows from the node itself. */
export interface Target extends Desired {
  /** Whether all of the cluster is known. */
  whole: boolean;
  /** Of the own Node; null: without it. */
  annotations: Record<string, string | null>;
  /** The own ones, of families that pods can have. */
  podCidrs: readonly string[];
  /** Families that the tunnel's packets can have. */
  leaving: readonly Family[];
  /** Families that pods have. */
  podFamilies: ReadonlySet<Family>;
  /** Links that have to forward. */
  forwarding: readonly string[];
}

export interface Means {
  config: Config;
  nodes: ClusterNodes;
  executor: Executor;
  perform: Perform;
  /** Annotates the own Node, and has it logged. */
  annotate: Executor["annotate"];
  failures: Failures;
  findings: Findings;
  /** Of the tunnel; null if there is none. */
  publicKey: string | null;
  /** Whether the key was made just now, so that no other node knows it. */
  newKey: boolean;
  log: Logger;
}

export type Resources = ReturnType<typeof resourcesOf>;

export function resourcesOf(means: Means) {
  const { config, nodes, executor, perform, annotate, failures, findings, log } = means;
  const { linkName: link, linkName: name, families, port, privateKeyPath, procSysNet: root } = config;
  const tunnelChanged = () => invalidate(resources, "tunnel");
  const links = new Links(executor);
  const wireGuard = new WireGuard(executor, link, links);
  const peers = new Peers(link, wireGuard, perform);
  const routes = new Routes({ reader: executor, link, families, perform });
  const flowTable = new FlowTable(links, executor, perform);
  const written = () => flowTable.written();
  const underlay = new Underlay(executor, link, families);
  const annotations = new Annotations({ config, nodes, executor, annotate, findings });
  const ipv6InTunnel = !config.firewallOnly && !config.nativeRouting.ipv6;
  const own = { publicKey: means.publicKey ?? "", privateKeyPath, port };
  const resources = {
    links,
    ipv6: new Ipv6Sysctls({
      reader: executor,
      root,
      families,
      link: ipv6InTunnel ? link : undefined,
      perform,
    }),
    underlay,
    tunnelLink: new TunnelLink({
      name,
      mode: config.wireguard,
      links,
      executor,
      perform,
      changed: tunnelChanged,
    }),
    identity: new Identity(link, own, wireGuard, perform),
    sysctls: new Sysctls({ root, link, skipDad: !config.podIpv6Dad, executor, findings, perform }),
    linkSettings: new LinkSettings({ name, links, executor, perform }),
    peers,
    greeter: new Greeter({
      link,
      perform: (commands) => failures.attempt("greeting", () => executor.perform(commands)),
      dry: executor.dry,
      newKey: means.newKey,
      isNew: () => peers.wereNone,
      log,
    }),
    routes,
    foreignRules: new ForeignRules(link, routes, links, findings),
    foreignLinks: new ForeignLinks(links, underlay, findings),
    foreignRoutes: new ForeignRoutes(executor, families, findings),
    firewall: new HostFirewall({ config, findings, executor, perform, written }),
    flowTable,
    forwarding: new Forwarding({ root, executor, findings, perform }),
    podLinks: new PodLinks({ reader: executor, root, links, perform }),
    hostPorts: new HostPorts(executor, findings),
    cniFolder: new CniFolder(config.cniConfigPath, findings),
    annotations,
    cniFile: new CniFile(executor, config.cniConfigPath, () => annotations.mayStart, perform),
  };
  return resources;
}

export function invalidate(resources: Resources, reason: Reason): void {
  for (const resource of Object.values(resources)) resource.invalidate(reason);
}
