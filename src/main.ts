/** The command line: see `usage`. */
import { isIP } from "node:net";
import { parseArgs } from "node:util";
import pino, { type Logger } from "pino";
import { version } from "../package.json";
import { install, uninstall } from "./cli/install.ts";
import { withoutKlogFlags } from "./cli/klog.ts";
import { followApiServers } from "./cluster/apiservers.ts";
import { ApiClient } from "./cluster/client.ts";
import { ClusterNodes } from "./cluster/nodes.ts";
import { type Config, ConfigError, parseBool, readConfig } from "./config/config.ts";
import { readSetting } from "./config/settings.ts";
import { watchCniFolder } from "./host/cnifolder.ts";
import { perform, printStep } from "./host/command.ts";
import { FirewallWatch } from "./host/events/firewallwatch.ts";
import { ipMonitor, monitor } from "./host/events/monitor.ts";
import { Sockets } from "./host/events/sockets.ts";
import { ensurePrivateKey, observePublicKey } from "./host/files.ts";
import { refusal } from "./host/firewall/flowtable.ts";
import { iptablesInstead } from "./host/firewall/nftmodules.ts";
import { createKernelLink, createLink } from "./host/link.ts";
import { acquireLock } from "./host/lock.ts";
import { installPlugins } from "./host/plugins.ts";
import { checkPod } from "./host/pod.ts";
import { checkPrograms, ProgramError } from "./host/programs.ts";
import { serveHealth, serveMetrics } from "./observe/serve.ts";
import { Agent } from "./reconcile/agent.ts";
import type { Hands } from "./reconcile/apply.ts";
import type { Finding } from "./report/findings.ts";
import { createLogger } from "./report/log.ts";

const usage = `usage: wigglenet [agent] [--kubeconfig FILE] [--dry-run]
       wigglenet install [--kubeconfig FILE] [--dry-run]
       wigglenet uninstall [--purge] [--dry-run]
       wigglenet install-cni [--target DIR] [--source DIR] [--dry-run]
       wigglenet version
The agent's configuration is its environment: see docs/configuration.md.`;

type Option = "dry-run" | "kubeconfig" | "purge" | "source" | "target";

/** Each command with the options that it takes. */
const commands: Record<string, Option[]> = {
  agent: ["kubeconfig", "dry-run"],
  install: ["kubeconfig", "dry-run"],
  uninstall: ["purge", "dry-run"],
  "install-cni": ["target", "source", "dry-run"],
  version: [],
};

async function main(): Promise<void> {
  const klog = withoutKlogFlags(process.argv.slice(2));
  const { values, positionals } = parseCommandLine(klog.args);
  const [name = "agent", ...rest] = positionals;
  if (values.help) return console.log(usage);
  const taken = commands[name];
  if (taken === undefined) throw new UsageError(`unknown command ${JSON.stringify(name)}`);
  if (rest.length > 0) throw new UsageError(`unexpected argument ${JSON.stringify(rest[0])}`);
  for (const option of Object.keys(values))
    if (!taken.includes(option as Option)) throw new UsageError(`${name} takes no --${option}`);
  if (name !== "agent" && klog.flags.length > 0) throw new UsageError(`${name} takes no ${klog.flags[0]}`);
  const { kubeconfig, "dry-run": dry = false, purge = false } = values;
  if (name === "version") return console.log(version);
  if (name === "install") return await install({ ...(kubeconfig && { kubeconfig }), dry });
  if (name === "uninstall") return await uninstall({ purge, dry });
  if (name === "install-cni") {
    const { source = "/usr/lib/cni", target = "/opt/cni/bin" } = values;
    return await installPlugins({ source, target, paper: dry }, logger("info", dry));
  }
  const env = {
    ...process.env,
    ...(kubeconfig && { KUBECONFIG: kubeconfig }),
    LOG_LEVEL: process.env.LOG_LEVEL || klog.logLevel,
  };
  const firewallOnly = parseBool(readSetting(env, "FIREWALL_ONLY")) ?? false;
  const config = readConfig(env, dry ? [] : await checkPod(env, firewallOnly));
  const client = new ApiClient(config.kubeconfig);
  const lacking = await checkPrograms(config);
  if (lacking.length > 0) config.firewallBackend = "iptables";
  const log = logger(config.logLevel, dry);
  if (klog.flags.length > 0)
    log.warn(
      { flags: klog.flags, logLevel: config.logLevel },
      "flags of klog are those of the Go implementation: -v stands for LOG_LEVEL where that is not set, the others for nothing; remove them from args, and set LOG_LEVEL",
    );
  const refused = config.flowtable && (lacking.length > 0 ? "the firewall is by iptables" : await refusal());
  if (refused) {
    log.warn(
      { refused },
      "ENABLE_FLOWTABLE is set, and this kernel cannot: no flow is offloaded. Load its modules (modprobe -a nf_flow_table_inet nft_flow_offload) and start the agent again, or set ENABLE_FLOWTABLE=0",
    );
    config.flowtable = undefined;
  }
  const backend = lacking.length > 0 ? iptablesInstead(lacking) : undefined;
  await (dry ? dryRun : runAgent)(config, client, log, backend);
}

/** On paper the commands are the output, and only what is wrong is worth a line beside them. */
function logger(level: string, paper: boolean): Logger {
  return paper ? createLogger("warn", pino.destination({ dest: 2, sync: true })) : createLogger(level);
}

async function runAgent(config: Config, client: ApiClient, log: Logger, backend?: Finding): Promise<void> {
  log.info({ version, node: config.nodeName }, "wigglenet");
  const stop = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const)
    process.once(signal, () => {
      log.info({ signal }, "stopping; the data path stays");
      stop.abort();
    });
  const lock = await acquireLock(version, log, stop.signal);
  if (lock === undefined) process.exit(0);
  const key = hasTunnel(config) ? await ensurePrivateKey(config.privateKeyPath) : undefined;
  if (key?.created)
    log.info({ path: config.privateKeyPath, publicKey: key.publicKey }, "private key created");
  const firewall = new FirewallWatch();
  const { agent, nodes } = assemble(
    config,
    log,
    client,
    { publicKey: key?.publicKey ?? null, newKey: key?.created ?? false },
    (nodes) => ({
      paper: false,
      perform: (steps) => firewall.excluding(() => perform(steps)),
      createLink: (name, mode) => createLink(name, mode, log),
      annotate: (annotations) => nodes.annotate(annotations),
    }),
  );
  agent.report("FIREWALL_BACKEND", backend);
  lock.reportTo(agent);
  if (config.health) serveHealth(config.health, agent);
  if (config.metrics)
    serveMetrics(config.metrics, agent, hasTunnel(config) ? config.linkName : undefined, log);
  const gap = () => agent.forget("drift");
  const sockets = new Sockets();
  sockets.start((finding) => agent.report("netlink", finding));
  firewall.start(
    () => sockets.get("firewall"),
    () => agent.forgetFirewall(),
  );
  const routes = () => sockets.get("routes");
  const kernel = [monitor(ipMonitor, (line) => agent.noticed(line), gap, routes, log, stop.signal)];
  if (!config.firewallOnly) watchCniFolder(config.cniConfigPath, () => agent.mark("CNI folder"), stop.signal);
  const cluster = nodes.run(stop.signal);
  const servers = followApiServers(client, log, (addresses) => agent.reserve(addresses), stop.signal);
  await Promise.race([Promise.all([...kernel, cluster, servers]), agent.run(stop.signal)]);
  process.exit(0);
}

/** Stands for what only the shell will know that the commands of a dry run are pasted into. */
const publicKeyToCome = "<public key>";

/** Prints what a first pass would do, in order, and changes nothing. */
async function dryRun(config: Config, client: ApiClient, log: Logger, backend?: Finding): Promise<void> {
  let publicKey = hasTunnel(config) ? await observePublicKey(config.privateKeyPath) : null;
  if (publicKey === undefined) {
    console.log(`wg genkey | install -D -m 0600 /dev/stdin ${config.privateKeyPath}`);
    publicKey = publicKeyToCome;
  }
  const stop = new AbortController();
  const { agent, nodes } = assemble(
    config,
    log,
    client,
    { publicKey, newKey: publicKey === publicKeyToCome },
    () => ({
      paper: true,
      perform: async (steps) => {
        for (const step of steps) console.log(printStep(step));
      },
      createLink: async (name, mode) => {
        const [kernel, userspace] = [printStep(createKernelLink(name)), `wireguard-go ${name}`];
        console.log({ kernel, userspace, auto: `${kernel} || ${userspace}` }[mode]);
      },
      annotate: async (annotations) => {
        const patch = JSON.stringify({ metadata: { annotations } });
        const argv = ["kubectl", "patch", "node", config.nodeName, "--type=merge", "-p", patch];
        const derived = `'"$(wg pubkey < ${config.privateKeyPath})"'`;
        console.log(printStep({ kind: "run", argv }).replace(publicKeyToCome, () => derived));
      },
    }),
  );
  agent.report("FIREWALL_BACKEND", backend);
  const cluster = nodes.run(stop.signal);
  const deadline = performance.now() + 30_000;
  while (!nodes.whole || !nodes.complete) {
    if (performance.now() > deadline) {
      if (nodes.complete) break;
      throw new Error(`the Nodes could not be read within 30 s from the API server`);
    }
    await Bun.sleep(20);
  }
  await agent.pass();
  stop.abort();
  await cluster;
  const unread = [...agent.failing, ...(nodes.whole ? [] : ["Nodes: not all could be read"])];
  if (unread.length > 0)
    throw new Error(
      `not all could be read, and what is printed above may lack something:\n${unread.map((each) => `  ${each}`).join("\n")}`,
    );
}

function assemble(
  config: Config,
  log: Logger,
  client: ApiClient,
  key: { publicKey: string | null; newKey: boolean },
  handsFor: (nodes: ClusterNodes) => Hands,
) {
  // Set below, before anything is followed.
  let agent: Agent;
  const nodes = new ClusterNodes({
    client,
    ownName: config.nodeName,
    log,
    changed: () => agent.mark("cluster"),
  });
  const host = new URL(client.server).hostname.replace(/^\[|\]$/g, "");
  const reserved = isIP(host) ? [host] : [];
  agent = new Agent({ config, nodes, hands: handsFor(nodes), ...key, version, reserved, log });
  return { agent, nodes };
}

function hasTunnel(config: Config): boolean {
  return !config.firewallOnly && Object.values(config.nativeRouting).includes(false);
}

class UsageError extends Error {}

function parseCommandLine(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        "dry-run": { type: "boolean" },
        kubeconfig: { type: "string" },
        purge: { type: "boolean" },
        source: { type: "string" },
        target: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

try {
  await main();
} catch (error) {
  const expected = [UsageError, ConfigError, ProgramError].some((kind) => error instanceof kind);
  console.error(`wigglenet: ${(error as Error).message}${error instanceof UsageError ? `\n${usage}` : ""}`);
  process.exit(expected ? 2 : 1);
}
