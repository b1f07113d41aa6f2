/** The CNI file: whose it is, who may add to it, and what it keeps pods from. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { gatePath } from "../src/plan/cni.ts";
import { Lab } from "./lab/lab.ts";
import { cniFile, type LightNode } from "./lab/lightnode.ts";
import { patience, until } from "./lab/process.ts";
import { fileIdentity, stateOf } from "./lab/state.ts";

/** Where version 1.0.0 had the content, with a symbolic link to it in the CNI folder. */
const linked = "/run/wigglenet/10-wigglenet.conflist";

interface CniFile {
  cniVersion: string;
  name: string;
  plugins: ({ type: string; mtu?: number; ipam?: { resolvConf?: string } } & Record<string, unknown>)[];
}

const env = { RESYNC_PERIOD: "1", HEALTH_BIND_ADDR: "127.0.0.1:24602", ENABLE_METRICS: "1" };
let lab: Lab;
let node: LightNode;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 1, env });
  node = lab.nodes[0]!;
}, 60_000 * patience);
afterAll(() => lab[Symbol.asyncDispose]());

const read = () => JSON.parse(node.read(cniFile) ?? "null") as CniFile;
const types = () => read().plugins.map(({ type }) => type);
const write = (file: unknown) => node.write(cniFile, JSON.stringify(file));
const targetOf = async () => (await node.$`readlink ${cniFile}`.nothrow()).stdout.trim();

/** Waits for two more looks of the agent at everything. */
async function twoResyncs(): Promise<void> {
  const passes = async () => {
    const metrics = await node.namespace.run(["curl", "-sf", "http://127.0.0.1:9091/metrics"]);
    return Number(/^wigglenet_pass_duration_seconds_count (\d+)$/m.exec(metrics)?.[1]);
  };
  const before = await passes();
  await until("two more passes", async () => (await passes()) >= before + 2);
}

/** Addresses that host-local has given out, and links of pods. */
async function leftovers(): Promise<string[]> {
  const { stdout } = await node.$`ls /run/cni-ipam-state/wigglenet /sys/class/net 2> /dev/null || true`;
  return stdout.split("\n").filter((line) => /^[0-9a-f]+[.:]|^veth/.test(line));
}

test("it is a plain file that whoever mounts its folder can read", async () => {
  const { cni } = await stateOf(node);
  expect(cni.target).toBeUndefined();
  expect((await node.$`stat -c %a ${cniFile}`).stdout.trim()).toBe("644");
  expect([read().cniVersion, read().name, types()]).toEqual(["1.0.0", "wigglenet", ["ptp", "portmap"]]);
});

const tuning = { type: "tuning", sysctl: { "net.ipv4.conf.eth0.log_martians": "1" } };

describe("others' plugins", () => {
  test("stay where they are, over resyncs, a restart and a change of our own part", async () => {
    const before = read();
    await write({
      ...before,
      plugins: [before.plugins[0], tuning, before.plugins[1], { ...tuning, more: 1 }],
    });
    const identity = fileIdentity(node, cniFile);
    await twoResyncs();
    await node.stopAgent();
    node.startAgent();
    await node.inSync();
    expect(types()).toEqual(["ptp", "tuning", "portmap", "tuning"]);
    expect(fileIdentity(node, cniFile)).toBe(identity);

    await node.namespace.ip("link set eth0 mtu 1400");
    await until("the MTU to follow", () => read().plugins[0]!.mtu === 1320);
    expect(read().plugins.slice(1)).toEqual([tuning, before.plugins[1]!, { ...tuning, more: 1 }]);
    const pod = await node.pod("tuned");
    expect((await pod.$`cat /proc/sys/net/ipv4/conf/eth0/log_martians`).stdout.trim()).toBe("1");
    await pod.remove();
    await node.namespace.ip("link set eth0 mtu 1500");
    await until("the MTU to be back", () => read().plugins[0]!.mtu === 1420);
  });

  test("written in another order and spacing, the same is the same", async () => {
    const { plugins, name, cniVersion } = read();
    const sorted = plugins.map((plugin) => Object.fromEntries(Object.entries(plugin).sort()));
    await node.write(cniFile, JSON.stringify({ plugins: sorted, name, cniVersion }));
    const identity = fileIdentity(node, cniFile);
    await twoResyncs();
    expect(fileIdentity(node, cniFile)).toBe(identity);
  });

  test("do not keep ours from being repaired", async () => {
    const right = read();
    const [ptp, ...rest] = right.plugins;
    for (const wrong of [
      { ...right, name: "other" },
      { ...right, cniVersion: "0.3.1" },
      { ...right, plugins: rest },
      { ...right, plugins: [{ ...ptp, mtu: 9000 }, ...rest] },
      { ...right, plugins: [{ ...ptp, ipMasq: true, dns: { nameservers: ["192.0.2.1"] } }, ...rest] },
      { ...right, plugins: [{ ...ptp, ipam: { ...ptp!.ipam, resolvConf: "/etc/resolv.conf" } }, ...rest] },
      { ...right, plugins: [ptp, ...rest, ptp] },
    ]) {
      await write(wrong);
      await until("ours to be repaired", () => Bun.deepEquals(read(), right), {
        why: () => node.read(cniFile) ?? "it is gone",
      });
    }
  });
});

describe("pods wait for the agent", () => {
  test("after a reboot no pod starts before it is in sync, and nothing is left of the attempts", async () => {
    await node.powerCut();
    await node.boot();
    expect(types()).toContain("ptp");
    await expect(node.pod("early")).rejects.toThrow(gatePath);
    expect(await leftovers()).toEqual([]);
    node.startAgent();
    await node.inSync();
    expect(node.read(gatePath)).toBe("");
    const pod = await node.pod("late");
    await pod.remove();
    expect(await leftovers()).toEqual([]);
  });

  test("a pod is removed while they wait", async () => {
    const pod = await node.pod("p");
    expect(await leftovers()).toHaveLength(3);
    await node.stopAgent();
    await node.$`rm ${gatePath}`;
    await pod.remove();
    expect(await leftovers()).toEqual([]);
    node.startAgent();
    await until("pods to be let in again", () => node.read(gatePath) === "");
  });
});

describe("taken over", () => {
  /** The agent of another version has run: its file, under a look that never misses one. */
  async function takenOver(before: string): Promise<string> {
    await node.stopAgent();
    await node.$`rm ${gatePath}`;
    await node.$`/bin/bash -ec ${before}`;
    const gaps = node.namespace.start(
      "gaps",
      ["/bin/bash", "-c", `while :; do [ -s ${cniFile} ] || echo gap; done`],
      `${lab.underlay.dir}/log/gaps.log`,
    );
    node.startAgent();
    await node.inSync();
    await gaps.stop("SIGKILL");
    expect(await targetOf()).toBe("");
    expect(node.read(gatePath)).toBe("");
    const pod = await node.pod("p");
    await pod.remove();
    return gaps.tail();
  }

  test("from version 1.0.0, without a gap, a plugin that was appended to its file kept", async () => {
    const right = read();
    const [ptp, ...rest] = right.plugins;
    const { resolvConf: _, ...ipam } = ptp!.ipam!;
    const old = { ...right, plugins: [{ ...ptp, ipam }, ...rest, tuning] };
    await write(old);
    expect(await takenOver(`mv ${cniFile} ${linked}; ln -s ${linked} ${cniFile}`)).toBe("");
    expect(read()).toEqual({ ...right, plugins: [...right.plugins, tuning] });
    expect(node.read(linked)).toBeUndefined();
  });

  test("from version 1.0.0 after a reboot, when its link leads nowhere", async () => {
    await node.$`rm ${cniFile}; ln -s ${linked} ${cniFile}`;
    await node.stopAgent();
    await node.powerCut();
    await node.boot();
    node.startAgent();
    await node.inSync();
    expect([await targetOf(), types()]).toEqual(["", ["ptp", "portmap"]]);
  });

  test("from 0.7, without a gap", async () => {
    const [ptp, portmap] = read().plugins;
    const ipam = { ...ptp!.ipam, resolvConf: "" };
    const old = {
      cniVersion: "0.3.1",
      name: "wigglenet",
      plugins: [{ type: "ptp", ipam, dns: {} }, portmap],
    };
    expect(await takenOver(`echo '${JSON.stringify(old)}' > ${cniFile}`)).toBe("");
    expect(read().plugins).toEqual([ptp!, portmap!]);
  });
});

test("with FIREWALL_ONLY it goes, and what lets pods in", async () => {
  await node.stopAgent();
  node.startAgent({ FIREWALL_ONLY: "1" });
  await until("both to go", () => node.read(cniFile) === undefined && node.read(gatePath) === undefined);
});
