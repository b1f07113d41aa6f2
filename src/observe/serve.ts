/** HTTP: health for kubelet's probes, metrics for Prometheus. */
import type { Logger } from "pino";
import { register } from "prom-client";
import { type Certificate, readFittingCertificate } from "../config/certificate.ts";
import type { BindAddress, MetricsSettings } from "../config/config.ts";
import { joinLines, longestLine } from "../report/shorten.ts";
import { inSync, observePeers } from "./metrics.ts";
import { registerProcessMetrics } from "./process-metrics.ts";

type Routes = Record<string, () => Response | Promise<Response>>;

/** How the agent is. */
export interface Health {
  /** What keeps the loop from going on, if anything does. */
  stuck(): string | undefined;
  /** What is not as it should be, if anything is. */
  unready(): string | undefined;
  /** What may break the node though it works now, one line each. */
  warnings(): string[];
}

/** Milliseconds between two looks at the certificate's files, or two attempts to listen. */
const renewalCheck = 3_000;

/** `/healthz`: whether the loop makes progress; `/readyz`: whether the node is as it should be, and what may break it. */
export function serveHealth(address: BindAddress, health: Health): Bun.Server<undefined> {
  const answer = (wrong: string | undefined, warnings: string[] = []) =>
    new Response(
      joinLines([...(wrong ?? "ok").split("\n"), ...warnings.map((each) => `warning: ${each}`)], longestLine),
      { status: wrong === undefined ? 200 : 503 },
    );
  return listen(address, {
    "/healthz": () => answer(health.stuck()),
    "/readyz": () => answer(health.unready(), health.warnings()),
  });
}

/**
 * `/metrics`, by HTTPS if there is a certificate, which is read again when it is renewed.
 * @param link the tunnel's, if there is one
 */
export function serveMetrics(
  { address, certificate: files }: MetricsSettings,
  health: Pick<Health, "unready">,
  link: string | undefined,
  log: Logger,
): void {
  registerProcessMetrics();
  const routes: Routes = {
    "/metrics": async () => {
      inSync.set(health.unready() === undefined ? 1 : 0);
      if (link) await observePeers(link, Date.now() / 1000);
      return new Response(await register.metrics(), { headers: { "content-type": register.contentType } });
    },
  };
  let server: Bun.Server<undefined> | undefined;
  let certificate: Certificate | undefined;
  const serve = () => {
    const current = files && readFittingCertificate(files);
    if (server && Bun.deepEquals(current, certificate)) return;
    // Bun cannot change the certificate of a server. Connections that are open go on with the old one.
    const renewed = server !== undefined;
    void server?.stop();
    server = undefined;
    server = listen(address, routes, current);
    certificate = current;
    if (renewed) log.info({ file: files?.cert }, "the metrics endpoint has a new certificate");
  };
  // Neither a port that is taken nor files that do not fit (as for a moment when they are renewed one after the other)
  // are a reason to leave the node's network alone.
  let reported = "";
  const attempt = () => {
    try {
      serve();
      reported = "";
    } catch (error) {
      const { message } = error as Error;
      if (message !== reported)
        log.warn(
          { ...files, error: message },
          server
            ? "the renewed certificate cannot be used yet: the old one stays"
            : "metrics cannot be answered; it is tried again",
        );
      reported = message;
    }
  };
  attempt();
  setInterval(attempt, renewalCheck).unref();
}

function listen(address: BindAddress, routes: Routes, tls?: Certificate): Bun.Server<undefined> {
  const { variable, text, hostname, port } = address;
  try {
    return Bun.serve({
      port,
      ...(hostname && { hostname }),
      ...(tls && { tls }),
      routes,
      development: false,
      fetch: () => new Response(`there is only ${Object.keys(routes).join(" and ")} here\n`, { status: 404 }),
    });
  } catch (error) {
    const reasons: Record<string, string> = {
      EADDRINUSE: "something else listens there: stop it, or choose another port",
      EADDRNOTAVAIL: "this node has no such address",
    };
    const { code = "", message } = error as NodeJS.ErrnoException;
    throw new Error(`${variable}=${JSON.stringify(text)}: cannot listen: ${reasons[code] ?? message}`);
  }
}
