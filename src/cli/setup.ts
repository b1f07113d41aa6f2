/** What the agent and its dry run begin with: the configuration, checked against this node, and the reconciler. */
import { isIP } from "node:net";
import pino, { type Logger } from "pino";
import { version } from "../../package.json";
import { ApiClient } from "../cluster/client.ts";
import { ClusterNodes } from "../cluster/nodes.ts";
import { type Config, ConfigError, parseBool, readConfig } from "../config/config.ts";
import { readSetting } from "../config/settings.ts";
import { earlierTunnel } from "../host/earliertunnel.ts";
import type { Executor } from "../host/executor.ts";
import { nodeReader } from "../host/executor.ts";
import { refusal } from "../host/firewall/flowtable.ts";
import { checkPod } from "../host/pod.ts";
import { checkPrograms } from "../host/programs.ts";
import type { Observer } from "../reconcile/observer.ts";
import { Reconciler } from "../reconcile/reconciler.ts";
import type { Finding } from "../report/findings.ts";
import { createLogger } from "../report/log.ts";

/** What the command line says of the agent. */
export interface AgentOptions {
  kubeconfig?: string;
  /** Flags of klog that were given, and the log level that they mean. */
  klog: { flags: string[]; logLevel: string | undefined };
}

export interface Setup {
  config: Config;
  client: ApiClient;
  log: Logger;
  /** Why the firewall is by iptables, if the kernel lacks what nftables needs. */
  backend: Finding | undefined;
}

/** Reads the configuration, and checks that this node has what it needs. @throws ConfigError, ProgramError */
export async function setUp({ kubeconfig, klog }: AgentOptions, dry: boolean): Promise<Setup> {
  const env = {
    ...process.env,
    ...(kubeconfig && { KUBECONFIG: kubeconfig }),
    LOG_LEVEL: process.env.LOG_LEVEL || klog.logLevel,
  };
  const firewallOnly = parseBool(readSetting(env, "FIREWALL_ONLY")) ?? false;
  const config = readConfig(env, dry ? [] : await checkPod(env, firewallOnly));
  const client = new ApiClient(config.kubeconfig);
  const { backend, warning } = await checkPrograms(config);
  config.firewallBackend = backend;
  await refuseEarlierTunnel(config);
  const log = loggerFor(config.logLevel, dry);
  if (klog.flags.length > 0)
    log.warn(
      { flags: klog.flags, logLevel: config.logLevel },
      "flags of klog are those of the Go implementation: -v stands for LOG_LEVEL where that is not set, the others for nothing; remove them from args, and set LOG_LEVEL",
    );
  const refused =
    config.flowtable && (backend.startsWith("iptables") ? "the firewall is by iptables" : await refusal());
  if (refused) {
    log.warn(
      { refused },
      "ENABLE_FLOWTABLE is set, and this kernel cannot: no flow is offloaded. Load its modules (modprobe -a nf_flow_table_inet nft_flow_offload) and start the agent again, or set ENABLE_FLOWTABLE=0",
    );
    config.flowtable = undefined;
  }
  return { config, client, log, backend: warning };
}

async function refuseEarlierTunnel(config: Config): Promise<void> {
  const { linkName, families } = config;
  const earlier = hasTunnel(config) && (await earlierTunnel(nodeReader, linkName, families));
  if (earlier)
    throw new ConfigError([
      `WIGGLENET_IFACE_NAME=${linkName}: this node's tunnel is link ${earlier}: set it to that; or first remove that link ("ip link delete ${earlier}", or stop the wireguard-go that serves it), which cuts this node's pods off from the others until the new one is there`,
    ]);
}

/** In a dry run the commands are the output, and only what is wrong is worth a line beside them. */
export function loggerFor(level: string, dry: boolean): Logger {
  return dry ? createLogger("warn", pino.destination({ dest: 2, sync: true })) : createLogger(level);
}

/** @param wake called when a pass is due, for a reason */
export function assemble(
  { config, client, log, backend }: Setup,
  key: { publicKey: string | null; newKey: boolean },
  executorFor: (nodes: ClusterNodes) => Executor,
  observer: Observer,
  wake: (reason: string) => void,
): { reconciler: Reconciler; nodes: ClusterNodes } {
  const changed = () => wake("cluster");
  const nodes = new ClusterNodes({ client, ownName: config.nodeName, log, changed });
  const host = new URL(client.server).hostname.replace(/^\[|\]$/g, "");
  const reserved = isIP(host) ? [host] : [];
  const executor = executorFor(nodes);
  const reconciler = new Reconciler({
    ...{ config, nodes, executor, ...key, version, reserved, observer, wake, log },
  });
  reconciler.findings.report("FIREWALL_BACKEND", backend);
  return { reconciler, nodes };
}

export function hasTunnel(config: Config): boolean {
  return !config.firewallOnly && Object.values(config.nativeRouting).includes(false);
}
