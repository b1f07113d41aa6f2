/** The lab itself, without the agent: pods by a CNI file of the test's own, plain routes over the underlay. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { families } from "../../src/net/address.ts";
import { kubernetes, repository } from "./cache.ts";
import { ApiError } from "./cluster/api.ts";
import { ControlPlane } from "./cluster/controlplane.ts";
import { cniFile, type LightNode } from "./cluster/lightnode.ts";
import type { Pod } from "./cluster/pod.ts";
import type { Host } from "./kernel/namespace.ts";
import { Lab } from "./lab.ts";
import { anythingClear } from "./probe/capture.ts";
import { reachability, unreached } from "./probe/reachability.ts";
import { until } from "./process.ts";

setDefaultTimeout(60_000);

let lab: Lab;
let nodes: [LightNode, LightNode];
let pods: [Pod, Pod];

/** What the agent will do: a CNI file, and here routes in the clear to the other nodes' pods. */
async function wire(node: LightNode, others: LightNode[]): Promise<void> {
  const ranges = (await node.podCIDRs()).map((subnet) => [{ subnet }]);
  const ipam = {
    type: "host-local",
    dataDir: "/run/cni-ipam-state",
    ranges,
    routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
  };
  const portmap = { type: "portmap", capabilities: { portMappings: true } };
  const plugins = [{ type: "ptp", mtu: 1500, ipam }, portmap];
  await node.write(cniFile, JSON.stringify({ cniVersion: "1.0.0", name: "wigglenet", plugins }));
  await node.namespace.sysctl({ "net.ipv6.conf.default.accept_dad": 0 });
  for (const other of others) {
    const [ipv4, ipv6] = await other.podCIDRs();
    await node.namespace.ip(
      `route add ${ipv4} via ${other.addresses.ipv4}`,
      `route add ${ipv6} via ${other.addresses.ipv6}`,
    );
  }
}

beforeAll(async () => {
  const start = performance.now();
  lab = await Lab.start({
    agents: false,
    nodes: [{ labels: { zone: "a" }, external: { ipv4: "203.0.113.11" } }, {}],
    clear: true,
  });
  console.log(`control plane and two light nodes: ${((performance.now() - start) / 1000).toFixed(1)} s`);
  nodes = [lab.nodes[0]!, lab.nodes[1]!];
  await Promise.all([wire(nodes[0], [nodes[1]]), wire(nodes[1], [nodes[0]])]);
  pods = [
    await nodes[0].pod("a", { ports: [{ hostPort: 30080, containerPort: 7 }] }),
    await nodes[1].pod("b"),
  ];
});

afterAll(async () => {
  const { dir, router } = lab.underlay;
  await lab[Symbol.asyncDispose]();
  expect(existsSync(dir)).toBe(false);
  expect(existsSync(`/proc/${router.pid}`)).toBe(false);
});

test("the controller-manager allocates both families", async () => {
  const cidrs = await nodes[0].podCIDRs();
  expect(cidrs[0]).toMatch(/^10\.244\.\d+\.0\/24$/);
  expect(cidrs[1]).toMatch(/^fd00:10:244:(\w+:)?:\/64$/);
  const { metadata, status } = await nodes[0].object();
  expect(metadata.labels).toMatchObject({ zone: "a" });
  expect(status.addresses).toContainEqual({ type: "ExternalIP", address: "203.0.113.11" });
  expect(status.addresses).toContainEqual({ type: "InternalIP", address: nodes[0].addresses.ipv6! });
});

test("the agent's token may read and patch nodes, and nothing else", async () => {
  const api = lab.controlPlane.api.withToken(await nodes[0].renewToken());
  const path = `/api/v1/nodes/${nodes[0].name}`;
  expect(await api.nodes()).toHaveLength(2);
  const annotations = { "wigglenet/public-key": Buffer.alloc(32, 1).toString("base64") };
  expect(await api.patch(path, { metadata: { annotations } })).toMatchObject({ kind: "Node" });
  const refused: [string, string, object?][] = [
    ["DELETE", path],
    ["PATCH", `${path}/status`, { status: {} }],
    ["POST", "/api/v1/nodes", { metadata: { name: "other" } }],
    ["GET", "/api/v1/secrets"],
    ["GET", "/api/v1/namespaces/kube-system/configmaps"],
    ["POST", "/api/v1/namespaces/kube-system/serviceaccounts/wigglenet/token", {}],
  ];
  for (const [method, where, body] of refused) {
    const error = await api
      .request(method, where, body, method === "PATCH" ? "application/merge-patch+json" : undefined)
      .catch((e) => e);
    expect(error, `${method} ${where}`).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ status: 403 });
  }
});

test("a node reaches the API server by the kubeconfig that its agent gets", async () => {
  const { stdout } = await nodes[0]
    .$`${kubernetes("kubectl")} --kubeconfig ${nodes[0].agentEnv().KUBECONFIG!} get node ${nodes[1].name} -o name`;
  expect(stdout.trim()).toBe(`node/${nodes[1].name}`);
});

test("all pairs of pods, nodes and outside", async () => {
  expect(await lab.unreached([...pods, ...nodes])).toEqual([]);
  expect(await lab.unreached([...nodes, lab.outside], { size: 1500, dontFragment: true })).toEqual([]);
  const tooLarge = await lab.reach(nodes[0], nodes[1], { protocol: "icmp", size: 1501, dontFragment: true });
  expect(tooLarge).toEqual({ ok: false, reason: "Message too long" });
});

test("what has no address of a family is not reached by it, rather than not tried", async () => {
  const file = "/etc/cni/net.d/20-half.conflist";
  const ipam = { type: "host-local", ranges: [[{ subnet: "10.99.0.0/24" }]], routes: [{ dst: "0.0.0.0/0" }] };
  const conflist = { cniVersion: "1.0.0", name: "half", plugins: [{ type: "ptp", ipam }] };
  await nodes[0].write(file, JSON.stringify(conflist));
  const half = await nodes[0].pod("half", { network: "half" });
  expect(await lab.unreached([nodes[0], half], { protocols: ["udp"] })).toEqual([
    "n1 -> n1/half udp ipv6: n1/half has no address",
    "n1/half -> n1 udp ipv6: n1/half has no address",
  ]);
  const way = { kind: "node → pod", from: nodes[0], to: half, protocols: ["udp" as const], families };
  expect(unreached(await reachability([way]))).toEqual([
    "node → pod: n1 → n1/half, udp, ipv6, n1/half has no address",
  ]);
  const four: Host = { ...lab.outside, addresses: { ipv4: lab.outside.addresses.ipv4! } };
  expect(() => lab.paths([[four, nodes[0]]], { families: ["ipv6"] })).toThrow(
    "nothing to try from outside to n1",
  );
  await half.remove();
  await nodes[0].$`rm ${file}`;
});

test("a pod that is not masqueraded gets no answer from outside", async () => {
  const options = { protocol: "udp", family: "ipv4", timeout: 300 } as const;
  expect(await lab.reach(pods[0], lab.outside, options)).toMatchObject({ ok: false });
  await nodes[0]
    .$`nft add table ip t; nft add chain ip t post '{ type nat hook postrouting priority srcnat; }'; nft add rule ip t post oifname eth0 masquerade`;
  expect(await lab.reach(pods[0], lab.outside, { ...options, timeout: 2000 })).toMatchObject({
    ok: true,
    seen: nodes[0].addresses.ipv4!,
  });
  await nodes[0].$`nft delete table ip t`;
});

test("a hostPort, and the source address that the pod saw", async () => {
  const reached = await nodes[1].place.reach({
    protocol: "tcp",
    address: nodes[0].addresses.ipv4!,
    port: 30080,
  });
  expect(reached).toMatchObject({ ok: true, seen: nodes[1].addresses.ipv4! });
});

test("1:1 NAT: a node by its external address, from the other and from outside", async () => {
  await lab.underlay.nat(nodes[0].addresses, nodes[0].options.external!);
  for (const from of [nodes[1], lab.outside])
    expect(await from.place.reach({ protocol: "udp", address: "203.0.113.11" })).toMatchObject({ ok: true });
  expect(await lab.reach(nodes[0], lab.outside)).toMatchObject({ ok: true, seen: "203.0.113.11" });
});

test("a probe counts no loss where there is none, and all of it where there is", async () => {
  for (const protocol of ["tcp", "udp", "icmp"] as const) {
    await using steady = await lab.probe(pods[0], pods[1], { protocol, family: "ipv6", rate: 100 });
    await steady.flowing(30);
    const count = await steady.stop();
    expect(count.lost).toBe(0);
    expect(count.sent).toBeGreaterThanOrEqual(31);
    expect(count.longestGap).toBeLessThan(1000);
  }
  await using broken = await lab.probe(pods[0], pods[1], { rate: 100 });
  await using tcp = await lab.probe(pods[0], pods[1], { protocol: "tcp", rate: 100 });
  await lab.underlay.link(nodes[1].name, "down");
  const before = await broken.count();
  await until("20 more to be sent", async () => (await broken.count()).sent >= before.sent + 20);
  await lab.underlay.link(nodes[1].name, "up");
  await Promise.all([broken.flowing(5), tcp.flowing(5)]);
  const count = await broken.stop();
  expect(count.lost).toBeGreaterThanOrEqual(20);
  expect(count.longestGap).toBeGreaterThan(190);
  expect(await tcp.stop()).toMatchObject({ lost: 0 });
});

test("a refused or unanswered packet says why", async () => {
  const address = pods[1].addresses.ipv4!;
  const tcp = await pods[0].place.reach({ protocol: "tcp", address, port: 9 });
  expect(tcp).toEqual({ ok: false, reason: "Connection refused" });
  const dead = await nodes[0].place.reach({ protocol: "udp", address: "172.30.0.99", timeout: 200 });
  expect(dead).toEqual({ ok: false, reason: "no answer" });
});

test("the capture has every clear packet, and none of WireGuard's or the API's", async () => {
  await using capture = await lab.capture();
  await using clear = await lab.capture(anythingClear);
  await nodes[0].renewToken();
  await nodes[0].place.reach({
    protocol: "udp",
    address: nodes[1].addresses.ipv4!,
    port: 24601,
    timeout: 50,
  });
  expect(await capture.packets()).toEqual([]);
  for (let i = 0; i < 5; i++)
    expect(await lab.reach(pods[0], pods[1], { family: "ipv6" })).toMatchObject({ ok: true });
  expect(await lab.reach(nodes[0], nodes[1], { protocol: "icmp" })).toMatchObject({ ok: true });
  expect(await capture.stop()).toHaveLength(10);
  expect(await clear.stop()).toHaveLength(12 + 1); // and the ICMP error for the refused port
});

test("a lab fails at its end when a pod and a node talked outside of the tunnel", async () => {
  const other = await Lab.start({ agents: false });
  const [from, to] = other.nodes as [LightNode, LightNode];
  await from.namespace.ip("address add 10.244.7.1/32 dev lo");
  expect(await other.reach(from, to, { source: "10.244.7.1", timeout: 100 })).toMatchObject({ ok: false });
  await expect(other[Symbol.asyncDispose]()).rejects.toThrow("10.244.7.1 > 172.30.0.12 udp: 1 packets");
});

test("a node joins, is readdressed, and leaves", async () => {
  const node = await lab.addNode({ mtu: 1400 });
  expect(await node.podCIDRs()).toHaveLength(2);
  await node.readdress({ ipv4: "172.30.0.77", ipv6: "fd30::77" });
  expect(await lab.unreached([node, nodes[0], lab.outside], { size: 1400, dontFragment: true })).toEqual([]);
  expect((await node.object()).status.addresses).toContainEqual({ type: "InternalIP", address: "fd30::77" });
  const { pid } = node.namespace;
  await lab.removeNode(node);
  expect(existsSync(`/proc/${pid}`)).toBe(false);
  expect(await lab.controlPlane.api.nodes()).toHaveLength(2);
});

test("after a power cut the disk is there, /run and the pods are not", async () => {
  const node = await lab.addNode();
  await wire(node, []);
  await node.write("/run/something", "x");
  const pod = await node.pod("p");
  await node.powerCut();
  expect(pod.place.running).toBe(false);
  await node.boot();
  expect(node.read(cniFile)).toContain("host-local");
  expect(node.read("/run/something")).toBeUndefined();
  expect((await node.pod("p")).addresses).toEqual(pod.addresses); // host-local's state was on /run
  await lab.removeNode(node);
});

test("the API server stops and starts, everything that it knew is there", async () => {
  await lab.controlPlane.stopServer();
  expect(await lab.controlPlane.api.nodes().catch(() => "refused")).toBe("refused");
  await lab.controlPlane.startServer();
  expect(await lab.controlPlane.api.nodes()).toHaveLength(2);
});

test("an agent that ends or writes no CNI file is reported with its log", async () => {
  const node = await lab.addNode({}, { agent: false });
  await expect(node.ready(50)).rejects.toThrow("no agent was started");
  await lab.removeNode(node);
});

test("a start that fails leaves nothing, and says why", async () => {
  const labs = async () =>
    (await Array.fromAsync(new Bun.Glob("wigglenet-lab-*/owner").scan(tmpdir()))).sort();
  const mine = async () =>
    (await labs()).filter((file) =>
      readFileSync(`${tmpdir()}/${file}`, "utf8").startsWith(`${process.pid} `),
    );
  const before = await mine();
  await expect(Lab.start({ nodes: 1, binary: "/bin/false" })).rejects.toThrow("agent of n1 has ended");
  expect(await mine()).toEqual(before);
});

test.each(["ipv4", "ipv6"] as const)("a control plane and an underlay with %s only", async (family) => {
  await using single = await Lab.start({ agents: false, nodes: 1, families: family, underlay: family });
  const node = single.nodes[0]!;
  expect(await node.podCIDRs()).toHaveLength(1);
  expect(Object.keys(node.addresses)).toEqual([family]);
  expect(await single.unreached([node, single.outside])).toEqual([]);
  const { stdout } =
    await node.$`${kubernetes("kubectl")} --kubeconfig ${node.agentEnv().KUBECONFIG!} get nodes -o name`;
  expect(stdout.trim()).toBe(`node/${node.name}`);
});

test("labs one after the other on one control plane, for other families too", async () => {
  await using controlPlane = await ControlPlane.start();
  const access = { ...controlPlane.access, host: "127.0.0.1" };
  for (const families of ["dual", "ipv6"] as const) {
    await using attached = await Lab.start({ agents: false, nodes: 2, families, controlPlane: access });
    const node = attached.nodes[0]!;
    expect(await node.podCIDRs()).toHaveLength(families === "dual" ? 2 : 1);
    expect(await attached.controlPlane.api.nodes()).toHaveLength(2);
    const names = () =>
      node.$`${kubernetes("kubectl")} --kubeconfig ${node.agentEnv().KUBECONFIG!} get nodes -o name`;
    expect((await names()).stdout.trim().split("\n")).toHaveLength(2);
    await attached.controlPlane.stopServer();
    expect(await names().nothrow()).toMatchObject({ exitCode: 1 });
    await attached.controlPlane.startServer();
    expect(await names()).toMatchObject({ exitCode: 0 });
  }
});

test("a test process that is killed leaves nothing", async () => {
  const script = `
    const { Lab } = await import("${repository}/test/lab/lab.ts");
    const lab = await Lab.start({ agents: false, nodes: 1 });
    console.log(JSON.stringify({ dir: lab.underlay.dir, pids: [lab.underlay.router.pid, lab.nodes[0].namespace.pid] }));
    await new Promise(() => {});`;
  await using child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "inherit" });
  const { value } = await child.stdout.getReader().read();
  const left = JSON.parse(new TextDecoder().decode(value)) as { dir: string; pids: number[] };
  const alive = () => {
    // Not by what walks directories: a process that ends meanwhile is none of its errors.
    const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
    const files = pids.map((pid) => `/proc/${pid}/cmdline`);
    return Bun.spawnSync(["grep", "-lsa", left.dir, ...files])
      .stdout.toString()
      .trim();
  };
  expect(alive()).not.toBe("");
  child.kill("SIGKILL");
  await child.exited;
  await until("its processes to be gone", () => alive() === "");
  const namespaces = () => left.pids.filter((pid) => existsSync(`/proc/${pid}/root/etc`));
  await until("its namespaces to be gone", () => namespaces().length === 0);
  await using next = await Lab.start({ agents: false, nodes: 0 }); // removes the directory of the one before
  expect(existsSync(left.dir)).toBe(false);
  expect(next.nodes).toEqual([]);
});
