/** Which packets pass, and what source address they arrive with: one table for every backend and setting. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { version } from "../package.json";
import { samples } from "../src/host/firewall/nftmodules.ts";
import { annotationsOf } from "../src/plan/overlay/node.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Protocol } from "./lab/cluster/place.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { routerAddresses } from "./lab/kernel/underlay.ts";
import { Lab } from "./lab/lab.ts";
import { Arrivals } from "./lab/probe/arrivals.ts";
import { until } from "./lab/process.ts";

/** "router" is the nodes' gateway and has the API server; a third node's pod CIDRs lie around its addresses. */
type Name = "pod" | "remote pod" | "node" | "other node" | "outside" | "router";
type Family = "ipv4" | "ipv6";
interface Settings {
  masquerade: boolean;
  filter: boolean;
}

/** From, to, and the source address that is seen there: whose it is, or why nothing arrives. */
type Row = [from: Name, to: Name, source: (settings: Settings) => Name | "gateway" | "dropped"];

const always = (source: Name | "gateway") => () => source;
const rows: Row[] = [
  ["pod", "remote pod", always("pod")],
  ["pod", "node", always("pod")],
  ["pod", "other node", always("pod")],
  ["pod", "outside", ({ masquerade }) => (masquerade ? "node" : "pod")],
  ["remote pod", "pod", always("remote pod")],
  ["remote pod", "node", always("remote pod")],
  ["remote pod", "other node", always("remote pod")],
  ["remote pod", "outside", ({ masquerade }) => (masquerade ? "other node" : "remote pod")],
  ["node", "pod", always("gateway")],
  ["node", "remote pod", always("gateway")],
  ["node", "other node", always("node")],
  ["node", "outside", always("node")],
  ["other node", "pod", always("gateway")],
  ["other node", "remote pod", always("gateway")],
  ["other node", "node", always("other node")],
  ["other node", "outside", always("other node")],
  ["outside", "pod", ({ filter }) => (filter ? "dropped" : "outside")],
  ["outside", "remote pod", ({ filter }) => (filter ? "dropped" : "outside")],
  ["outside", "node", always("outside")],
  ["outside", "other node", always("outside")],
  ["pod", "router", ({ masquerade }) => (masquerade ? "node" : "pod")],
  ["remote pod", "router", ({ masquerade }) => (masquerade ? "other node" : "remote pod")],
  ["node", "router", always("node")],
  ["router", "pod", ({ filter }) => (filter ? "dropped" : "router")],
  ["router", "node", always("router")],
];

let lab: Lab;
let hosts: Record<Name, Host>;
let arrivals: Map<Host, Arrivals>;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2 });
  const [node, other] = lab.nodes as [LightNode, LightNode];
  const [pod, remote] = await Promise.all([node.pod("p"), other.pod("p")]);
  await lab.shakeHands();
  const router = { name: "router", addresses: routerAddresses, place: lab.underlay.router.place };
  hosts = { pod, "remote pod": remote, node, "other node": other, outside: lab.outside, router };
  const annotations = annotationsOf({
    version,
    publicKey: Buffer.alloc(32, 1).toString("base64"),
    podCidrs: ["172.30.0.0/29", "fd30::/125"],
    addresses: [],
    endpoints: ["172.30.0.200", "fd30::200"],
  });
  await lab.controlPlane.api.create({
    apiVersion: "v1",
    kind: "Node",
    metadata: { name: "around-router", annotations },
  });
  for (const each of [node, other])
    await until("the third node's pod CIDRs to be excepted", async () => {
      const { stdout } = await each.$`ip route show table 24600; ip -6 route show table 24600`;
      return ["throw 172.30.0.1 ", "throw fd30::1 "].every((route) => stdout.includes(route));
    });
  arrivals = new Map(
    await Promise.all(
      Object.values(hosts).map(async (host) => [host, await Arrivals.start(host, lab.underlay.dir)] as const),
    ),
  );
  // Outside knows the way to the pods, as to public addresses: what then keeps it out is the filter alone.
  for (const each of [node, other])
    for (const prefix of await each.podCIDRs())
      await lab.underlay.router.ip(
        `route add ${prefix} via ${prefix.includes(":") ? each.addresses.ipv6 : each.addresses.ipv4}`,
      );
}, 60_000);
afterAll(async () => {
  await Promise.all([...arrivals.values()].map((each) => each[Symbol.asyncDispose]()));
  await lab[Symbol.asyncDispose]();
});

async function restart(env: Record<string, string>): Promise<void> {
  await Promise.all(lab.nodes.map((node) => node.stopAgent()));
  for (const node of lab.nodes) node.startAgent(env);
  await Promise.all(lab.nodes.map((node) => node.inSync()));
}

/** By family and protocol, what each row gives, and what it should. */
async function outcomes(settings: Settings): Promise<{ seen: string[]; expected: string[] }> {
  const cases = rows.flatMap(([from, to, source]) =>
    (["ipv4", "ipv6"] as const).flatMap((family) =>
      (["tcp", "udp", "icmp"] as const).map((protocol) => ({ from, to, source, family, protocol })),
    ),
  );
  // Sessions end after three minutes without a packet.
  await lab.shakeHands();
  for (const each of arrivals.values()) each.clear();
  const seen = cases.map(async ({ from, to, family, protocol }, index) => {
    // An echo request is told from the others by its size.
    const size = 200 + index;
    const reached = await lab.reach(hosts[from], hosts[to], { family, protocol, size, timeout: 1_000 });
    const source = async (seen: string) =>
      protocol === "icmp" ? await arrivals.get(hosts[to])!.source(family, size) : seen;
    const outcome = reached.ok ? whose(await source(reached.seen), family) : "dropped";
    return `${from} -> ${to} ${family} ${protocol}: ${outcome}`;
  });
  const expected = cases.map(
    ({ from, to, source, family, protocol }) =>
      `${from} -> ${to} ${family} ${protocol}: ${verdict(source(settings), from, family, protocol)}`,
  );
  return { seen: await Promise.all(seen), expected };
}

function verdict(
  source: Name | "gateway" | "dropped",
  from: Name,
  family: Family,
  protocol: Protocol,
): string {
  // RFC 4890: echo passes firewalls in IPv6.
  return source === "dropped" && protocol === "icmp" && family === "ipv6" ? from : source;
}

function whose(address: string, family: Family): string {
  const [name] = Object.entries(hosts).find(([, host]) => host.addresses[family] === address) ?? [];
  return name ?? (/^10\.244\.\d+\.1$|^fd00:10:244:\w*:?:1$/.test(address) ? "gateway" : address);
}

const switches = [
  { masquerade: true, filter: true },
  { masquerade: true, filter: false },
  { masquerade: false, filter: true },
  { masquerade: false, filter: false },
];

function environment(backend: string, { masquerade, filter }: Settings): Record<string, string> {
  const flag = (value: boolean) => (value ? "1" : "0");
  return {
    FIREWALL_BACKEND: backend.replace(/-.*/, ""),
    MASQUERADE_IPV4: flag(masquerade),
    MASQUERADE_IPV6: flag(masquerade),
    FILTER_IPV4: flag(filter),
    FILTER_IPV6: flag(filter),
  };
}

/** What is left of a backend on a node. */
async function remains(node: LightNode, backend: string): Promise<string> {
  if (backend === "nftables")
    return await node.namespace.run(["/bin/sh", "-c", "nft list table inet wigglenet 2>/dev/null || true"]);
  const variant = backend.replace("iptables-", "");
  const save = ["iptables", "ip6tables"].map((tool) => `${tool}-${variant}-save`).join("; ");
  const all = await node.namespace.run(["/bin/sh", "-c", `{ ${save}; } 2>/dev/null`]);
  return all
    .split("\n")
    .filter((line) => line.includes("WIGGLENET"))
    .join("\n");
}

const backends = ["nftables", "iptables-nft", "iptables-legacy"];

describe.each(backends)("%s", (backend) => {
  beforeAll(async () => {
    // How the agent tells which iptables a node uses.
    if (backend === "iptables-legacy")
      await Promise.all(
        lab.nodes.map((node) =>
          node.namespace.run(["iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]),
        ),
      );
  });

  test.each(switches)("masquerade %o", async (settings) => {
    await restart(environment(backend, settings));
    const { seen, expected } = await outcomes(settings);
    expect(seen).toEqual(expected);
    for (const node of lab.nodes)
      for (const other of backends)
        expect([other, (await remains(node, other)) !== ""]).toEqual([other, other === backend]);
  });

  describe("a FORWARD policy of DROP in both variants of iptables", () => {
    beforeAll(() => forwardPolicy("DROP"));
    afterAll(() => forwardPolicy("ACCEPT"));

    test.each(switches)("masquerade %o", async (settings) => {
      await restart(environment(backend, settings));
      const { seen, expected } = await outcomes(settings);
      expect(seen).toEqual(expected);
    });
  });
});

async function forwardPolicy(policy: string): Promise<void> {
  const commands = ["nft", "legacy"].flatMap((variant) =>
    ["iptables", "ip6tables"].map((tool) => `${tool}-${variant} -P FORWARD ${policy}`),
  );
  await Promise.all(lab.nodes.map((node) => node.namespace.run(["/bin/sh", "-ec", commands.join("\n")])));
}

test("a kernel with all modules takes each sample rule that is asked of it, beside a table of others", async () => {
  const [node] = lab.nodes as [LightNode];
  const asked = samples({ tunnel: true, masquerade: true }).map(({ line }) => `${line}\n`);
  const ask = ["/bin/sh", "-c", 'printf %s "$1" | nft -c -f -', "sh", asked.join("")];
  const before = await node.namespace.run(["nft", "list", "tables"]);
  expect(await node.namespace.run(ask)).toBe("");
  // With a chain of another type.
  await node.namespace.run(["nft", "add table inet wigglenet-check; add chain inet wigglenet-check srcnat"]);
  expect(await node.namespace.run(ask)).toBe("");
  await node.namespace.run(["nft", "delete table inet wigglenet-check"]);
  expect(await node.namespace.run(["nft", "list", "tables"])).toBe(before);
});

test("each backend in the place of each other, on a running node: no packet lost, no rule left", async () => {
  const [node] = lab.nodes as [LightNode];
  const [nftables, nft, legacy] = backends as [string, string, string];
  const settings = { masquerade: true, filter: true };
  await restart(environment(nftables, settings));
  const probes = await Promise.all([
    lab.probe(hosts.pod, hosts["remote pod"], { family: "ipv6" }),
    lab.probe(hosts.pod, hosts["other node"], { family: "ipv4" }),
    lab.probe(hosts.pod, hosts.outside, { family: "ipv4", protocol: "tcp" }),
    lab.probe(hosts.outside, hosts.pod, { family: "ipv6", protocol: "icmp" }),
  ]);
  for (const backend of [nft, legacy, nftables, legacy, nft, nftables]) {
    // How the agent tells which iptables a node uses.
    const hint = backend === legacy ? "-N" : "-X";
    await node.namespace
      .run(["iptables-legacy", "-t", "mangle", hint, "KUBE-IPTABLES-HINT"])
      .catch(() => undefined);
    await node.stopAgent();
    node.startAgent(environment(backend, settings));
    await node.inSync();
    const left = backends.map(async (other) => [other, (await remains(node, other)) !== ""]);
    expect([backend, await Promise.all(left)]).toEqual([
      backend,
      backends.map((other) => [other, other === backend]),
    ]);
    await Promise.all(probes.map((probe) => probe.flowing(5)));
  }
  for (const probe of probes) expect(await probe.stop()).toMatchObject({ lost: 0 });
}, 60_000);

test.each([
  ["iptables-legacy", "ip filter INPUT of iptables-legacy"],
  ["ip6tables-nft", "ip6 filter INPUT"],
])("an INPUT policy of DROP in %s is warned of", async (program, what) => {
  const [node] = lab.nodes as [LightNode];
  const established = "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
  const run = (...commands: string[]) =>
    node.namespace.run(["/bin/sh", "-ec", commands.map((command) => `${program} ${command}`).join("\n")]);
  await run(`-A ${established}`, "-P INPUT DROP");
  await node.stopAgent();
  node.startAgent();
  await node.inSync();
  const warnings = node.agentLog().filter((line) => String(line.msg).includes("have it accept the UDP port"));
  expect(warnings).toEqual([expect.objectContaining({ level: "warn", chains: [what], port: 24601 })]);
  await run("-P INPUT ACCEPT", `-D ${established}`);
});
