/**
 * Programs that the lab starts. None outlives the process that started it (see tools/enter.c), and none is unref'ed: bun
 * spins while it waits for nothing else.
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import { tool } from "./cache.ts";

export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** How much longer than on a real machine things may take: the virtual machine is an emulated one. */
export const patience = Number(process.env.LAB_PATIENCE ?? 1);

/**
 * Asks again until `attempt` gives something other than undefined or false. An exception ends the waiting. Milliseconds;
 * in a virtual machine `every` is longer too, as who asks takes the processor from those who are asked.
 */
export async function until<T>(
  what: string,
  attempt: () => T | undefined | false | Promise<T | undefined | false>,
  { timeout = 10_000, every = 25, why = () => "" as string | Promise<string> } = {},
): Promise<T> {
  for (const end = performance.now() + timeout * patience; ; await sleep(every * patience)) {
    const got = await attempt();
    if (got !== undefined && got !== false) return got;
    if (performance.now() > end)
      throw new Error(`${what}: not within ${timeout * patience} ms. ${await why()}`);
  }
}

export interface RunOptions {
  /** Run in the namespaces of this process. */
  within?: number | undefined;
  env?: Record<string, string> | undefined;
  stdin?: string | Uint8Array | undefined;
}

const within = (argv: readonly string[], pid?: number) =>
  pid === undefined ? [...argv] : [tool("enter"), "run", String(pid), ...argv];

/** Runs a program to its end; its output, or an error with what it said. */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<string> {
  const child = Bun.spawn(within(argv, options.within), {
    stdin: options.stdin === undefined ? "ignore" : Buffer.from(options.stdin),
    stdout: "pipe",
    stderr: "pipe",
    ...(options.env && { env: { ...process.env, ...options.env } }),
  });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (code !== 0) throw new Error(`${argv.join(" ")}: exit ${code}: ${err.trim() || out.trim()}`);
  return out;
}

/** A program that runs until it is stopped, its output in a file. */
export class Service implements AsyncDisposable {
  readonly #child: Bun.Subprocess;
  readonly name: string;
  readonly log: string;
  readonly #joinsPids: boolean;

  private constructor(name: string, log: string, child: Bun.Subprocess, joinsPids: boolean) {
    this.name = name;
    this.log = log;
    this.#child = child;
    this.#joinsPids = joinsPids;
  }

  /** @param options.joinsPids `within` has a PID namespace, so that `enter` stays between us and the program. */
  static start(
    name: string,
    argv: readonly string[],
    options: { log: string; within?: number; joinsPids?: boolean; env?: Record<string, string> },
  ): Service {
    const fd = openSync(options.log, "a");
    const program =
      options.within === undefined ? [tool("enter"), "run", "self", ...argv] : within(argv, options.within);
    const child = Bun.spawn(program, {
      stdin: "ignore",
      stdout: fd,
      stderr: fd,
      ...(options.env && { env: options.env }),
    });
    closeSync(fd);
    return new Service(name, options.log, child, options.joinsPids ?? false);
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get exited(): Promise<number> {
    return this.#child.exited;
  }

  /** The program's process id, as this process sees it. */
  async pid(): Promise<number> {
    if (!this.#joinsPids) return this.#child.pid;
    return await until(`${this.name} to be started`, () => {
      if (!this.running) throw new Error(`${this.name} has ended: ${this.tail()}`);
      return childOf(this.#child.pid);
    });
  }

  /** Sends a signal and waits for the end; SIGKILL after `timeout` ms. The exit code. */
  async stop(signal: NodeJS.Signals = "SIGTERM", timeout = 10_000): Promise<number> {
    if (!this.running) return await this.#child.exited;
    process.kill(await this.pid(), signal);
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), timeout * patience);
    try {
      return await this.#child.exited;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The last lines that it wrote. */
  tail(lines = 15): string {
    return readFileSync(this.log, "utf8").trimEnd().split("\n").slice(-lines).join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop("SIGKILL");
  }
}

/** The only child of a process, or undefined before there is one. */
export function childOf(pid: number): number | undefined {
  const [child] = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ");
  return child ? Number(child) : undefined;
}
