/** The demo as a user runs it, to its end: everyone reached, and nothing left behind. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { basename, dirname } from "node:path";
import { $ } from "zx";
import { repository } from "./lab/cache.ts";

test("npm run demo -- --exit", async () => {
  const demo = await $({ cwd: repository })`npm run --silent demo -- --exit`.quiet().nothrow();
  console.log(demo.stdout.slice(demo.stdout.indexOf("who reaches whom, by")));
  expect(demo.exitCode).toBe(0);
  const lab = dirname(dirname(/KUBECONFIG=(\S+)/.exec(demo.stdout)![1]!));
  expect(existsSync(lab)).toBe(false);
  const name = basename(lab);
  expect((await $`find /sys/fs/cgroup -name ${name}`.quiet()).stdout).toBe("");
  // processes and mounts name it; namespaces end with the processes in them
  const left = await $`cat /proc/[0-9]*/cmdline /proc/[0-9]*/mounts 2>/dev/null`.quiet().nothrow();
  expect(left.stdout.includes(name)).toBe(false);
}, 300_000);
