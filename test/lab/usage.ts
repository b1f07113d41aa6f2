/** What a process costs together with all that it started and that still runs, as the kernel counts it: proc(5). */
import { readFileSync } from "node:fs";
import { costOf, memoryOf } from "../bench/process.ts";
import { sleep } from "./process.ts";

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

/** Follows the resident memory of all of them. `stop` gives the most that they had together at any time, in megabytes. */
export function watchMemory(pid: number): { stop: () => Promise<number> } {
  let most = 0;
  let going = true;
  const watching = (async () => {
    for (; going; await sleep(20)) {
      const each = treeOf(pid).map((one) => ifRuns(() => memoryOf(one))?.resident || 0);
      most = Math.max(
        most,
        each.reduce((sum, megabytes) => sum + megabytes, 0),
      );
    }
  })();
  return {
    stop: async () => {
      going = false;
      await watching;
      return most;
    },
  };
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
