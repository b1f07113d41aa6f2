/** Whole nodes: real kubelets, the agent from its image as the DaemonSet of deploy/manifest.yaml, real kube-proxy. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync } from "node:fs";
import { gatePath } from "../src/plan/cni.ts";
import { AgentDaemonSet } from "./lab/cluster/agentdaemonset.ts";
import type { ApiObject } from "./lab/cluster/api.ts";
import { Cluster, ClusterPod, isReady, type PodObject } from "./lab/cluster/cluster.ts";
import { Pod } from "./lab/cluster/pod.ts";
import type { SandboxAttempt } from "./lab/cluster/sandboxes.ts";
import { Capture } from "./lab/probe/capture.ts";
import { paths, reachability, settle, unreached } from "./lab/probe/reachability.ts";
import { until } from "./lab/process.ts";

setDefaultTimeout(120_000);

const netAdmin = 1n << 12n;

let cluster: Cluster;
let agents: AgentDaemonSet;
let pods: ClusterPod[];

beforeAll(async () => {
  const begin = performance.now();
  cluster = await Cluster.start({ nodes: 3, proxyModes: ["nftables", "nftables", "iptables"] });
  agents = new AgentDaemonSet(cluster);
  console.log(`control plane and three nodes: ${((performance.now() - begin) / 1000).toFixed(1)} s`);
});

afterAll(async () => {
  const { dir } = cluster.underlay;
  const pids = cluster.nodes.map((node) => node.namespace.pid);
  await cluster[Symbol.asyncDispose]();
  for (const left of [dir, ...pids.map((pid) => `/proc/${pid}`)]) expect(existsSync(left)).toBe(false);
});

test("kubectl apply makes nodes Ready within 5 s of the agent's start", async () => {
  const before = await cluster.api.nodes();
  expect(before.map((node) => isReady(node))).toEqual([false, false, false]);
  await cluster.kubectl`apply -f deploy/manifest.yaml`;
  const readyAt = new Map<string, number>();
  await until(
    "nodes to be Ready",
    async () => {
      for (const node of await cluster.api.nodes())
        if (isReady(node) && !readyAt.has(node.metadata.name)) readyAt.set(node.metadata.name, Date.now());
      return readyAt.size === 3;
    },
    { timeout: 30_000 },
  );
  const took = await Promise.all(
    cluster.nodes.map(async ({ name }) => readyAt.get(name)! - Date.parse((await agents.log(name))[0]!.time)),
  );
  console.log(`agent's start to Ready: ${took.join(", ")} ms`);
  expect(Math.max(...took)).toBeLessThan(5000);
});

test("a Deployment's pods reach each other and every node, through the tunnel only; Services work", async () => {
  await cluster.kubectl`apply -f test/web.yaml`;
  pods = await cluster.pods("app=web");
  expect(new Set(pods.map(({ node }) => node.name)).size).toBe(3);
  await using clear = await Capture.start(cluster.underlay);
  expect(await allUnreached()).toEqual([]);
  expect(await clear.stop()).toEqual([]);
});

test("the admission policy's expressions fit a Node's schema", async () => {
  const path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/wigglenet";
  const status = await until("the policy's expressions to be checked", async () => {
    const policy = await cluster.api.get<ApiObject & { status?: { typeChecking?: object } }>(path);
    return policy.status?.typeChecking;
  });
  expect(status).toEqual({});
});

test("a new pod's first IPv6 connection works within 200 ms of its CNI ADD", async () => {
  const node = cluster.node("n1");
  const there = pods.find((pod) => pod.node !== node)!;
  for (const name of ["out", "in"]) {
    const pod = await Pod.add(node, name, {});
    node.pods.set(name, pod);
    const [from, to] = name === "out" ? [pod, there] : [there, pod];
    const first = await from.place.reach({ protocol: "tcp", address: to.addresses.ipv6!, timeout: 200 });
    expect(first).toMatchObject({ ok: true });
    await pod.remove();
  }
});

describe("the agent's container", () => {
  test("has one capability, a read-only root, no shell, and the memory that it requests", async () => {
    const node = cluster.node("n1");
    const { pid } = await node.task((await agents.pod("n1")).metadata.uid, "wigglenet");
    const status = (await node.$`cat /proc/${pid}/status`).stdout;
    for (const set of ["CapPrm", "CapEff", "CapBnd"])
      expect(BigInt(`0x${new RegExp(`${set}:\\s*(\\w+)`).exec(status)![1]}`)).toBe(netAdmin);
    const resident = Number(/VmRSS:\s*(\d+) kB/.exec(status)![1]) / 1024;
    console.log(`the agent has ${resident.toFixed(0)} MiB resident`);
    // what it requests
    expect(resident).toBeLessThan(80);
    expect(status).toMatch(/NoNewPrivs:\s*1/);
    expect(status).toMatch(/Seccomp:\s*2/);
    expect((await node.$`cat /proc/${pid}/mountinfo`).stdout).toMatch(/ \/ \/ ro,/);
    const shells = ["sh", "bash", "dash", "ash", "zsh", "busybox"]
      .flatMap((name) => ["-o", "-name", name])
      .slice(1);
    expect((await node.$`find /proc/${pid}/root/ -xdev \\( ${shells} \\)`).stdout).toBe("");
  });

  test("tables of iptables-legacy, which it may not read, are named and keep nothing from working", async () => {
    await cluster.node("n2").$`iptables-legacy -N FOREIGN`;
    await agents.restart("n2");
    const lines = await agents.inSync("n2");
    expect(
      lines.filter((line) => /^the tables of iptables-legacy are in use and cannot be read/.test(line.msg)),
    ).toHaveLength(1);
    expect(lines.filter((line) => line.msg.startsWith("failed"))).toEqual([]);
    await cluster.node("n2").$`iptables-legacy -X FOREIGN`;
  });

  test("gone and back, and then without NET_ADMIN, it leaves the data path as it is", async () => {
    const [from, to] = [on("n1"), on("n2")];
    await using stream = await from.place.stream({ protocol: "udp", address: to.addresses.ipv6! });
    await agents.patch({ updateStrategy: { type: "OnDelete", rollingUpdate: null } });
    await agents.restart("n1");
    await agents.inSync("n1");

    expect(await agents.failure("n1", withCapabilities([]))).toContain("the capability NET_ADMIN is missing");

    await agents.patchContainer(withCapabilities(["NET_ADMIN"]));
    await agents.restart("n1");
    await agents.inSync("n1");
    expect(await stream.stop()).toMatchObject({ lost: 0 });
  });
});

test("a node powered off and on comes back by itself, the same peer as before", async () => {
  const key = async () => (await cluster.api.node("n2")).metadata.annotations!["wigglenet/public-key"];
  const before = await key();
  await using others = await on("n1").place.stream({ protocol: "udp", address: on("n3").addresses.ipv4! });
  const boot = await bootOf("n2");
  await cluster.node("n2").powerOff();
  const since = new Date();
  await cluster.node("n2").powerOn();
  await readyAfter("n2", boot);
  const back = (Date.now() - since.getTime()) / 1000;
  pods = [...pods.filter(({ node }) => node.name !== "n2"), await podOn("n2", since)];
  console.log(
    `power on to Ready: ${back.toFixed(1)} s, to a ready pod: ${(Date.now() - since.getTime()) / 1000} s`,
  );
  expect(await key()).toBe(before);
  expect(await allUnreached()).toEqual([]);
  expect(await others.stop()).toMatchObject({ lost: 0 });
});

/**
 * Milliseconds between two attempts of kubelet to start a pod. After one that failed it backs off for 10 s and a random half
 * of them, looks once a second which pods are due, and prepares the pod. Nothing that an agent may do has it try earlier.
 */
const kubeletRetry = 17_000;
/** Milliseconds that a pod takes from an attempt that succeeds to its first container. */
const podStart = 3_000;

test("with the agent held back after a reboot no pod starts, and each starts at kubelet's first attempt after its sync", async () => {
  const node = cluster.node("n3");
  const boot = await bootOf("n3");
  await node.powerOff();
  const elsewhere = {
    matchExpressions: [{ key: "kubernetes.io/hostname", operator: "NotIn", values: ["n3"] }],
  };
  const required = { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [elsewhere] } };
  await agents.patch({ template: { spec: { affinity: { nodeAffinity: required } } } });
  const since = new Date();
  await node.powerOn();
  for (const name of held) await cluster.api.create(heldPod(name));
  // Some are tried again meanwhile.
  const failed = await until(
    "each pod to be held back twice",
    () => {
      const failures = held.map((name) => node.sandboxAttempts(name, since).filter(({ error }) => error));
      return failures.every(({ length }) => length >= 2) && failures.flat();
    },
    { timeout: 60_000 },
  );
  for (const { error } of failed) expect(error).toContain(`open ${gatePath}: no such file or directory`);
  // The file of the last boot is there, so that the Node is Ready.
  await readyAfter("n3", boot);
  expect((await node.tasks()).size).toBe(0);
  expect(await leftovers("n3")).toEqual([]);

  await agents.patch({ template: { spec: { affinity: null } } });
  const lines = await agents.inSync("n3");
  const inSyncAt = Date.parse(lines.find((line) => line.msg === "in sync")!.time);
  const started = await until(
    "the pods to run",
    async () => {
      const path = "/api/v1/namespaces/default/pods?labelSelector=app%3Dheld";
      const known = (await cluster.api.list<PodObject>(path)).every((pod) => startedAt(pod) > 0);
      return known && held.map((name) => node.sandboxAttempts(name, since));
    },
    { timeout: 30_000 },
  );
  for (const attempts of started) {
    const [failed, { begin, running, error }] = attempts.slice(-2) as [SandboxAttempt, SandboxAttempt];
    console.log(
      `kubelet tried again ${begin - failed.end} ms after a failure, ${begin - inSyncAt} ms after the sync; to the running pod ${running - begin} ms`,
    );
    // Whatever was tried after the sync has succeeded.
    expect(failed.end).toBeLessThan(inSyncAt);
    expect(error).toBeUndefined();
    expect(begin - failed.end).toBeLessThan(kubeletRetry);
    expect(running - begin).toBeLessThan(podStart);
  }
  pods = [...pods.filter(({ node }) => node.name !== "n3"), await podOn("n3", since)];
  expect(await allUnreached()).toEqual([]);
});

test("of the attempts nothing is left, pods have their own DNS, and one that mounts its folder reads the CNI file", async () => {
  const onNode = await cluster.api.list<PodObject>("/api/v1/pods?fieldSelector=spec.nodeName%3Dn3");
  const connected = onNode.filter(({ spec }) => !(spec as { hostNetwork?: boolean }).hostNetwork);
  const addresses = connected.flatMap(({ status }) => (status.podIPs ?? []).map(({ ip }) => ip));
  const left = await leftovers("n3");
  expect(left.filter((name) => !name.startsWith("veth"))).toEqual(addresses.sort());
  expect(left.filter((name) => name.startsWith("veth"))).toHaveLength(connected.length);
  const read = async (path: string) => (await cluster.kubectl`exec ${held[0]!} -- cat ${path}`).stdout;
  expect(await read("/etc/resolv.conf")).toMatch(
    /^search default\.svc\.cluster\.local .*\nnameserver 10\.96\.0\.10\n/,
  );
  const { name } = JSON.parse(await read("/cni/10-wigglenet.conflist"));
  expect(name).toBe("wigglenet");
});

test("without a wireguard-go of the node the agent runs one, given the device and no more rights", async () => {
  const node = cluster.node("n3");
  await node.stopService("wireguard-go");
  await cluster.kubectl`-n kube-system patch daemonset wigglenet --patch-file deploy/userspace.yaml`;
  await agents.patchContainer({ env: [{ name: "WIREGUARD", value: "userspace" }] });
  await agents.restart("n3");
  await agents.inSync("n3");
  const { pid } = await node.task((await agents.pod("n3")).metadata.uid, "wigglenet");
  expect((await node.$`pgrep -x wireguard-go -P ${pid}`).stdout).not.toBe("");
  expect((await node.$`cat /proc/${pid}/status`).stdout).toMatch(/CapBnd:\s*0*1000$/m);
  expect(await allUnreached()).toEqual([]);
});

test("iptables-legacy needs the rights of deploy/iptables.yaml, each of them", async () => {
  const node = cluster.node("n2");
  // as kubelet makes it on a host whose iptables is that one
  await node.$`iptables-legacy -t mangle -N KUBE-IPTABLES-HINT`;
  await cluster.kubectl`-n kube-system patch daemonset wigglenet --patch-file deploy/iptables.yaml`;
  await agents.patchContainer({ env: [{ name: "FIREWALL_BACKEND", value: "iptables" }] });
  await agents.restart("n2");
  await agents.inSync("n2");
  expect((await node.$`iptables-legacy -S`).stdout).toContain("WIGGLENET-");
  expect(await allUnreached()).toEqual([]);

  expect(await agents.failure("n2", withCapabilities(["NET_RAW"]))).toContain(
    "the capability NET_ADMIN is missing",
  );
  expect(await agents.failure("n2", withCapabilities(["NET_ADMIN"]))).toContain("Permission denied");
  const noLock = { $patch: "delete", mountPath: "/run/xtables.lock" };
  expect(
    await agents.failure("n2", { ...withCapabilities(["NET_ADMIN", "NET_RAW"]), volumeMounts: [noLock] }),
  ).toContain("xtables.lock");
});

const held = ["held-1", "held-2", "held-3"];

const heldPod = (name: string) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default", labels: { app: "held" } },
  spec: {
    nodeName: "n3",
    terminationGracePeriodSeconds: 0,
    tolerations: [{ operator: "Exists" }],
    volumes: [{ name: "cni", hostPath: { path: "/etc/cni/net.d" } }],
    containers: [
      {
        name: "held",
        image: "docker.io/library/busybox:lab",
        imagePullPolicy: "Never",
        command: ["sleep", "1000000"],
        securityContext: { runAsUser: 65_534 },
        volumeMounts: [{ name: "cni", mountPath: "/cni", readOnly: true }],
      },
    ],
  },
});

/** Addresses that host-local has given out on a node, and links of its pods. */
async function leftovers(node: string): Promise<string[]> {
  const { stdout } = await cluster.node(node)
    .$`ls /run/cni-ipam-state/wigglenet /sys/class/net 2> /dev/null || true`;
  return stdout
    .split("\n")
    .filter((line) => /^[0-9a-f]+[.:]|^veth/.test(line))
    .sort();
}

async function allUnreached(): Promise<string[]> {
  const all = await paths(cluster, pods);
  await settle(all, pods);
  return unreached(await reachability(all));
}

function on(node: string): ClusterPod {
  return pods.find((pod) => pod.node.name === node)!;
}

async function bootOf(node: string): Promise<string> {
  const { status } = await cluster.api.node(node);
  return (status as unknown as { nodeInfo: { bootID: string } }).nodeInfo.bootID;
}

/** Waits until a node has booted again after a boot, and is Ready. */
async function readyAfter(node: string, boot: string): Promise<void> {
  await until(`${node} to have booted`, async () => (await bootOf(node)) !== boot, { timeout: 30_000 });
  await cluster.ready([node]);
}

/** When its first container did, in milliseconds since 1970; NaN if it does not run. */
const startedAt = ({ status }: PodObject) =>
  Date.parse(status.containerStatuses?.[0]?.state.running?.startedAt ?? "");

/** The Deployment's pod on a node, once it has started after a time. */
async function podOn(name: string, since: Date): Promise<ClusterPod> {
  const path = `/api/v1/namespaces/default/pods?labelSelector=app%3Dweb&fieldSelector=spec.nodeName%3D${name}`;
  const pod = await until(
    `a ready pod on ${name}`,
    async () => {
      const pods = await cluster.api.list<PodObject>(path);
      // The API server's times are whole seconds.
      return pods.find((pod) => isReady(pod) && startedAt(pod) + 1000 > since.getTime());
    },
    { timeout: 30_000 },
  );
  return await ClusterPod.enter(cluster.node(name), pod);
}

const withCapabilities = (add: string[]) => ({ securityContext: { capabilities: { drop: ["ALL"], add } } });
