/** How the agent starts and stops, what it keeps, and what it says when it cannot. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { statSync } from "node:fs";
import { repository } from "./lab/cache.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const binary = `${repository}/dist/wigglenet`;
const token = "/etc/kubernetes/wigglenet/token";
const privateKey = "/etc/wigglenet/private.key";

describe("on a node", () => {
  let lab: Lab;
  let n1: LightNode, n2: LightNode;
  let p1: Pod, p2: Pod;
  /** Of n1, as it is whenever it has followed what a test did to the others. */
  let settled: NodeState;

  beforeAll(async () => {
    lab = await Lab.start({ nodes: 2 });
    [n1, n2] = lab.nodes as [LightNode, LightNode];
    [p1, p2] = await Promise.all([n1.pod("p"), n2.pod("p")]);
    await lab.greeted();
    await lab.shakeHands();
    settled = await stateOf(n1);
  }, 60_000);
  afterAll(() => lab?.[Symbol.asyncDispose]());

  const said = (node: LightNode, text: string) =>
    until(
      `${node.name} to say "${text}"`,
      () => node.agentLog().find((line) => JSON.stringify(line).includes(text)),
      {
        why: () => JSON.stringify(node.agentLog().slice(-5)),
      },
    );
  const mode = (node: LightNode, path: string) =>
    (statSync(`/proc/${node.namespace.pid}/root${path}`).mode & 0o777).toString(8);

  test("under another name of the link it refuses, before it changes anything, and says which the tunnel is", async () => {
    const streams = await Promise.all(
      (["ipv4", "ipv6"] as const).map((family) => lab.probe(p1, p2, { family })),
    );
    await n1.stopAgent();
    n1.startAgent({ WIGGLENET_IFACE_NAME: "wg-new" });
    expect(await n1.agentExit()).toBe(2);
    expect(JSON.stringify(n1.agentLog())).toContain(
      "WIGGLENET_IFACE_NAME=wg-new: this node's tunnel is link wigglenet: set it to that",
    );
    expect(await stateOf(n1)).toEqual(settled);
    for (const stream of streams) expect((await stream.stop()).lost).toBe(0);
    n1.startAgent();
    await n1.inSync();
  });

  test("a port that is taken is named", async () => {
    const script = `Bun.udpSocket({ port: 24777 }); setInterval(() => 0, 1e6)`;
    const holder = n1.namespace.start(
      "holder",
      [process.execPath, "-e", script],
      `${lab.underlay.dir}/log/holder.log`,
    );
    await until("it to hold", async () => (await n1.$`ss -uln`).stdout.includes(":24777"));
    await n1.stopAgent();
    n1.startAgent({ WIGGLENET_WG_PORT: "24777" });
    await said(n1, "UDP port 24777 is taken on this node");
    await holder.stop("SIGKILL");
    await n1.inSync();
    await n1.stopAgent();
    n1.startAgent();
    await n1.inSync();
    expect(await stateOf(n1)).toEqual(settled);
  });

  test("SIGTERM leaves the data path standing, and the next start finds nothing to do", async () => {
    await using there = await lab.probe(p1, p2);
    await using back = await lab.probe(p2, p1, { family: "ipv6", protocol: "tcp" });
    const begin = performance.now();
    expect(await n1.stopAgent()).toBe(0);
    expect(performance.now() - begin).toBeLessThan(2_000);
    expect(n1.agentLog().at(-1)).toMatchObject({ msg: "stopping; the data path stays", signal: "SIGTERM" });
    await there.flowing(10);
    n1.startAgent();
    await n1.inSync(20_000);
    await there.flowing(10);
    expect(await there.stop()).toMatchObject({ lost: 0 });
    expect(await back.stop()).toMatchObject({ lost: 0 });
    expect(n1.agentLog().filter((line) => "commands" in line)).toEqual([]);
    expect(await stateOf(n1)).toEqual(settled);
  });

  test("the private key is kept, with a newline or without, and closed to others; a malformed one stops the start", async () => {
    const key = n1.read(privateKey)!;
    expect(key).toMatch(/^[A-Za-z0-9+/]{43}=\n$/);
    expect(mode(n1, privateKey)).toBe("600");
    await n1.stopAgent();
    await n1.write(privateKey, key.trim());
    await n1.$`chmod 644 ${privateKey}`;
    n1.startAgent();
    await n1.inSync(20_000);
    expect([n1.read(privateKey), mode(n1, privateKey)]).toEqual([key.trim(), "600"]);
    expect(n1.agentLog().filter((line) => "commands" in line || "annotations" in line)).toEqual([]);

    await n1.stopAgent();
    // As the Go implementation may have been started.
    const dry = `${binary} -v=9 -logtostderr --dry-run 2>&1`;
    expect(await n1.namespace.run(["/bin/sh", "-c", dry], { env: n1.agentEnv() })).toMatch(
      /"level":"warn".*"flags":\["-v=9","-logtostderr"\],"logLevel":"trace"/,
    );
    for (const wrong of ["", "not a key\n", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"]) {
      await n1.write(privateKey, wrong);
      n1.startAgent();
      expect(await n1.agentExit()).toBe(1);
      expect(String(n1.agentLog().at(-1)?.text)).toContain(
        `private key ${privateKey} is not base64 of 32 bytes`,
      );
      expect(n1.read(privateKey)).toBe(wrong);
    }
    expect(await lab.unreached([p1, p2])).toEqual([]);
    await n1.write(privateKey, key);
    n1.startAgent();
    await n1.inSync(20_000);
  });

  /** A token of the agent's account; bound to a Secret it ends with that. */
  async function issueToken(
    secret?: string,
    account = "kube-system/serviceaccounts/wigglenet",
  ): Promise<string> {
    const { api } = lab.controlPlane;
    let boundObjectRef: object | undefined;
    if (secret) {
      const { metadata } = await api.create({
        apiVersion: "v1",
        kind: "Secret",
        metadata: { name: secret, namespace: "kube-system" },
      });
      boundObjectRef = { apiVersion: "v1", kind: "Secret", name: secret, uid: metadata.uid };
    }
    const request = {
      apiVersion: "authentication.k8s.io/v1",
      kind: "TokenRequest",
      spec: { boundObjectRef },
    };
    const answer = await api.request<{ status: { token: string } }>(
      "POST",
      `/api/v1/namespaces/${account}/token`,
      request,
    );
    return answer.status.token;
  }

  test("a token that was renewed in its file is used once the old one is revoked", async () => {
    const { api } = lab.controlPlane;
    const old = await issueToken("short-lived");
    await n2.stopAgent();
    await n2.write(token, old);
    n2.startAgent();
    await n2.inSync(20_000);
    await n2.renewToken();
    await api.remove("/api/v1/namespaces/kube-system/secrets/short-lived");
    // The API server remembers for some seconds that it was good.
    await until(
      "the old token to be refused",
      () =>
        api
          .withToken(old)
          .nodes()
          .then(
            () => false,
            (error) => error.status === 401,
          ),
      { timeout: 30_000, every: 250 },
    );
    await n2.patch({ metadata: { annotations: { "wigglenet/agent": null } } });
    await until(
      "the annotation to be back",
      async () => (await n2.object()).metadata.annotations?.["wigglenet/agent"],
    );
    expect(atLeast("warn", n2.agentLog())).toEqual([]);
  });

  test("an API server that is away, or forbids: said once with the remedy, nothing is touched, and it goes on by itself", async () => {
    const { api } = lab.controlPlane;
    const binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/wigglenet";
    const { metadata, ...rest } = await api.get(binding);
    await n1.stopAgent();
    await api.remove(binding);
    n1.startAgent();
    await said(n1, "apply the ClusterRole of deploy/manifest.yaml");
    expect(n1.agentRuns).toBe(true);
    await api.create({ ...rest, metadata: { name: metadata.name } });
    await n1.inSync(20_000);
    expect(await stateOf(n1)).toEqual(settled);

    await n1.stopAgent();
    await lab.controlPlane.stopServer();
    n1.startAgent();
    await said(n1, "cannot follow");
    expect(n1.agentRuns).toBe(true);
    expect(await lab.unreached([p1, p2])).toEqual([]);
    await lab.controlPlane.startServer();
    await n1.inSync(20_000);
    expect(await stateOf(n1)).toEqual(settled);
    // One line for each of the two lists that it could not have. A server that starts may have refused both for a moment, too.
    const warnings = atLeast("warn", n1.agentLog());
    expect(warnings.filter(({ msg }) => msg !== "cannot follow")).toEqual([]);
    const reasons = warnings.map(({ error }) => String(error));
    expect(reasons.filter((reason) => reason.includes("cannot be reached"))).toHaveLength(2);
    for (const reason of new Set(reasons))
      expect(reasons.filter((each) => each === reason).length).toBeLessThanOrEqual(2);
  });

  test("the own Node is not there yet: waited for, with a line that says so", async () => {
    const { api } = lab.controlPlane;
    const node = await lab.addNode({}, { agent: false });
    await node.podCIDRs();
    await node.write(token, await issueToken());
    await api.remove(`/api/v1/nodes/${node.name}`);
    node.startAgent();
    await said(node, "waiting for kubelet to register it");
    expect(await stateOf(node)).toMatchObject({ routes: [], cni: { content: undefined }, annotations: {} });
    await node.join(lab.controlPlane);
    await node.ready();
    const pod = await node.pod("p");
    // One packet first: sent from everywhere at once, WireGuard's handshakes collide (see Lab.shakeHands).
    await lab.shakeHands();
    await until("the newcomer to reach all", async () => (await lab.unreached([pod, p1, p2])).length === 0);
    await lab.removeNode(node);
  });

  test("WireGuard that cannot be had: said with the remedy, nothing is announced", async () => {
    const node = await lab.addNode({}, { agent: false });
    await node.podCIDRs();
    await node.stopWireguard();
    const kernel = await node.namespace.ip("link add wgtest type wireguard", "link del wgtest").then(
      () => true,
      () => false,
    );
    const [way, remedy] = kernel
      ? ["userspace", "wireguard-go cannot serve"]
      : ["kernel", "the kernel has no WireGuard"];
    // What wireguard-go cannot do without.
    await node.$`mount --bind /dev/null /dev/net/tun`;
    node.startAgent({ WIREGUARD: way! });
    const line = await said(node, remedy!);
    expect(line).toMatchObject({ resource: "tunnel", level: "error" });
    await until("the guards", async () =>
      (await stateOf(node)).routes.some((route) => route.includes("unreachable")),
    );
    const { link, cni, annotations } = await stateOf(node);
    expect({ link, content: cni.content, key: annotations["wigglenet/public-key"] }).toEqual({
      link: [],
      content: undefined,
      key: undefined,
    });

    await node.stopAgent();
    await node.$`umount /dev/net/tun`;
    node.startAgent({ WIREGUARD: "auto" });
    await node.ready();
    await lab.removeNode(node);
  });

  test("a wireguard-go of the agent's own survives it, and is adopted by the next", async () => {
    const node = await lab.addNode({}, { agent: false });
    await node.podCIDRs();
    await node.stopWireguard();
    node.startAgent({ WIREGUARD: "userspace", LOG_LEVEL: "debug" });
    await node.ready();
    await said(node, "in a container the tunnel ends with it");
    const pod = await node.pod("p");
    const server = async () => (await node.$`pidof wireguard-go`).stdout.trim();
    const pid = await server();
    await lab.shakeHands();
    await until("all to know it", async () => (await lab.unreached([pod, p1, p2])).length === 0);
    await using probe = await lab.probe(pod, p1);
    await using back = await lab.probe(p2, pod, { family: "ipv6" });
    await node.killAgent();
    await probe.flowing(10);
    expect(await server()).toBe(pid);
    node.startAgent({ WIREGUARD: "userspace" });
    await node.inSync(20_000);
    expect(await node.stopAgent()).toBe(0);
    await probe.flowing(10);
    expect([(await probe.stop()).lost, (await back.stop()).lost]).toEqual([0, 0]);
    expect(await server()).toBe(pid);
    expect(node.agentLog().filter((line) => "commands" in line)).toEqual([]);

    // With nobody left to read what it says, it has to survive having something to say.
    await lab.underlay.link(node.name, "down");
    await node.namespace.ip("link set eth0 down");
    await lab.unreached([[pod, p1]], { timeout: 300 });
    expect(await server()).toBe(pid);
    expect(node.read("/run/wigglenet/wigglenet.log")).not.toContain("DEBUG");
  });
});
