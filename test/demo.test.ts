/** The demo as a user runs it, to its end: how it ends when all are reached and when not, and nothing left behind. */
import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { $ } from "zx";
import { kubernetesDir, repository, wireguardGo } from "./lab/cache.ts";

let said = "";

/**
 * In a terminal of its own, which ends it too if this process is killed.
 * @param act is called as soon as it has said the words.
 */
async function demo(
  args: string[],
  words: string,
  act: (child: Bun.Subprocess) => Promise<unknown>,
): Promise<number> {
  said = "";
  let acted: Promise<unknown> | undefined;
  const decoder = new TextDecoder();
  const terminal = {
    data(_: Bun.Terminal, chunk: Uint8Array) {
      said += decoder.decode(chunk, { stream: true }).replaceAll("\r", "");
      if (acted || !said.includes(words)) return;
      acted = act(child);
      acted.catch(() => {}); // told of once it has ended
    },
  };
  const child = Bun.spawn(["npm", "run", "--silent", "demo", ...args], { cwd: repository, terminal });
  const code = await child.exited;
  console.log(said.slice(said.indexOf("who reaches whom, by")));
  await acted;
  return code;
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
  if (said === "") return;
  const lab = dirname(dirname(/KUBECONFIG=(\S+)/.exec(said)![1]!));
  expect(existsSync(lab)).toBe(false);
  const name = basename(lab);
  expect((await $`find /sys/fs/cgroup -name ${name}`.quiet()).stdout).toBe("");
  // processes and mounts name it; namespaces end with the processes in them
  const left = await $`cat /proc/[0-9]*/cmdline /proc/[0-9]*/mounts 2>/dev/null`.quiet().nothrow();
  expect(left.stdout.includes(name)).toBe(false);
});

test("what is installed for the demo is what it runs: no Helm, no tools for bills of materials", async () => {
  const home = mkdtempSync(join(tmpdir(), "wigglenet-demo-"));
  try {
    mkdirSync(`${home}/wigglenet`);
    const built = [kubernetesDir, dirname(wireguardGo)];
    for (const folder of built) symlinkSync(folder, `${home}/wigglenet/${basename(folder)}`);
    const script = `await (await import("${repository}/test/lab/install.ts")).installLab()`;
    await $({ quiet: true, env: { ...process.env, XDG_CACHE_HOME: home } })`${process.execPath} -e ${script}`;
    expect(readdirSync(`${home}/wigglenet`).sort()).toEqual([
      basename(kubernetesDir),
      "tools",
      basename(dirname(wireguardGo)),
    ]);
  } finally {
    rmSync(home, { recursive: true });
  }
  expect(readFileSync(`${repository}/test/demo.ts`, "utf8")).toContain("await installLab();");
}, 60_000);

test("npm run demo, until Ctrl-C: all are reached, and the commands that it prints are good", async () => {
  let pressed = 0;
  const code = await demo([], "Ctrl-C takes everything down.", async ({ terminal }) => {
    try {
      await lookAround();
    } finally {
      pressed = performance.now();
      terminal!.write("\x03");
    }
  });
  expect(code).toBe(130);
  expect(performance.now() - pressed).toBeLessThan(10_000);
  expect(said).not.toContain("FAILED");
}, 300_000);

/** Every command that it has printed, pasted into a shell. */
async function lookAround(): Promise<void> {
  const lines = /Look around.*:\n((?: {2}\S.*\n)+)/
    .exec(said)![1]!
    .split("\n")
    .map((line) => line.trim());
  const entering = lines.filter((line) => line.startsWith("nsenter"));
  const paste = async (...input: string[]) =>
    (await $({ quiet: true, input: input.join("\n") })`bash -e`).stdout;

  const seen = await paste(...lines.filter((line) => !entering.includes(line)));
  expect(seen).toMatch(/kube-system +wigglenet-\S+ +1\/1 +Running/);
  expect(seen).toContain('"msg":"in sync"');
  expect(seen).toMatch(/^web-\S+$/m);
  const [shell, underlay] = entering as [string, string];
  const tries = shell.split("try: ")[1]!;
  const node = await paste(shell, "hostname", tries);
  expect(node).toMatch(/^n1\ninterface: wigglenet$.*^10\.244\.\S+ dev wigglenet.*^table inet wigglenet/ms);
  // which would go on
  expect(await paste(underlay.replace(" #", " -c 1 #"))).toMatch(/^[\d:.]+ (IP6?|ARP,) /m);
}

test("npm run demo -- --exit: all are reached, and it ends with 0 by itself", async () => {
  expect(await demo(["--", "--exit"], "nodes Ready", async () => {})).toBe(0);
  expect(said).toContain("who reaches whom, by");
  expect(said).not.toContain("FAILED");
}, 300_000);

test("npm run demo -- --exit, and a node forwards no IPv6: it says what was not reached, and ends with 1", async () => {
  const drop = "table ip6 broken { chain forward { type filter hook forward priority 0; policy drop; }; }";
  const code = await demo(
    ["--", "--exit"],
    "nodes Ready",
    ({ pid }) => $`nsenter -t ${descendant(pid, "kubelet")} -n nft ${drop}`,
  );
  expect(code).toBe(1);
  expect(said).toMatch(/FAILED {2}pod → pod on another node: \S+ → \S+, udp, ipv6, no answer/);
  expect(said).not.toMatch(/FAILED.*(ipv4|node → pod of its own)/);
}, 300_000);
