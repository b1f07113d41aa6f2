/** Native routing by family, firewall-only, and what `--dry-run` prints. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { kubernetesDir, repository } from "./lab/cache.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { type NodeState, objectsOf, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

const key = "wigglenet/public-key";
const privateKey = "/etc/wigglenet/private.key";
const native = (ipv4: boolean, ipv6: boolean) => ({
  NATIVE_ROUTING_IPV4: String(ipv4),
  NATIVE_ROUTING_IPV6: String(ipv6),
});

let lab: Lab;
let n1: LightNode, n2: LightNode;

beforeAll(async () => {
  // A child rather than a service, so that no link is there before the agent wants one.
  lab = await Lab.start({ nodes: 2, agents: false, wireguard: "child", clear: true });
  [n1, n2] = lab.nodes as [LightNode, LightNode];
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** Starts the agents anew, with native routing for these families. */
async function run(ipv4: boolean, ipv6: boolean): Promise<void> {
  for (const node of lab.nodes) if (node.agentRuns) expect(await node.stopAgent()).toBe(0);
  await lab.startAgents(native(ipv4, ipv6));
  await Promise.all(lab.nodes.map((node) => node.inSync()));
  await until("both to know each other", async () => {
    const counts = await Promise.all(lab.nodes.map(async (node) => (await stateOf(node)).wireguard.length));
    return (ipv4 && ipv6) || counts.every((count) => count === 2);
  });
}

/** The state of a node that had a tunnel and has none any more. */
async function withoutTunnel(node: LightNode): Promise<NodeState> {
  const state = await stateOf(node);
  expect(state.rules.join("\n")).not.toContain("24601");
  expect(state.annotations).not.toContainKey(key);
  // A wireguard-go and its link stay, as they may be a service of the node: without addresses and peers.
  expect(state.link.filter((line) => line.includes(" inet"))).toEqual([]);
  expect(state.wireguard.slice(1)).toEqual([]);
  // For the day that the tunnel comes back.
  expect(node.read(privateKey)).toBeDefined();
  return state;
}

describe("native routing", () => {
  let p1: Pod, p2: Pod;

  /** What an underlay that routes pods has; `ip route replace` of the agent's takes a route's place. */
  async function routeByUnderlay(verb: "replace" | "delete"): Promise<void> {
    for (const [from, to] of [
      [n1, n2],
      [n2, n1],
    ] as const)
      for (const cidr of await to.podCIDRs()) {
        const family = cidr.includes(":") ? "ipv6" : "ipv4";
        await from.namespace.ip(`route ${verb} ${cidr} via ${to.addresses[family]}`);
      }
  }

  const clear = (family: "ipv4" | "ipv6") => `host ${p1.addresses[family]} and not udp port 24601`;
  const underlayMtu = (node: LightNode) => JSON.parse(node.read(cniFile)!).plugins[0].mtu as number;
  const pairs = () =>
    [p1, p2, n1, n2].flatMap((a) =>
      [p1, p2]
        .filter((b) => b !== a)
        .flatMap(
          (b) =>
            [
              [a, b],
              [b, a],
            ] as [typeof a, typeof a][],
        ),
    );

  /** What comes for a dead address of the own pod CIDRs must not go back by the default route. */
  const guards = async (node: LightNode) =>
    (await node.podCIDRs()).map((cidr) =>
      cidr.includes(":")
        ? `-6 unreachable ${cidr} dev lo metric 4096 pref medium`
        : `-4 unreachable ${cidr} metric 4096`,
    );

  test("for both: no link, no key, no routes, no mark; pods go by the underlay", async () => {
    await run(true, true);
    await routeByUnderlay("replace");
    [p1, p2] = await Promise.all([n1.pod("p"), n2.pod("p")]);
    for (const node of lab.nodes) {
      const state = await stateOf(node);
      expect(state).toMatchObject({ link: [], routes: await guards(node), wireguard: [] });
      expect(state.rules.join("\n")).not.toContain("24601");
      expect(state.nftables.join("\n")).not.toContain("mark set");
      expect(state.annotations).not.toContainKey(key);
      expect(state.annotations["wigglenet/pod-cidrs"]).toBe(JSON.stringify(await node.podCIDRs()));
      expect(underlayMtu(node)).toBe(1500);
      expect(node.read(privateKey)).toBeUndefined();
    }
    expect(await lab.unreached(pairs())).toEqual([]);
    expect(await lab.unreached([p1, p2], { protocols: ["icmp"], size: 1500, dontFragment: true })).toEqual(
      [],
    );
    const dead = {
      ipv4: p1.addresses.ipv4!.replace(/\d+$/, "222"),
      ipv6: p1.addresses.ipv6!.replace(/::.*$/, "::dead"),
    };
    const nobody: Host = { name: "nobody", addresses: dead, place: n1.place };
    const mac = (await n1.$`cat /sys/class/net/eth0/address`).stdout.trim();
    await using returned = await lab.capture(
      `ether src ${mac} and dst host (${Object.values(dead).join(" or ")})`,
    );
    for (const family of ["ipv4", "ipv6"] as const)
      expect(await lab.reach(p2, nobody, { family, protocol: "tcp" })).toMatchObject({
        reason: expect.stringMatching(/No route to host|Network is unreachable/),
      });
    expect(await returned.stop()).toEqual([]);
    expect(await lab.reach(p1, p2)).toMatchObject({ seen: p1.addresses.ipv4! });
    expect(await lab.reach(p1, lab.outside)).toMatchObject({ seen: n1.addresses.ipv4! });
  });

  test("for IPv4 alone: IPv6 in the tunnel", async () => {
    await run(true, false);
    for (const [node, other] of [
      [n1, n2],
      [n2, n1],
    ] as const) {
      const state = await stateOf(node);
      const ipv4 = state.routes.filter((route) => !route.startsWith("-6 "));
      expect(ipv4).toEqual((await guards(node)).slice(0, 1));
      const rules = state.rules.filter((rule) => rule.includes("24601"));
      expect(rules.map((rule) => rule.slice(0, 3))).toEqual(["-6 "]);
      const table = await node.$`nft list table inet wigglenet`;
      const marks = objectsOf(table.stdout).filter((object) => object.includes("mark set"));
      expect(marks.length).toBeGreaterThan(0);
      expect(marks.filter((object) => !/^chain \S+-ipv6 /.test(object))).toEqual([]);
      const { stdout } = await node.$`wg show wigglenet allowed-ips`;
      const ipv6 = (await other.podCIDRs()).find((cidr) => cidr.includes(":"))!;
      expect(stdout.trim().split("\t")[1]!.split(" ").sort()).toEqual(
        [ipv6, `${other.addresses.ipv6}/128`].sort(),
      );
      expect(underlayMtu(node)).toBe(1420);
    }
    await until(
      "IPv6 to shake hands",
      async () => (await lab.reach(p1, p2, { family: "ipv6", timeout: 6_000 })).ok,
    );
    await using ipv4 = await lab.capture(clear("ipv4"));
    await using ipv6 = await lab.capture(clear("ipv6"));
    expect(await lab.unreached(pairs())).toEqual([]);
    expect((await ipv4.stop()).length).toBeGreaterThan(0);
    expect(await ipv6.stop()).toEqual([]);
  });

  test("switched off on nodes that run: all in the tunnel", async () => {
    await run(false, false);
    await lab.shakeHands();
    await using ipv4 = await lab.capture(clear("ipv4"));
    await using ipv6 = await lab.capture(clear("ipv6"));
    expect(await lab.unreached(pairs())).toEqual([]);
    expect([await ipv4.stop(), await ipv6.stop()]).toEqual([[], []]);
  });

  test("switched on again on nodes that run: nothing of the tunnel stays", async () => {
    await run(true, true);
    await routeByUnderlay("replace");
    for (const node of lab.nodes) {
      const state = await withoutTunnel(node);
      expect(state.routes).toEqual(await guards(node));
      expect(state.nftables.join("\n")).not.toContain("mark set");
      expect(underlayMtu(node)).toBe(1500);
    }
    expect(await lab.unreached(pairs())).toEqual([]);
  });
});

test("FIREWALL_ONLY: the annotations, masquerade and filter, and nothing else", async () => {
  const env = { FIREWALL_ONLY: "1", FILTER_IPV4: "1", FILTER_IPV6: "1" };
  const node = await lab.addNode({ env }, { agent: true });
  const cidrs = JSON.stringify(await node.podCIDRs());
  await until(
    "the annotations",
    async () => (await node.object()).metadata.annotations?.["wigglenet/pod-cidrs"] === cidrs,
  );
  const state = await stateOf(node);
  expect(state).toMatchObject({
    link: [],
    routes: [],
    wireguard: [],
    cni: { target: undefined, content: undefined },
    annotations: {
      "wigglenet/node-ips": JSON.stringify(Object.values(node.addresses)),
      "wigglenet/pod-cidrs": cidrs,
    },
  });
  expect(state.annotations).not.toContainKey(key);
  expect(state.rules.join("\n")).not.toContain("24601");
  expect(node.read(privateKey)).toBeUndefined();
  // There is no tunnel that could be preferred to plaintext: masquerade, and a filter that knows nodes by address.
  const table = state.nftables.join("\n");
  const rulesOf = (verdict: string) => state.nftables.filter((line) => line.includes(verdict));
  expect(table).toStartWith("table inet wigglenet");
  // Of what is outside, and of hosts outside whose addresses lie inside a pod CIDR; each in both families.
  expect(rulesOf("masquerade")).toHaveLength(4);
  expect(rulesOf(" drop")).toEqual([
    expect.stringContaining("ip daddr @own-ipv4"),
    expect.stringContaining("ip6 daddr @own-ipv6"),
  ]);
  expect(rulesOf("mark set")).toEqual([]);
  for (const own of JSON.parse(cidrs)) expect(table).toContain(own);
  for (const other of lab.nodes.filter((each) => each !== node))
    for (const address of Object.values(other.addresses)) expect(table).toContain(address!);
  await lab.removeNode(node);
});

test("FIREWALL_ONLY on a node that had the overlay: that goes, but for its key", async () => {
  const node = await lab.addNode({}, { agent: true });
  await node.ready();
  expect((await stateOf(node)).routes).not.toEqual([]);
  await node.stopAgent();
  node.startAgent({ FIREWALL_ONLY: "1" });
  await node.inSync();
  expect(await withoutTunnel(node)).toMatchObject({
    routes: [],
    cni: { target: undefined, content: undefined },
  });
  await node.stopAgent();
  node.startAgent({ FIREWALL_ONLY: "1" });
  await node.inSync();
  expect(node.agentLog().filter((line) => "commands" in line)).toEqual([]);
  await lab.removeNode(node);
});

describe("--dry-run", () => {
  /** All that a command could change, whoever's it is. */
  async function everything(node: LightNode): Promise<string> {
    const { stdout } =
      await node.$`ip -o address show; ip route show table all; ip -6 route show table all; ip rule
      ip -6 rule; nft list ruleset; ls -lR --time-style=full-iso /run /etc/cni /etc/wigglenet
      head /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv6/conf/*/accept_dad`;
    return `${stdout}${JSON.stringify((await node.object()).metadata.annotations ?? {})}`;
  }

  const dryRun = (node: LightNode) =>
    node.namespace.run([`${repository}/dist/wigglenet`, "agent", "--dry-run"], { env: node.agentEnv() });

  test("changes nothing, and what it prints leaves the agent nothing to do", async () => {
    await run(false, false);
    const node = await lab.addNode();
    await node.podCIDRs();
    await until("the link-local address", async () => !(await everything(node)).includes("tentative"));
    const before = await everything(node);
    const text = await dryRun(node);
    expect(await everything(node)).toBe(before);
    expect(await dryRun(node)).toBe(text);

    const env = { ...node.agentEnv(), PATH: `${kubernetesDir}/bin:${process.env.PATH}` };
    await node.namespace.run(["/bin/sh", "-euc", text], { env });
    const pasted = await stateOf(node);
    expect(await dryRun(node)).toBe("");
    node.startAgent();
    await node.inSync();
    expect(await stateOf(node)).toEqual(pasted);
    expect(node.agentLog().filter((line) => "commands" in line || "annotations" in line)).toEqual([]);
    const pod = await node.pod("p");
    expect(await lab.unreached(lab.nodes.map((other): [Host, Host] => [other, pod]))).toEqual([]);
  });

  test("exits with 1 when something cannot be read, and says what", async () => {
    const folder = `${lab.underlay.dir}/no-nft`;
    mkdirSync(folder);
    // It tells its version, and may not look at the kernel.
    writeFileSync(
      `${folder}/nft`,
      `#!/bin/sh\n[ "$1" = -V ] && exec ${Bun.which("nft")} -V\necho Operation not permitted >&2\nexit 1\n`,
      { mode: 0o755 },
    );
    const env = { ...n1.agentEnv(), PATH: `${folder}:${process.env.PATH}` };
    const argv = [`${repository}/dist/wigglenet`, "agent", "--dry-run"];
    const script = 'code=0; "$@" 2>&1 || code=$?; echo "exit code $code"';
    const said = await n1.namespace.run(["/bin/sh", "-c", script, "sh", ...argv], { env });
    expect(said).toContain("wigglenet: not all could be read, and what is printed above may lack something:");
    expect(said).toContain("guard: nft -j list table inet wigglenet: exit code 1: Operation not permitted");
    expect(said).toEndWith("exit code 1\n");
  });
});
