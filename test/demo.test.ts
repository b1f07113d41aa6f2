/** The demo as a user runs it, to its end: how it ends when all are reached and when not, and nothing left behind. */
import { afterEach, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { $ } from "zx";
import { repository } from "./lab/cache.ts";

let said = "";

/** @param atReady is called as soon as its nodes are Ready. */
async function demo(atReady: (pid: number) => Promise<unknown> = async () => {}): Promise<number> {
  const { pid, stdout, exited } = Bun.spawn(["npm", "run", "--silent", "demo", "--", "--exit"], {
    cwd: repository,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  said = "";
  let ready: Promise<unknown> | undefined;
  const decoder = new TextDecoder();
  for await (const chunk of stdout) {
    said += decoder.decode(chunk, { stream: true });
    if (said.includes("nodes Ready")) ready ??= atReady(pid);
  }
  await ready;
  console.log(said.slice(said.indexOf("who reaches whom, by")));
  return await exited;
}

/** A process with this name among those that one started, and those that they started. */
function descendant(of: number, name: string): number {
  const processes = readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return [];
    try {
      const status = readFileSync(`/proc/${pid}/status`, "utf8");
      const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)![1]!;
      return [{ pid: Number(pid), parent: Number(field("PPid")), name: field("Name") }];
    } catch {
      return []; // it has ended
    }
  });
  const family = new Set([of]);
  for (let before = 0; before !== family.size; ) {
    before = family.size;
    for (const { pid, parent } of processes) if (family.has(parent)) family.add(pid);
  }
  return processes.find((each) => each.name === name && family.has(each.pid))!.pid;
}

afterEach(async () => {
  const lab = dirname(dirname(/KUBECONFIG=(\S+)/.exec(said)![1]!));
  expect(existsSync(lab)).toBe(false);
  const name = basename(lab);
  expect((await $`find /sys/fs/cgroup -name ${name}`.quiet()).stdout).toBe("");
  // processes and mounts name it; namespaces end with the processes in them
  const left = await $`cat /proc/[0-9]*/cmdline /proc/[0-9]*/mounts 2>/dev/null`.quiet().nothrow();
  expect(left.stdout.includes(name)).toBe(false);
});

test("npm run demo -- --exit", async () => {
  expect(await demo()).toBe(0);
  expect(said).not.toContain("FAILED");
}, 300_000);

test("npm run demo -- --exit, and a node forwards no IPv6: it says what was not reached, and ends with 1", async () => {
  const drop = "table ip6 broken { chain forward { type filter hook forward priority 0; policy drop; }; }";
  expect(await demo((pid) => $`nsenter -t ${descendant(pid, "kubelet")} -n nft ${drop}`)).toBe(1);
  expect(said).toMatch(/FAILED {2}pod → pod on another node: \S+ → \S+, udp, ipv6, no answer/);
  expect(said).not.toMatch(/FAILED.*(ipv4|node → pod of its own)/);
}, 300_000);
