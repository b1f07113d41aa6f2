/**
 * The agent as a service of systemd, put there by `wigglenet install`, with the kernel's WireGuard: run by vm.test.ts in the
 * virtual machine. The other node's agent is the lab's.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { repository } from "./lab/cache.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const self = `${repository}/dist/wigglenet`;
const kubeconfig = "/etc/kubernetes/wigglenet/kubeconfig";
const acceptDad = "/proc/sys/net/ipv6/conf/default/accept_dad";
const settings = "/etc/wigglenet/wigglenet.env";
let lab: Lab;
let node: LightNode;
let pods: [Pod, Pod];

beforeAll(async () => {
  lab = await Lab.start({ nodes: [{ systemd: true }, {}], agents: false });
  node = lab.nodes[0]!;
  lab.nodes[1]!.startAgent();
  await until("systemd to be up", async () => (await systemctl("is-system-running")) === "running", {
    timeout: 30_000,
    every: 200,
  });
}, 300_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** What systemctl prints, whatever its exit code. */
async function systemctl(...words: string[]): Promise<string> {
  return (await node.$`systemctl ${words}`.nothrow()).stdout.trim();
}

/** A property of the service. */
const shown = (property: string) => systemctl("show", "--value", `--property=${property}`, "wigglenet");

/** The agent's log since its last start. */
async function log(): Promise<{ level: string; msg: string; commands?: string[] }[]> {
  const output = await node.$`journalctl --no-pager -o cat _PID=${await shown("MainPID")}`.nothrow();
  return output.stdout.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line)] : []));
}

const inSync = () =>
  until("the agent to be in sync", async () => (await log()).some((line) => line.msg === "in sync"), {
    every: 300,
    why: async () => (await node.$`journalctl --no-pager -o cat -u wigglenet | tail -n 20`.nothrow()).stdout,
  });

/** Streams between the pods, one each way, of either family. */
async function streams(): Promise<{ lost(): Promise<number> }> {
  const all = [
    await lab.probe(...pods, { family: "ipv4", rate: 20 }),
    await lab.probe(pods[1], pods[0], { family: "ipv6", rate: 20 }),
  ];
  return {
    lost: async () =>
      (await Promise.all(all.map((each) => each.stop()))).reduce((sum, { lost }) => sum + lost, 0),
  };
}

test("install --dry-run prints what it would do, and does nothing", async () => {
  const said = await node.namespace.run([self, "install", "--kubeconfig", kubeconfig, "--dry-run"]);
  expect(said).toContain(`install -D -m 0755 ${self} /usr/local/bin/wigglenet.new\n`);
  expect(said).toContain("NODE_NAME=n1\n");
  expect(said).toContain(`KUBECONFIG=${kubeconfig}\n`);
  expect(said).toContain("#MASQUERADE_IPV4=1\n");
  expect(said).toContain("systemctl enable wigglenet.service\nsystemctl restart wigglenet.service\n");
  expect(node.read(settings)).toBeUndefined();
  expect(await shown("LoadState")).toBe("not-found");
}, 60_000);

test("install copies, writes, enables and starts; pods reach each other by the kernel's WireGuard", async () => {
  console.log(await node.namespace.run([self, "install", "--kubeconfig", kubeconfig]));
  expect(await shown("ActiveState")).toBe("active");
  expect(await shown("UnitFileState")).toBe("enabled");
  await inSync();
  await lab.nodes[1]!.ready();
  pods = [await node.pod("p"), await lab.nodes[1]!.pod("p")];
  expect(await node.namespace.run(["ip", "-d", "link", "show", "dev", "wigglenet"])).toContain("wireguard");
  await lab.shakeHands();
  expect(await lab.unreached(pods)).toEqual([]);
}, 300_000);

test("install once more does nothing, and keeps settings that were edited", async () => {
  await node.write(settings, `${node.read(settings)}RESYNC_PERIOD=3600\n`);
  const before = await shown("MainPID");
  const said = await node.namespace.run([self, "install"]);
  expect(said).toBe("nothing to do: it is installed, and runs\n");
  expect(await shown("MainPID")).toBe(before);
  expect(node.read(settings)).toEndWith("RESYNC_PERIOD=3600\n");
}, 60_000);

test("restarted and killed, it loses no packet and writes nothing", async () => {
  const running = await streams();
  await systemctl("restart", "wigglenet");
  await inSync();
  expect((await log()).flatMap((line) => line.commands ?? [])).toEqual([]);
  const before = await shown("MainPID");
  await systemctl("kill", "-s", "KILL", "wigglenet");
  await until("another agent", async () => !["0", before].includes(await shown("MainPID")), {
    every: 60,
  });
  await inSync();
  expect((await log()).flatMap((line) => line.commands ?? [])).toEqual([]);
  expect(await shown("NRestarts")).toBe("1");
  expect(await running.lost()).toBe(0);
}, 120_000);

test("the hardened unit sees and repairs every drift, without a word of the resync", async () => {
  const state = async () => {
    const commands = [
      "nft list table inet wigglenet",
      "ip rule",
      "ip -6 route show table 24601",
      "wg show wigglenet peers",
    ];
    const outputs = await Promise.all(commands.map((each) => node.$({ nothrow: true })`sh -c ${each}`));
    return outputs.map(({ stdout }) => stdout);
  };
  const before = await state();
  await node.$`nft flush chain inet wigglenet forward`;
  await node.$`ip rule delete priority 2459; ip -6 route flush table 24601`;
  await until("firewall, rule and routes to be back", async () => Bun.deepEquals(await state(), before));
  await node.$`echo 1 > ${acceptDad}; ip link delete wigglenet`;
  await until("the link to be back, with its peer", async () => Bun.deepEquals(await state(), before));
  expect(await node.$`cat ${acceptDad}`.text()).toBe("0\n");
  await node.$`rm ${cniFile}`;
  await systemctl("restart", "wigglenet");
  await until("the CNI file to be back", () => node.read(cniFile));
  expect(atLeast("error", await log())).toEqual([]);
  expect(
    await node.$`grep -h "^Cap\\|^Seccomp:\\|^NoNewPrivs" /proc/${await shown("MainPID")}/status`.text(),
  ).toMatch(
    /CapPrm:\t0000000000001000\nCapEff:\t0000000000001000\nCapBnd:\t0000000000001000\n.*\nNoNewPrivs:\t1\nSeccomp:\t2\n/s,
  );
}, 120_000);

test("by iptables-legacy, with its drop-in, and by a wireguard-go that outlives the agent, it has all rights too", async () => {
  const edited = node.read(settings)!;
  await node.write(settings, `${edited}FIREWALL_BACKEND=iptables\nWIREGUARD=userspace\n`);
  const dropIn = "/etc/systemd/system/wigglenet.service.d/override.conf";
  await node.write(
    dropIn,
    "[Service]\nCapabilityBoundingSet=CAP_NET_RAW\nReadWritePaths=/run/xtables.lock\n",
  );
  // As kubelet does: it tells the agent which iptables a node uses, makes the lock and loads the modules.
  for (const tool of ["iptables", "ip6tables"])
    await node.$`${`${tool}-legacy`} -t mangle -N KUBE-IPTABLES-HINT`;
  await systemctl("daemon-reload");
  await systemctl("stop", "wigglenet");
  await node.$`ip link delete wigglenet`;
  await systemctl("start", "wigglenet");
  await inSync();
  expect(atLeast("error", await log())).toEqual([]);
  expect(await node.$`iptables-legacy-save`.text()).toContain("WIGGLENET-FILTER");
  await lab.shakeHands();
  expect(await lab.unreached(pods)).toEqual([]);
  await systemctl("stop", "wigglenet");
  expect(await node.$`pgrep -x wireguard-go`.text()).not.toBe("");
  expect(await lab.unreached(pods)).toEqual([]);
  await node.write(settings, edited);
  await node.$`ip link delete wigglenet`;
  await systemctl("start", "wigglenet");
  await inSync();
  await lab.shakeHands();
  expect(await node.$`iptables-legacy-save`.text()).not.toContain("WIGGLENET");
  await node.$`rm -r ${dirname(dropIn)}`;
  await systemctl("daemon-reload");
}, 240_000);

test("wrong settings stop it with one message, and it is not tried again; the data path stays", async () => {
  const right = node.read(settings)!;
  const running = await streams();
  await node.write(settings, `${right}WIGGLENET_WG_PORT=0\n`);
  await systemctl("restart", "wigglenet");
  await until("the service to fail", async () => (await shown("ActiveState")) === "failed", { every: 60 });
  expect(await shown("ExecMainStatus")).toBe("2");
  expect((await node.$`journalctl --no-pager -o cat -u wigglenet | tail -n 20`).stdout).toContain(
    'WIGGLENET_WG_PORT="0": must be a whole number from 1 to 65535',
  );
  const refused = await node.$`${self} install`.nothrow();
  expect([refused.exitCode, refused.stderr]).toEqual([2, expect.stringContaining('WIGGLENET_WG_PORT="0"')]);
  await node.write(settings, right);
  await systemctl("start", "wigglenet");
  await inSync();
  expect(await running.lost()).toBe(0);
}, 120_000);

/** The tests of a guest run without it; the executable needs it for bun:ffi. */
const withJit = { env: { BUN_JSC_useJIT: "1" } };

test("uninstall leaves the data path, and says what would remove it; --purge does", async () => {
  const running = await streams();
  const said = await node.namespace.run(["/usr/local/bin/wigglenet", "uninstall"], withJit);
  console.log(said);
  expect(said).toContain("nft delete table inet wigglenet\n");
  expect(said).toContain("rm /etc/wigglenet/private.key\n");
  expect(existsSync(`/proc/${node.namespace.pid}/root/usr/local/bin/wigglenet`)).toBe(false);
  expect(await shown("LoadState")).toBe("not-found");
  expect(await running.lost()).toBe(0);

  await node.namespace.run([self, "uninstall", "--purge"], withJit);
  const left = [
    "ip link show dev wigglenet",
    "nft list table inet wigglenet",
    "(ip rule; ip -6 rule) | grep 'proto 246'",
    "ip route show table all proto 246; ip -6 route show table all proto 246",
    `ls ${cniFile} ${settings} /etc/wigglenet/private.key /run/wigglenet`,
  ];
  for (const command of left)
    expect([command, (await node.$`sh -c ${command}`.nothrow()).stdout]).toEqual([command, ""]);
  expect(await node.namespace.run([self, "uninstall", "--purge"], withJit)).toBe(
    "nothing to do: nothing of it is here\n",
  );
}, 180_000);
