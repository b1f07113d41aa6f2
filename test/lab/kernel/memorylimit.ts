/** A limit of memory, as a container's: a cgroup of one process and its children, in either version. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { makeCgroup, removeCgroup } from "./cgroup.ts";

const isVersion2 = existsSync("/sys/fs/cgroup/cgroup.controllers");
const root = isVersion2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
const files = isVersion2
  ? { limit: "memory.max", peak: "memory.peak", events: "memory.events" }
  : { limit: "memory.limit_in_bytes", peak: "memory.max_usage_in_bytes", events: "memory.oom_control" };

export class MemoryLimit implements AsyncDisposable {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** @param path of the cgroup, below the root of all @param bytes beyond which a process in it is killed */
  static async create(path: string, bytes: number): Promise<MemoryLimit> {
    await makeCgroup(path);
    const limit = new MemoryLimit(path);
    writeFileSync(limit.#file(files.limit), String(bytes));
    return limit;
  }

  /** Puts a process there; what it starts from now on is there too. */
  add(pid: number): void {
    writeFileSync(this.#file("cgroup.procs"), String(pid));
  }

  /** The most that was ever charged, in bytes: with the kernel's own memory for it, and files that were read first here. */
  get peak(): number {
    return Number(readFileSync(this.#file(files.peak), "utf8"));
  }

  /** How many processes were killed for it. */
  get killed(): number {
    const [, killed] = /^oom_kill (\d+)$/m.exec(readFileSync(this.#file(files.events), "utf8")) ?? [];
    return Number(killed);
  }

  #file(name: string): string {
    return `${root}/${this.#path}/${name}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await removeCgroup(this.#path);
  }
}
