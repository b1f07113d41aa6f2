/** What a process costs together with all that it started and that still runs, as the kernel counts it: proc(5). */
import { readFileSync, readlinkSync } from "node:fs";
import { basename } from "node:path";
import { costOf, memoryOf } from "../../bench/process.ts";
import { sleep } from "../process.ts";

/** The process and its descendants. */
export function treeOf(pid: number): number[] {
  const children = readIfRuns(`/proc/${pid}/task/${pid}/children`)?.trim().split(" ").filter(Boolean) ?? [];
  return [pid, ...children.flatMap((child) => treeOf(Number(child)))];
}

/** Milliseconds of CPU of all of them, and of those that have ended. */
export function cpuOf(pid: number): number {
  const costs = treeOf(pid).map((each) => ifRuns(() => costOf(each)));
  return costs.reduce((sum, cost) => sum + (cost ? cost.own + cost.children : 0), 0);
}

/**
 * Follows the resident memory of all of them. `stop` gives the most that they had together at any time, in megabytes, and
 * who had it.
 */
export function watchMemory(pid: number): { stop: () => Promise<{ most: number; whose: string }> } {
  let result = { most: 0, whose: "" };
  let going = true;
  const watching = (async () => {
    for (; going; await sleep(20)) {
      const each = treeOf(pid).flatMap((one) => memoryOfOne(one, pid));
      const most = each.reduce((sum, [, megabytes]) => sum + megabytes, 0);
      const whose = each.map(([name, megabytes]) => `${name} ${megabytes.toFixed(0)}`).join(", ");
      if (most > result.most) result = { most, whose };
    }
  })();
  return {
    stop: async () => {
      going = false;
      await watching;
      return result;
    },
  };
}

function memoryOfOne(pid: number, parent: number): [name: string, megabytes: number][] {
  const executable = (of: number) => ifRuns(() => readlinkSync(`/proc/${of}/exe`));
  // A child that is not its own program yet has its parent's memory, not as much again.
  if (pid !== parent && executable(pid) === executable(parent)) return [];
  const resident = ifRuns(() => memoryOf(pid))?.resident;
  return resident ? [[basename(executable(pid) ?? ""), resident]] : [];
}

function readIfRuns(path: string): string | undefined {
  return ifRuns(() => readFileSync(path, "utf8"));
}

function ifRuns<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}
