/** `wigglenet agent`: follows the cluster and the kernel, and reconciles until it is told to stop. */
import { version } from "../../package.json";
import { followApiServers } from "../cluster/apiservers.ts";
import { watchCniFolder } from "../host/cnifolder.ts";
import { perform } from "../host/command.ts";
import { FirewallWatch } from "../host/events/firewallwatch.ts";
import { ipMonitor, monitor } from "../host/events/monitor.ts";
import { Sockets } from "../host/events/sockets.ts";
import { nodeReader } from "../host/executor.ts";
import { ensurePrivateKey } from "../host/files.ts";
import { createLink } from "../host/link.ts";
import { acquireLock } from "../host/lock.ts";
import { metricsObserver } from "../observe/metrics.ts";
import { type Health, serveHealth, serveMetrics } from "../observe/serve.ts";
import { Loop, realClock } from "../reconcile/loop.ts";
import { type AgentOptions, assemble, hasTunnel, setUp } from "./setup.ts";

export async function runAgent(options: AgentOptions): Promise<never> {
  const setup = await setUp(options, false);
  const { config, client, log } = setup;
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
  const observer = metricsObserver(version);
  // Set below, before anything is followed.
  let loop: Loop;
  const { reconciler, nodes } = assemble(
    setup,
    { publicKey: key?.publicKey ?? null, newKey: key?.created ?? false },
    (nodes) => ({
      ...nodeReader,
      dry: false,
      perform: (steps) => firewall.excluding(() => perform(steps)),
      createLink: (name, mode) => createLink(name, mode, log),
      annotate: (annotations) => nodes.annotate(annotations),
    }),
    observer,
    (reason) => loop.mark(reason),
  );
  loop = new Loop({
    pass: (why) => reconciler.pass(why),
    ready: () => nodes.complete,
    retryIn: (random) => reconciler.failures.retryIn(random),
    resyncPeriod: config.resyncPeriod,
    resync: () => {
      nodes.refresh(stop.signal);
      reconciler.outdated("resync");
    },
    timers: [reconciler.greeter, reconciler.publication],
    observer,
    clock: realClock,
  });
  const health: Health = {
    stuck: () => loop.stuck(),
    unready: () => reconciler.unready(),
    warnings: () => reconciler.warnings(),
  };
  lock.reportTo(reconciler.findings);
  if (config.health) serveHealth(config.health, health);
  if (config.metrics)
    serveMetrics(config.metrics, health, hasTunnel(config) ? config.linkName : undefined, log);
  const gap = () => {
    reconciler.outdated("drift");
    loop.mark("drift");
  };
  const sockets = new Sockets();
  sockets.start((finding) => reconciler.findings.report("netlink", finding));
  firewall.start(
    () => sockets.get("firewall"),
    () => {
      reconciler.outdated("firewall");
      loop.mark("firewall drift");
    },
  );
  const routes = () => sockets.get("routes");
  const kernel = monitor(ipMonitor, (line) => reconciler.noticed(line), gap, routes, log, stop.signal);
  if (!config.firewallOnly) watchCniFolder(config.cniConfigPath, () => loop.mark("CNI folder"), stop.signal);
  const cluster = nodes.run(stop.signal);
  const servers = followApiServers(client, log, (addresses) => reconciler.reserve(addresses), stop.signal);
  await servers.tried;
  await Promise.race([Promise.all([kernel, cluster, servers.ended]), loop.run(stop.signal)]);
  process.exit(0);
}
