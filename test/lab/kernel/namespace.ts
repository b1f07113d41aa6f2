/** Linux namespaces as places where programs run. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { $ as zx } from "zx";
import { tool } from "../cache.ts";
import { Place } from "../cluster/place.ts";
import { type RunOptions, run, Service } from "../process.ts";

/** False where it was booted with ipv6.disable=1. */
export const kernelHasIpv6 = existsSync("/proc/sys/net/ipv6");

/** The addresses of a node, a pod or a host, by family. */
export interface Addresses {
  ipv4?: string;
  ipv6?: string;
}

/** What a probe can go from and to. */
export interface Host {
  readonly name: string;
  readonly addresses: Addresses;
  readonly place: Place;
}

/** The namespaces of one process: where commands run, and from where packets are sent. */
export class Namespace {
  readonly name: string;
  readonly place: Place;
  /** A process inside, for `nsenter -t` and /proc/PID/root; of a node, its PID 1. */
  readonly pid: number;
  /** Whether it has its own PID namespace. */
  readonly ownPids: boolean;

  constructor(name: string, place: Place, pid = place.pid, ownPids = false) {
    this.name = name;
    this.place = place;
    this.pid = pid;
    this.ownPids = ownPids;
  }

  /** A network namespace of its own that ends with its place. */
  static async create(name: string): Promise<Namespace> {
    return new Namespace(name, await Place.start(name, [tool("enter"), "net", tool("place")]));
  }

  /** zx inside: ``await node.$`ip -j route show` ``. */
  get $() {
    return zx({
      quiet: true,
      shell: "/bin/bash",
      prefix: "set -euo pipefail;",
      spawn: ((command: string, _: unknown, options: object) =>
        spawn(tool("enter"), ["run", String(this.pid), "/bin/bash", "-c", command], {
          ...options,
          shell: false,
        })) as unknown as typeof spawn,
    });
  }

  run(argv: readonly string[], options: RunOptions = {}): Promise<string> {
    return run(argv, { ...options, within: this.pid });
  }

  /** Many `ip` commands in one process. */
  async ip(...commands: string[]): Promise<void> {
    await this.run(["ip", "-batch", "-"], { stdin: `${commands.join("\n")}\n` });
  }

  /** Values under /proc/sys/net, by dotted name; those of IPv6 where the kernel has it. */
  async sysctl(values: Record<string, string | number>): Promise<void> {
    const lines = Object.entries(values)
      .filter(([key]) => !key.startsWith("net.ipv6.") || kernelHasIpv6)
      .map(([key, value]) => `echo ${value} > /proc/sys/${key.replaceAll(".", "/")}`);
    if (lines.length > 0) await this.run(["/bin/sh", "-ec", lines.join("\n")]);
  }

  start(name: string, argv: readonly string[], log: string, env?: Record<string, string>): Service {
    return Service.start(name, argv, { log, within: this.pid, joinsPids: this.ownPids, ...(env && { env }) });
  }
}
