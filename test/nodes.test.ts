/** What a node tells of itself, what it finds wanting, and what it does not take for a reason to act. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { version } from "../package.json";
import { annotationsOf } from "../src/plan/overlay/node.ts";
import { repository } from "./lab/cache.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { sleep, until } from "./lab/process.ts";

const addresses = { ipv4: "192.0.2.77", ipv6: "2001:db8:77::1" };
let lab: Lab;
let n1: LightNode, n2: LightNode;

beforeAll(async () => {
  lab = await Lab.start({
    nodes: [{ env: { NODE_IP_INTERFACES: "lan0" } }, { forwarding: false }],
    agents: false,
    allowed: { nodeIps: ["192.0.2.0/24", "2001:db8:77::/64"] },
  });
  [n1, n2] = lab.nodes as [LightNode, LightNode];
  await n1.namespace.ip(
    "link add lan0 type bridge",
    "link set lan0 up",
    `addr add ${addresses.ipv4}/32 dev lan0`,
    `addr add ${addresses.ipv6}/128 dev lan0 nodad`,
  );
  await lab.startAgents();
});
afterAll(() => lab?.[Symbol.asyncDispose]());

/** Whether IPv4 and IPv6 are forwarded. */
async function forwarding(node: LightNode): Promise<string[]> {
  const { stdout } = await node.$`cd /proc/sys/net && cat ipv4/ip_forward ipv6/conf/all/forwarding`;
  return stdout.trim().split("\n");
}

/** Waits until `/readyz` of a node says this. */
async function says(node: LightNode, status: number, ...parts: string[]): Promise<void> {
  let last: unknown;
  const ask = `const answer = await fetch("http://127.0.0.1:24602/readyz");
    console.log(answer.status, await answer.text());`;
  await until(
    `/readyz to say ${status} ${parts.join(", ")}`,
    async () => {
      const answer = await node.namespace.run([process.execPath, "-e", ask]).catch(String);
      last = answer;
      return answer.startsWith(`${status} `) && parts.every((part) => answer.includes(part));
    },
    { why: () => String(last) },
  );
}

/** Gives the bridge another address, and waits until that is announced: what was done before has been seen by then. */
async function announceAnother(address: string): Promise<void> {
  await n1.namespace.ip(`addr add ${address}/32 dev lan0`);
  await until("the other address to be announced", async () =>
    (await n1.object()).metadata.annotations?.["wigglenet/node-ips"]?.includes(address),
  );
}

test("addresses of NODE_IP_INTERFACES are reached by the tunnel; forwarding that is off is switched on", async () => {
  // Before any pod, as the ptp plugin would do it with the first.
  await until("forwarding to be on", async () => (await forwarding(n2)).join() === "1,1");
  const pod = await n2.pod("p");
  await lab.shakeHands();
  const lan: Host = { name: "lan0 of n1", addresses, place: n1.place };
  await using capture = await lab.capture(`host ${addresses.ipv4} or host ${addresses.ipv6}`);
  expect(await lab.unreached([[pod, lan]])).toEqual([]);
  expect(await capture.stop()).toEqual([]);
});

describe("sysctls", () => {
  const health = { HEALTH_BIND_ADDR: "127.0.0.1:24602", RESYNC_PERIOD: "1" };
  const names = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];
  const set = (node: LightNode, value: number) =>
    node.namespace.sysctl(Object.fromEntries(names.map((name) => [name, value])));

  test("that cannot be written keep no link down; what is missing is said, with the remedy", async () => {
    const readOnly = "/run/sys-net";
    await n2.stopAgent();
    await n2.$`mkdir ${readOnly} && mount --bind /proc/sys/net ${readOnly} && mount -o remount,ro,bind ${readOnly}`;
    await n2.$`rm /etc/cni/net.d/*`;
    await n2.namespace.sysctl({
      "net.ipv6.conf.default.accept_dad": 1,
      "net.ipv4.conf.wigglenet.rp_filter": 0,
    });
    n2.startAgent({ ...health, PROC_SYS_NET_PATH: readOnly });
    await n2.ready();
    await says(
      n2,
      200,
      "warning: ",
      "net.ipv6.conf.default.accept_dad=0",
      "/etc/sysctl.d",
      "PROC_SYS_NET_PATH",
    );
    await n2.namespace.sysctl({ "net.ipv4.conf.wigglenet.rp_filter": 1 });
    await says(n2, 503, "net.ipv4.conf.wigglenet.rp_filter=2");
    await n2.namespace.sysctl({
      "net.ipv6.conf.default.accept_dad": 0,
      "net.ipv4.conf.wigglenet.rp_filter": 2,
    });
    await says(n2, 200, "ok");

    for (const name of names) {
      await n2.namespace.sysctl({ [name]: 0 });
      await says(n2, 503, "forwarding is off", name, "/etc/sysctl.d", "PROC_SYS_NET_PATH");
      await set(n2, 1);
      await says(n2, 200, "ok");
    }
    const lines = n2.agentLog().filter((line) => String(line.msg).startsWith("forwarding is off"));
    expect(lines).toHaveLength(2);
    await n2.stopAgent();
    n2.startAgent(health);
    await n2.inSync();
  });

  test("a default route that IPv6 forwarding would take away is not, and the remedy is named", async () => {
    const route = "default via fd30::1 dev eth0 proto ra metric 512";
    await n2.namespace.ip(`route add ${route}`);
    await n2.namespace.sysctl({ "net.ipv6.conf.eth0.accept_ra": 1 });
    await set(n2, 0);
    await says(n2, 503, "eth0", "net.ipv6.conf.eth0.accept_ra=2", names[1]!);
    expect(await forwarding(n2)).toEqual(["1", "0"]);
    await n2.namespace.sysctl({ "net.ipv6.conf.eth0.accept_ra": 2 });
    await says(n2, 200, "ok");
    expect(await forwarding(n2)).toEqual(["1", "1"]);
    await n2.namespace.ip(`route del ${route}`);
  });
});

test("an address of others on the node, as on the link of an IPVS kube-proxy, may go: the watches stay", async () => {
  const watches = async () => {
    const { stdout } = await n1.$`ss -Htn state established ${"( dport = :6443 )"}`;
    return stdout
      .split("\n")
      .filter(Boolean)
      .map((line) => line.split(/ +/)[2]);
  };
  await n1.namespace.ip("link add kube-ipvs0 type bridge", "addr add 10.96.0.1/32 dev kube-ipvs0");
  await announceAnother("192.0.2.79");
  // A request that is under way has a connection for a moment, too.
  const before = await until("watches alone", async () => {
    const first = await watches();
    await sleep(200);
    const second = await watches();
    return first.length >= 2 && Bun.deepEquals(first, second) && second;
  });
  await n1.namespace.ip("addr del 10.96.0.1/32 dev kube-ipvs0");
  await announceAnother("192.0.2.80");
  expect(await watches()).toEqual(expect.arrayContaining(before));
  // One of the node's own is another matter.
  await n1.namespace.ip("addr del 192.0.2.80/32 dev lan0");
  await until("other watches", async () => {
    const now = await watches();
    return now.length >= before.length && now.every((watch) => !before.includes(watch));
  });
});

test("a peer whose going failed halfway goes at the retry", async () => {
  const ip = `#!/bin/sh\ntest "$2" = -batch && test -e /opt/way/blocked && exit 1\nexec /sbin/ip "$@"\n`;
  await n1.$`mkdir -p /opt/way`;
  await n1.write("/opt/way/ip", ip);
  await n1.$`chmod +x /opt/way/ip`;
  await n1.stopAgent();
  n1.startAgent({ PATH: `/opt/way:${n1.agentEnv().PATH}` });
  await n1.inSync();
  const key = randomBytes(32).toString("base64");
  await lab.controlPlane.api.create({
    apiVersion: "v1",
    kind: "Node",
    metadata: {
      name: "leaver",
      annotations: annotationsOf({
        version,
        publicKey: key,
        podCidrs: ["10.99.0.0/24"],
        addresses: ["172.30.0.99"],
        endpoints: ["172.30.0.99"],
      }),
    },
  });
  const peers = async () => (await n1.$`wg show wigglenet peers`).stdout;
  await until("the peer", async () => (await peers()).includes(key));
  // Blocked before its routes are there, it would be their addition that fails.
  const routes = async () => (await n1.$`ip route show table 24601`).stdout;
  await until("its last route", async () => (await routes()).includes("172.30.0.99 dev wigglenet"));
  await n1.$`touch /opt/way/blocked`;
  await lab.controlPlane.api.remove("/api/v1/nodes/leaver");
  await until("a failure", () => n1.agentLog().some((line) => line.resource === "routes to remove"));
  expect(await peers()).toContain(key);
  await n1.$`rm /opt/way/blocked`;
  await until("the peer to be gone", async () => !(await peers()).includes(key));
});

describe("a second agent on the node", () => {
  const health = { HEALTH_BIND_ADDR: "127.0.0.1:24602" };
  const log = (name: string) => `${lab.underlay.dir}/log/${name}.log`;
  /** With its own processes, as in a container. */
  const contained = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"];
  const agent = [`${repository}/dist/wigglenet`, "agent"];
  const start = (name: string, argv = [...contained, ...agent], env: Record<string, string> = {}) =>
    n1.namespace.start(name, argv, log(name), { ...n1.agentEnv({ HEALTH_BIND_ADDR: "", ...env }) });
  const toldOf = () => n1.agentLog().filter((line) => JSON.stringify(line).includes("another agent"));

  test("ends and changes nothing; each of both says once what the other is", async () => {
    await n1.stopAgent();
    n1.startAgent(health);
    await n1.inSync();
    const before = await stateOf(n1);
    const key = { WIGGLENET_PRIVKEY_PATH: "/etc/wigglenet/another.key" };
    const second = start("second", undefined, { ...key, KUBERNETES_SERVICE_HOST: "10.96.0.1" });
    const third = start("third", agent);
    expect(await Promise.all([second.exited, third.exited])).toEqual([1, 1]);
    for (const { name } of [second, third]) {
      const said = readFileSync(log(name), "utf8");
      expect(said.match(/another agent/g)).toHaveLength(2);
      for (const part of ["waiting", version, `pid ${await innerPid()}`, "wigglenet uninstall"])
        expect(said).toContain(part);
    }
    expect(await stateOf(n1)).toEqual(before);
    expect(n1.read(key.WIGGLENET_PRIVKEY_PATH)).toBeUndefined();
    const told = JSON.stringify(toldOf());
    for (const part of [version, "kubelet", "pid 1 in its container"]) expect(told).toContain(part);
    expect(toldOf()).toHaveLength(2);
    await says(n1, 200, "ok\nwarning: another agent");
    expect(n1.agentRuns).toBe(true);
  });

  test("takes over when the first one ends, as in an upgrade", async () => {
    const next = start("next", agent);
    await until("it to wait", () => readFileSync(log("next"), "utf8").includes("another agent"));
    await n1.stopAgent();
    await until("it to be in sync", () => readFileSync(log("next"), "utf8").includes('"in sync"'));
    // Another one waits for this one then, and ends when it is told to.
    const waiting = start("waiting", agent);
    await until("the third to wait", () => readFileSync(log("waiting"), "utf8").includes("another agent"));
    expect(await waiting.stop()).toBe(0);
    await next.stop();
    n1.startAgent();
    await n1.inSync();
  });

  test("something else that holds its place and says nothing keeps it from starting, and is named", async () => {
    await n1.stopAgent();
    const script = String.raw`Bun.listen({ unix: "\0wigglenet-agent", socket: { data() {} } }); setInterval(() => 0, 1e6)`;
    const holder = n1.namespace.start("holder", [process.execPath, "-e", script], log("holder"));
    await until("it to hold", async () =>
      (await n1.$`cat /proc/net/unix`).stdout.includes("@wigglenet-agent"),
    );
    n1.startAgent();
    expect(await n1.agentExit()).toBe(1);
    expect(JSON.stringify(n1.agentLog())).toContain("does not answer");
    await holder.stop("SIGKILL");
    n1.startAgent();
    await n1.inSync();
  });

  async function innerPid(): Promise<string> {
    const pids = (await n1.$`pgrep -x wigglenet`).stdout.trim().split("\n");
    return pids[0]!;
  }
});
