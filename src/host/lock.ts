/**
 * One agent on a node. The lock is an abstract unix socket: it goes with its process, and belongs to the host's network,
 * which agents in containers share. Who comes second and who is there tell each other what they are.
 */
import { readFileSync } from "node:fs";
import type { Logger } from "pino";
import type { Findings } from "../report/findings.ts";

const socketName = "\0wigglenet-agent";
/** Milliseconds: an agent in a pod has 5 s to end, and one that is a service 10 s. */
const patience = 15_000;
/** Milliseconds in which an agent answers that is not stopped. */
const answerWithin = 2_000;
/** Milliseconds after which one that came second is taken to have given up: kubelet waits up to 5 minutes. */
const remembered = 600_000;
/** Bytes and characters. Whoever is in the host's network may write anything. */
const longest = { message: 2_000, text: 80 };

/** What an agent says of itself. */
interface AgentIdentity {
  version: string;
  /** As its own container counts. */
  pid: number;
  startedBy: string;
}

/** Held until this process ends. */
export interface Lock {
  /** Has agents that come second reported from now on. */
  reportTo(findings: Pick<Findings, "report">): void;
}

/**
 * Takes the lock; where another agent has it, waits a while for its end, as in an upgrade.
 * @returns undefined if `signal` aborted meanwhile
 * @throws Error that says what the other agent is
 */
export async function acquireLock(
  version: string,
  log: Logger,
  signal: AbortSignal,
): Promise<Lock | undefined> {
  const self: AgentIdentity = { version, pid: process.pid, startedBy: startedBy() };
  let tell: (other: string) => void = () => undefined;
  const deadline = performance.now() + patience;
  let other = "";
  while (!signal.aborted) {
    try {
      listen(self, (identity) => tell(identity));
      return { reportTo: (findings) => (tell = reporter(findings)) };
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== "EADDRINUSE") {
        log.warn({ error: message }, "whether another agent runs on this node cannot be told");
        return { reportTo: () => undefined };
      }
    }
    if (other === "") {
      other = await ask(self);
      log.warn({ other }, `another agent has this node: waiting ${patience / 1000} s for it to end`);
    }
    if (performance.now() > deadline)
      throw new Error(
        `another agent has this node (${other}), and only one may: keep the DaemonSet off this node (nodeSelector), or remove the service of this node (wigglenet uninstall)`,
      );
    await Bun.sleep(200);
  }
  return undefined;
}

function listen(self: AgentIdentity, cameSecond: (other: string) => void): void {
  Bun.listen({
    unix: socketName,
    socket: {
      data(socket, message) {
        socket.end(JSON.stringify(self));
        cameSecond(describe(message));
      },
    },
  }).unref();
}

/** What holds the lock. */
async function ask(self: AgentIdentity): Promise<string> {
  const answer = Promise.withResolvers<string>();
  const timer = setTimeout(() => answer.resolve("it does not answer"), answerWithin);
  try {
    const socket = await Bun.connect({
      unix: socketName,
      socket: {
        open: (socket) => void socket.write(JSON.stringify(self)),
        data: (_, message) => answer.resolve(describe(message)),
        close: () => answer.resolve("it has just ended"),
      },
    });
    return await answer.promise.finally(() => socket.end());
  } catch {
    return "it has just ended";
  } finally {
    clearTimeout(timer);
  }
}

/** "version 1.0.0, pid 17, started by systemd as wigglenet.service" */
function describe(message: Uint8Array): string {
  try {
    const text = Buffer.from(message.subarray(0, longest.message)).toString();
    const { version, pid, startedBy } = JSON.parse(text) as Record<keyof AgentIdentity, unknown>;
    const cut = (value: unknown) =>
      String(value)
        .replace(/[^ -~]/g, "?")
        .slice(0, longest.text);
    return `version ${cut(version)}, pid ${cut(pid)}${startedBy === inPod ? " in its container" : ""}, started by ${cut(startedBy)}`;
  } catch {
    return "it does not say what it is";
  }
}

const inPod = "kubelet in a pod";

function startedBy(): string {
  if (process.env.KUBERNETES_SERVICE_HOST) return inPod;
  const unit = /([^/\n]+\.service)$/m.exec(read("/proc/self/cgroup"))?.[1];
  if (process.env.INVOCATION_ID && unit) return `systemd as ${unit}`;
  return `${read(`/proc/${process.ppid}/comm`).trim() || "process"} (pid ${process.ppid})`;
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function reporter(findings: Pick<Findings, "report">): (other: string) => void {
  let timer: Timer | undefined;
  return (other) => {
    findings.report("second agent", {
      severity: "warning",
      message:
        "another agent was started on this node and cannot run beside this one: keep the DaemonSet off this node (nodeSelector), or remove the service of this node (wigglenet uninstall)",
      // The pid of one that is started again and again is another one each time.
      other: other.replace(/, pid \d+/, ""),
      context: { seen: other },
    });
    clearTimeout(timer);
    timer = setTimeout(() => findings.report("second agent", undefined), remembered).unref();
  };
}
