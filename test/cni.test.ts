/** The CNI file: whose it is, who may add to it, and what it keeps pods from. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { dirname } from "node:path";
import { gatePath } from "../src/plan/cni.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { fileIdentity, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { patience, until } from "./lab/process.ts";

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

/** What the agent answers at a port of its node. */
async function get(port: number, path: string): Promise<{ status: number; text: string }> {
  const ask = `const answer = await fetch("http://127.0.0.1:${port}${path}");
    console.log(JSON.stringify({ status: answer.status, text: await answer.text() }));`;
  const asked = node.namespace.run([process.execPath, "-e", ask]);
  return await asked.then(
    (answer) => JSON.parse(answer),
    (error: Error) => ({ status: 0, text: error.message }),
  );
}

const readyz = () => get(24_602, "/readyz");

/** Waits until `/readyz` says this. */
async function says(status: number, ...parts: string[]): Promise<string> {
  let last = "";
  await until(
    `/readyz to say ${status} ${parts.join(", ")}`,
    async () => {
      const { status: answered, text } = await readyz();
      last = `${answered} ${text}`;
      return answered === status && parts.every((part) => text.includes(part));
    },
    { why: () => last },
  );
  return last;
}

/** Waits for two more looks of the agent at everything. */
async function twoResyncs(): Promise<void> {
  const passes = async () => {
    const { text } = await get(9091, "/metrics");
    return Number(/^wigglenet_pass_duration_seconds_count (\d+)$/m.exec(text)?.[1]);
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

describe("a file of another plugin", () => {
  const own = "10-wigglenet.conflist";
  const folder = dirname(cniFile);
  const conf = (type: string) => JSON.stringify({ cniVersion: "1.0.0", name: `${type}-net`, type });
  const conflist = (...plugins: unknown[]) =>
    JSON.stringify({ cniVersion: "1.0.0", name: "another", plugins });
  const put = (name: string, content: string) => node.write(`${folder}/${name}`, content);
  const removed = async (...names: string[]) => {
    await node.$`cd ${folder} && rm -rf ${names}`;
    await until("nothing to be said", async () =>
      Bun.deepEquals(await readyz(), { status: 200, text: "ok\n" }),
    );
  };

  test.each<[title: string, name: string, content: () => string, part: string]>([
    ["a list", "10-containerd-net.conflist", () => conflist({ type: "bridge" }), "bridge"],
    ["a single plugin", "10-calico.conf", () => conf("calico"), "calico"],
    ["JSON", "05-x.json", () => conf("x"), "x-net"],
    ["a hidden one", ".x.conflist", () => conflist({ type: "bridge" }), "bridge"],
    ["an extension alone", ".conflist", () => conflist({ type: "bridge" }), "bridge"],
    // containerd then starts no pod at all.
    ["broken", "00-broken.conflist", () => "{", "cannot be used"],
    ["empty", "00-empty.conf", () => "", "cannot be used"],
    ["with a byte order mark", "00-bom.conf", () => `\uFEFF${conf("bridge")}`, "cannot be used"],
    ["without plugins", "00-none.conflist", () => conflist(), "cannot be used"],
    ["a list in a file for one plugin", "00-list.conf", () => conflist({ type: "ptp" }), "cannot be used"],
    ["too large to be one", "00-large.conflist", () => " ".repeat(3_000_000), "cannot be used"],
    [
      "an outdated copy of ours",
      "02-istio-cni.conflist",
      () => {
        const [ptp, portmap] = read().plugins;
        return conflist({ ...ptp, mtu: 1280 }, portmap, { type: "istio-cni" });
      },
      "istio-cni",
    ],
  ])("that comes before ours: %s", async (_, name, content, part) => {
    await put(name, content());
    await says(503, name, own, part);
    await removed(name);
  });

  test.each<[title: string, prepare: string, name: string, part?: string]>([
    ["a link that leads nowhere", `ln -s /nowhere ${folder}/00-link.conf`, "00-link.conf"],
    ["a link to a folder", `ln -s /tmp ${folder}/00-folder.conf`, "00-folder.conf"],
    ["a pipe", `mkfifo ${folder}/00-pipe.conflist`, "00-pipe.conflist"],
    [
      "what the agent may not read",
      `ln -s /proc/sys/net/ipv4/route/flush ${folder}/00-denied.conf`,
      "00-denied.conf",
      "cannot be read by this agent",
    ],
  ])("that cannot be read: %s", async (_, prepare, name, part = "cannot be used") => {
    await node.$`/bin/sh -ec ${prepare}`;
    await says(503, name, own, part);
    await removed(name);
  });

  test("multus only warns, as it may delegate to ours; what comes after it counts", async () => {
    await put("00-multus.conf", conf("multus"));
    await says(200, "ok\n", "warning: ", "00-multus.conf", own);
    await put("00-multus.conf", conf("multus-shim"));
    await put("10-flannel.conflist", conflist({ type: "flannel" }));
    await says(503, "10-flannel.conflist", own);
    await removed("00-multus.conf", "10-flannel.conflist");
  });

  test("one that chains more to a copy of ours only warns", async () => {
    const { plugins } = read();
    await put("02-istio-cni.conflist", conflist(...plugins, { type: "istio-cni" }));
    await says(200, "warning: ", "02-istio-cni.conflist", own);
    await removed("02-istio-cni.conflist");
  });

  test("what no runtime reads, or reads after ours, is nothing to it", async () => {
    await put("10-x.conflist.bak", "{");
    await put("20-other.conflist", conflist({ type: "bridge" }));
    await node.$`mkdir ${folder}/00-folder.conflist`;
    await twoResyncs();
    expect(await readyz()).toEqual({ status: 200, text: "ok\n" });
    await removed("10-x.conflist.bak", "20-other.conflist", "00-folder.conflist");
  });

  test("is said once, and that it is gone", async () => {
    const lines = () => node.agentLog().filter((line) => JSON.stringify(line).includes("03-once"));
    await put("03-once.conflist", conflist({ type: "calico" }));
    await says(503, "03-once.conflist");
    await twoResyncs();
    expect(lines()).toHaveLength(1);
    await removed("03-once.conflist");
  });

  test("is seen at once, as what becomes of ours, by an agent whose resync is an hour away", async () => {
    await node.stopAgent();
    node.startAgent({ RESYNC_PERIOD: "3600" });
    await node.inSync();
    await put("00-x.conf", conf("x"));
    await says(503, "00-x.conf");
    await removed("00-x.conf");
    await node.$`rm ${cniFile}`;
    await until("ours to be back", () => node.read(cniFile));
    // Somebody cleans up, and makes the folder anew if the agent has not done so before.
    await node.$`mv ${folder} ${folder}.old && mkdir -p ${folder}`;
    await until("ours to be in the new folder", () => node.read(cniFile));
    await put("00-x.conf", conf("x"));
    await says(503, "00-x.conf");
    await removed("00-x.conf");
    await node.stopAgent();
    node.startAgent();
    await node.inSync();
  });
});

test("a folder in the place of the file is named with the remedy, and the file is back once it is gone", async () => {
  // The agent may be faster.
  await node.$`until rm -f ${cniFile} && mkdir ${cniFile} 2> /dev/null; do :; done`;
  await says(503, cniFile, "EISDIR", "remove the folder");
  await node.$`rmdir ${cniFile}`;
  await until("the file to be back", () => node.read(cniFile));
  await says(200, "ok");
});

test("where /etc is read-only but for the CNI folder, the key may be elsewhere, and what to set is said", async () => {
  await node.stopAgent();
  await node.$`mount --bind /etc /etc && mount --bind /etc/cni/net.d /etc/cni/net.d && mount -o remount,ro,bind /etc`;
  const key = "/etc/wigglenet/private.key";
  const at = "/var/lib/wigglenet/private.key";
  await node.$`mkdir /run/etc && cp -a /etc/wigglenet/. /run/etc && mount --bind /run/etc /etc/wigglenet`;
  await node.$`rm ${key} && mount -o remount,ro,bind /etc/wigglenet`;
  node.startAgent();
  expect(await node.agentExit()).toBe(1);
  const said = JSON.stringify(node.agentLog());
  for (const part of [key, "read-only", "WIGGLENET_PRIVKEY_PATH", at]) expect(said).toContain(part);
  node.startAgent({ WIGGLENET_PRIVKEY_PATH: at });
  await node.inSync();
  expect(node.read(at)).toMatch(/^[\w+/]{43}=\n$/);
  await node.stopAgent();

  await node.$`rm ${cniFile} && mount -o remount,ro,bind /etc/cni/net.d`;
  node.startAgent({ WIGGLENET_PRIVKEY_PATH: at });
  await says(503, cniFile, "read-only", "CNI_CONFIG_PATH");
  await node.$`umount /etc/cni/net.d /etc/wigglenet /etc`;
  await says(200, "ok");
});

test("with FIREWALL_ONLY it goes, and what lets pods in", async () => {
  await node.stopAgent();
  node.startAgent({ FIREWALL_ONLY: "1" });
  await until("both to go", () => node.read(cniFile) === undefined && node.read(gatePath) === undefined);
});
