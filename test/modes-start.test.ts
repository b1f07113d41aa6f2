/** How the agent starts and stops, what it keeps, and what it says when it cannot. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { version } from "../package.json";
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

describe("the command line", () => {
  const dir = mkdtempSync(`${tmpdir()}/wigglenet-modes-`);
  afterAll(() => rmSync(dir, { recursive: true }));

  /** It gets no further than to its configuration or its API server, on any machine and without rights. */
  function run(args: string[], env: Record<string, string> = {}) {
    const { exitCode, stdout, stderr } = Bun.spawnSync([binary, ...args], { env });
    return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
  }

  test("version", () => {
    expect(run(["version"])).toEqual({ exitCode: 0, stdout: `${version}\n`, stderr: "" });
  });

  test.each([
    [["agnet"], 'unknown command "agnet"'],
    [["agent", "now"], 'unexpected argument "now"'],
    [["--dryrun"], "--dryrun"],
    [["--kubeconfig"], "--kubeconfig"],
    [["agent", "--target", "/opt/cni/bin"], "agent takes no --target"],
    [["install-cni", "--kubeconfig", "x"], "install-cni takes no --kubeconfig"],
    [["-v=4", "install"], "install takes no -v=4"],
    [["version", "-stderrthreshold", "INFO"], "version takes no -stderrthreshold INFO"],
  ])("%p is refused", (args, said) => {
    const { exitCode, stdout, stderr } = run(args, { NODE_NAME: "n1" });
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: "" });
    expect(stderr).toContain(said);
    expect(stderr).toContain("usage: wigglenet");
  });

  test("all mistakes of a configuration in one message", () => {
    const { exitCode, stdout, stderr } = run(["agent"], {
      WIGGLENET_WG_PORT: "70000",
      MASQUERADE_IPV4: "yes",
      WIREGUARD: "fast",
      POD_CIDR_SOURCE_IPV4: "file",
      POD_CIDR_SOURCE_IPV6: "expression",
      POD_CIDR_EXPRESSION: `interfaces["eth0"][0].subnets(80, 0)`,
      WIGGLENET_IFACE_NAME: "a name that is too long",
      RESYNC_PERIOD: "1m",
      ENABLE_FLOWTABLE: "1",
      KUBECONFIG: "/nowhere",
    });
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: "" });
    expect(stderr).toMatchInlineSnapshot(`
      "wigglenet: wrong configuration:
        NODE_NAME="": must be the name of this node's Node object
        WIGGLENET_IFACE_NAME="a name that is too long": must be a link name of 1 to 15 letters, digits, - and _
        POD_CIDR_SOURCE_PATH="": must be an absolute path
        FLOWTABLE_DEVICES="": must list the links of the flows to offload, such as eth0,a name that is too long,veth*
        WIGGLENET_WG_PORT="70000": must be a whole number from 1 to 65535
        WIREGUARD="fast": must be one of auto, kernel, userspace
        POD_CIDR_EXPRESSION="interfaces[\\"eth0\\"][0].subnets(80, 0)": line 1, column 1 (interfaces["eth0"][0].subnets(80, 0)): type cidr has no function subnets; it has containsCIDR, containsIP, ip, masked, prefixLength, subnet
        MASQUERADE_IPV4="yes": must be a boolean: 1, t, true, 0, f or false
        RESYNC_PERIOD="1m": must be a whole number from 1 to 86400
      "
    `);
  });

  test.each<[name: string, content: string | undefined, said: RegExp]>([
    ["is not there", undefined, /kubeconfig \S+: .*ENOENT|no such file/],
    ["is garbage", "{ not: [yaml", /kubeconfig \S+: /],
    ["is empty", "", /kubeconfig \S+: /],
    [
      "has no current context",
      "apiVersion: v1\nkind: Config\n",
      /its current-context names no cluster that it has/,
    ],
  ])("a kubeconfig that %s", async (_, content, said) => {
    const path = `${dir}/kubeconfig`;
    if (content !== undefined) await Bun.write(path, content);
    const env = { NODE_NAME: "n1", FIREWALL_ONLY: "1" };
    const runs = [run(["agent", "--kubeconfig", path], env), run([], { ...env, KUBECONFIG: path })];
    for (const { exitCode, stderr } of runs) {
      expect(stderr).toMatch(said);
      expect(exitCode).toBe(1);
    }
  });

  test("no kubeconfig outside of a pod", () => {
    const { exitCode, stderr } = run([], { NODE_NAME: "n1", FIREWALL_ONLY: "1" });
    expect(stderr).toContain("set KUBECONFIG or --kubeconfig");
    expect(exitCode).toBe(1);
  });
});

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
    // One line for each of the two lists that it could not have, and one that they are back.
    const warnings = atLeast("warn", n1.agentLog());
    expect(warnings.map((line) => line.msg)).toEqual(["cannot follow", "cannot follow"]);
  });

  test("a kernel that lacks a module of nftables: iptables is taken, or the module is named", async () => {
    const folder = "/opt/lacking";
    await n1.$`mkdir -p ${folder}`;
    // As such a kernel refuses rules with an expression that it does not know, each by its line.
    await n1.write(
      `${folder}/nft`,
      `#!/bin/sh
case "$*" in *"-f -") ;; *) exec /usr/sbin/nft "$@" ;; esac
awk '/ fib / { print "/dev/stdin:" NR ":33-62: Error: Could not process rule: No such file or directory\\n" $0; bad = 1 }
  { print > "/run/nft-input" } END { exit bad }' >&2 || exit 1
exec /usr/sbin/nft "$@" < /run/nft-input
`,
    );
    await n1.$`chmod +x ${`${folder}/nft`}`;
    const env = { PATH: `${folder}:${n1.agentEnv().PATH}`, HEALTH_BIND_ADDR: "127.0.0.1:24602" };
    const remedy = "modprobe -a nft_fib_inet nft_fib_ipv4 nft_fib_ipv6";
    await n1.stopAgent();
    const dry = ["/bin/sh", "-c", `${binary} --dry-run 2>&1`];
    const paper = await n1.namespace.run(dry, { env: n1.agentEnv(env) });
    for (const part of [remedy, "iptables-nft-restore"]) expect(paper).toContain(part);

    n1.startAgent(env);
    await n1.inSync(20_000);
    expect(await lab.unreached([p1, p2])).toEqual([]);
    const state = await stateOf(n1);
    expect(state.nftables).toEqual([]);
    expect((await n1.$`iptables-nft-save`).stdout).toContain("WIGGLENET-");
    const warnings = atLeast("warn", n1.agentLog()).filter((line) => JSON.stringify(line).includes(remedy));
    expect(warnings).toHaveLength(1);
    const readyz = await n1.$`curl -s ${`http://${env.HEALTH_BIND_ADDR}/readyz`}`;
    expect(readyz.stdout).toMatch(/^ok\n(.*\n)*warning: .*modprobe -a nft_fib_inet/);
    await n1.stopAgent();
    n1.startAgent({ ...env, FIREWALL_BACKEND: "nftables" });
    expect(await n1.agentExit()).toBe(2);
    expect(JSON.stringify(n1.agentLog())).toContain(remedy);
    // Nor is iptables of use.
    await n1.write(`${folder}/iptables-nft`, "#!/bin/sh\necho iptables v1.6.1\n");
    await n1.$`chmod +x ${`${folder}/iptables-nft`}`;
    n1.startAgent(env);
    expect(await n1.agentExit()).toBe(2);
    for (const part of [remedy, "iptables-nft 1.6.1 is too old"])
      expect(JSON.stringify(n1.agentLog())).toContain(part);
    expect(await stateOf(n1)).toEqual(state);

    n1.startAgent();
    await n1.inSync(20_000);
    expect(await stateOf(n1)).toEqual(settled);
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
