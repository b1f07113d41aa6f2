/** What a process costs, as the kernel counts it. */
import { readFileSync } from "node:fs";

export interface Cost {
  /** Milliseconds of CPU of the process itself. */
  own: number;
  /** Milliseconds of CPU of the children that it has waited for. */
  children: number;
}

/** Milliseconds of a clock tick: USER_HZ is 100 on every Linux that matters. */
const tick = 10;

/** CPU time of a process and its children since they began. Source: proc(5), /proc/PID/stat. */
export function costOf(pid: number): Cost {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The name, in parentheses, may hold spaces; what follows it begins with field 3.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const ticks = (field: number) => Number(fields[field - 3]) * tick;
  return { own: ticks(14) + ticks(15), children: ticks(16) + ticks(17) };
}

export function costSince(pid: number, before: Cost): Cost {
  const now = costOf(pid);
  return { own: now.own - before.own, children: now.children - before.children };
}

/** Resident memory now and at its peak, in megabytes. */
export function memoryOf(pid: number): { resident: number; peak: number } {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const megabytes = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024;
  return { resident: megabytes("VmRSS"), peak: megabytes("VmHWM") };
}

/** The value below which a share of the values lies, by nearest rank. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}
