/** Which packets pass, and what source address they arrive with: one table for every backend and setting. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { Lab } from "./lab/lab.ts";
import type { LightNode } from "./lab/lightnode.ts";
import type { Host } from "./lab/namespace.ts";
import type { Protocol } from "./lab/place.ts";
import { until } from "./lab/process.ts";

type Name = "pod" | "remote pod" | "node" | "other node" | "outside";
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
];

let lab: Lab;
let hosts: Record<Name, Host>;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2 });
  const [node, other] = lab.nodes as [LightNode, LightNode];
  const [pod, remote] = await Promise.all([node.pod("p"), other.pod("p")]);
  await lab.shakeHands();
  hosts = { pod, "remote pod": remote, node, "other node": other, outside: lab.outside };
  // Outside knows the way to the pods, as to public addresses: what then keeps it out is the filter alone.
  for (const each of lab.nodes)
    for (const prefix of await each.podCIDRs())
      await lab.underlay.router.ip(
        `route add ${prefix} via ${prefix.includes(":") ? each.addresses.ipv6 : each.addresses.ipv4}`,
      );
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

async function restart(env: Record<string, string>): Promise<void> {
  await Promise.all(lab.nodes.map((node) => node.stopAgent()));
  await Promise.all(lab.nodes.map((node) => node.startAgent(env)));
  await until(
    "the agents to be in sync",
    () => lab.nodes.every((node) => node.agentLog().some((line) => line.msg === "in sync")),
    {
      why: () => JSON.stringify(lab.nodes.map((node) => node.agentLog().slice(-3))),
    },
  );
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
  const seen = cases.map(async ({ from, to, family, protocol }) => {
    const reached = await lab.reach(hosts[from], hosts[to], { family, protocol, timeout: 1_000 });
    const source = !reached.ok ? "dropped" : protocol === "icmp" ? "passed" : whose(reached.seen, family);
    return `${from} -> ${to} ${family} ${protocol}: ${source}`;
  });
  const expected = cases.map(
    ({ from, to, source, family, protocol }) =>
      `${from} -> ${to} ${family} ${protocol}: ${verdict(source(settings), family, protocol)}`,
  );
  return { seen: await Promise.all(seen), expected };
}

function verdict(source: Name | "gateway" | "dropped", family: Family, protocol: Protocol): string {
  // RFC 4890: echo passes firewalls in IPv6. An echo's answer does not tell what source was seen.
  if (protocol === "icmp") return source === "dropped" && family === "ipv4" ? "dropped" : "passed";
  return source;
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

  test.each(["nft", "legacy"])("a FORWARD policy of DROP in iptables-%s", async (variant) => {
    const policy = (value: string) =>
      Promise.all(
        lab.nodes.flatMap((node) =>
          ["iptables", "ip6tables"].map((tool) =>
            node.namespace.run([`${tool}-${variant}`, "-P", "FORWARD", value]),
          ),
        ),
      );
    await policy("DROP");
    const settings = { masquerade: true, filter: true };
    await restart(environment(backend, settings));
    const { seen, expected } = await outcomes(settings);
    await policy("ACCEPT");
    expect(seen).toEqual(expected);
  });
});
