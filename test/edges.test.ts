/** Paths that a simple overlay gets wrong: services, hostPorts, NAT, masquerade, and addresses that nobody has. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { nthAddress } from "../src/net/address.ts";
import { annotation } from "../src/plan/overlay/node.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import { createService, startKubeProxy } from "./lab/cluster/service.ts";
import type { Addresses, Host } from "./lab/kernel/namespace.ts";
import { outsideAddresses } from "./lab/kernel/underlay.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let n1: LightNode, n2: LightNode, n3: LightNode;
let p1: Pod, p2: Pod, p3: Pod;
const families = ["ipv4", "ipv6"] as const;
const external = { ipv4: "203.0.113.3", ipv6: "2001:db8:ffff::3" };
const ports = { hostPort: 8080, cluster: 30007, local: 30008 };
const numbered = (n: number) => ({ ipv4: `203.0.113.${n}`, ipv6: `2001:db8:ffff::${n}` });
/** Addresses of the Services, by their policy. */
const front = {
  cluster: { externalIps: numbered(20), balancer: numbered(21) },
  local: { externalIps: numbered(22), balancer: numbered(23) },
};

beforeAll(async () => {
  lab = await Lab.start({
    // The lab's nodes have a strict rp_filter on their links unless told otherwise.
    nodes: [
      {},
      { mtu: 1400, env: { MASQUERADE_IPV4: "0", MASQUERADE_IPV6: "0" } },
      { mtu: 9000, external, env: { FIREWALL_BACKEND: "iptables" } },
    ],
    // What a Service leads to a pod passes the filter.
    env: { FILTER_IPV4: "1", FILTER_IPV6: "1" },
  });
  [n1, n2, n3] = lab.nodes as [LightNode, LightNode, LightNode];
  const hostPorts = (["tcp", "udp"] as const).map((protocol) => ({
    hostPort: ports.hostPort,
    containerPort: 7,
    protocol,
  }));
  [p1, p2, p3] = await Promise.all([n1.pod("p"), n2.pod("p", { ports: hostPorts }), n3.pod("p")]);
  await lab.underlay.nat(n3.addresses, external);
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab?.[Symbol.asyncDispose]());

/** A host as another address of it, or an address that nobody has. */
const at = (host: Host, addresses: Addresses, name = `${host.name} as`): Host => ({
  name: `${name} ${Object.values(addresses).join(", ")}`,
  addresses,
  place: host.place,
});

/** The source address that the other side saw, by family; or why there was none. */
async function seen(from: Host, to: Host, port = 7): Promise<Record<string, string>> {
  const entries = families.map(async (family) => {
    const reached = await lab.reach(from, to, { family, port });
    return [family, reached.ok ? reached.seen : reached.reason];
  });
  return Object.fromEntries(await Promise.all(entries));
}

describe("a pod of n2 behind a port of the node", () => {
  const clusterIps: Record<keyof typeof front, Addresses> = { cluster: {}, local: {} };

  beforeAll(async () => {
    for (const policy of ["cluster", "local"] as const)
      clusterIps[policy] = await createService(lab.controlPlane, policy, {
        nodePort: ports[policy],
        backends: [p2],
        policy: policy === "local" ? "Local" : "Cluster",
        externalIps: [front[policy].externalIps],
        balancers: [front[policy].balancer],
      });
    // In both modes it tells pods by their links, as where pod CIDRs are not of one prefix; and in one by the prefix.
    await startKubeProxy(lab.controlPlane, n1, { podLinks: "veth" });
    await startKubeProxy(lab.controlPlane, n2);
    await startKubeProxy(lab.controlPlane, n3, { mode: "iptables", podLinks: "veth" });
    const served = () => [n1, n2, n3].map((node): [Host, Host] => [node, node]);
    for (const port of [ports.cluster, ports.local])
      await until(
        `port ${port} to be served`,
        async () => {
          const all = port === ports.cluster ? served() : served().slice(1, 2);
          return (await lab.unreached(all, { protocols: ["udp"], port, timeout: 300 })).length === 0;
        },
        { timeout: 20_000 },
      );
  }, 40_000);

  const from = (): Host[] => [n1, n2, n3, p1, p2, p3, lab.outside];
  const protocols = ["tcp" as const, "udp" as const];

  test.each([
    ["hostPort", ports.hostPort],
    ["NodePort, externalTrafficPolicy Local", ports.local],
    ["NodePort, externalTrafficPolicy Cluster", ports.cluster],
  ])("%s of n2: from every node, every pod and outside", async (_, port) => {
    const pairs = from().map((host): [Host, Host] => [host, n2]);
    await using capture = await lab.capture();
    expect(await lab.unreached(pairs, { port, protocols })).toEqual([]);
    // An answer that is larger than any MTU on the way.
    expect(await lab.unreached(pairs, { port, protocols: ["tcp"], size: 20_000 })).toEqual([]);
    expect(await capture.stop()).toEqual([]);
  });

  test("NodePort of another node than the pod's, by way of nftables and of iptables", async () => {
    const pairs = from().flatMap((host): [Host, Host][] => [
      [host, n1],
      [host, n3],
    ]);
    await using capture = await lab.capture();
    expect(await lab.unreached(pairs, { port: ports.cluster, protocols })).toEqual([]);
    expect(await capture.stop()).toEqual([]);
  });

  test.each(["cluster", "local"] as const)(
    "ClusterIP, LoadBalancer and external IPs, externalTrafficPolicy %s: from nodes and pods",
    async (policy) => {
      const { externalIps, balancer } = front[policy];
      const pairs = [n1, n2, n3, p1, p2, p3].flatMap((host) =>
        [clusterIps[policy], balancer, externalIps].map((addresses): [Host, Host] => [
          host,
          at(p2, addresses),
        ]),
      );
      await using capture = await lab.capture();
      expect(await lab.unreached(pairs, { protocols })).toEqual([]);
      expect(await capture.stop()).toEqual([]);
    },
  );

  test.each([
    ["nftables, of a node without a backend", "cluster", () => n1],
    ["iptables, of a node without a backend", "cluster", () => n3],
    ["nftables, of the node with the backend", "local", () => n2],
  ] as const)(
    "LoadBalancer and external IPs from outside, by kube-proxy in %s: %s",
    async (_, policy, node) => {
      const all = Object.values(front[policy]);
      await lab.underlay.router.ip(
        ...all.flatMap(({ ipv4, ipv6 }) => [
          `route replace ${ipv4} via ${node().addresses.ipv4}`,
          `route replace ${ipv6} via ${node().addresses.ipv6}`,
        ]),
      );
      await using capture = await lab.capture();
      const pairs = all.map((addresses): [Host, Host] => [lab.outside, at(node(), addresses)]);
      expect(await lab.unreached(pairs, { protocols })).toEqual([]);
      if (policy === "local")
        for (const addresses of all)
          expect(await seen(lab.outside, at(n2, addresses))).toEqual({ ...outsideAddresses });
      expect(await capture.stop()).toEqual([]);
    },
  );

  test("the backend sees the client's own address where nobody had to translate it", async () => {
    for (const port of [ports.hostPort, ports.local]) {
      expect(await seen(n1, n2, port)).toEqual({ ...n1.addresses });
      expect(await seen(p1, n2, port)).toEqual({ ...p1.addresses });
      expect(await seen(lab.outside, n2, port)).toEqual({ ...outsideAddresses });
    }
  });
});

// docs/configuration.md, "UDP servers of nodes".
describe("a UDP server of a node, in the host's network", () => {
  const any = 5300;
  const bound = { ipv4: 5304, ipv6: 5306 };
  const clients = () => [p1, p2, n1, n2, lab.outside];
  const heard = async (port: (family: "ipv4" | "ipv6") => number, addresses: Addresses = n1.addresses) => {
    const pairs = clients().flatMap((from) => families.map((family) => ({ from, family })));
    const answers = pairs.map(async ({ from, family }) => {
      const options = {
        protocol: "udp" as const,
        address: addresses[family]!,
        port: port(family),
        timeout: 500,
      };
      return (await from.place.reach(options)).ok ? [`${from.name} ${family}`] : [];
    });
    return (await Promise.all(answers)).flat();
  };
  const all = () => clients().flatMap(({ name }) => families.map((family) => `${name} ${family}`));
  const pods = (line: string) => line.includes("/p ");

  beforeAll(async () => {
    await n1.place.listen(any, "any");
    for (const family of families) await n1.place.listen(bound[family], n1.addresses[family]);
  });

  test("that is bound to all addresses and does not say from which it answers: pods do not hear it", async () => {
    expect(await heard(() => any)).toEqual(all().filter((line) => !pods(line)));
  });

  test("but at the gateway of the node's pods, from which the answers come, all in the cluster do", async () => {
    // Which node gets which pod CIDR is the controller manager's choice.
    const [ipv4, ipv6] = (await n1.podCIDRs()).map((cidr) => nthAddress(cidr, 1n));
    const gateway = { ipv4: ipv4!, ipv6: ipv6! };
    expect(await heard(() => any, gateway)).toEqual(all().filter((line) => !line.startsWith("outside")));
  });

  test("that is bound to the node's address, or answers from the one that was asked: all hear it", async () => {
    expect(await heard((family) => bound[family])).toEqual(all());
    expect(await heard(() => 7)).toEqual(all());
  });
});

describe("a node with an ExternalIP behind 1:1 NAT", () => {
  test("pods of every node reach it by its ExternalIP, which is in nobody's AllowedIPs", async () => {
    const behind = at(n3, external);
    // n2 does not masquerade, and a packet with a pod's address finds no way back.
    expect(await lab.unreached([p1, p3, n1, n2].map((host): [Host, Host] => [host, behind]))).toEqual([]);
    for (const node of lab.nodes) {
      const { stdout } =
        await node.$`wg show wigglenet allowed-ips; ip route show table all; ip -6 route show table all`;
      for (const address of Object.values(external)) expect(stdout).not.toContain(address);
    }
    expect(await lab.unreached([p1, p2].map((host): [Host, Host] => [host, n3]))).toEqual([]);
  });
});

describe("masquerade", () => {
  test("outside sees the node's address, and nobody inside does", async () => {
    expect(await seen(p1, lab.outside)).toEqual({ ...n1.addresses });
    for (const to of [p2, p3, n1, n2, n3, await n1.pod("q")])
      expect({ to: to.name, seen: await seen(p1, to) }).toEqual({ to: to.name, seen: { ...p1.addresses } });
    for (const to of [p1, n1, n2]) expect(await seen(p2, to)).toEqual({ ...p2.addresses });
  });

  test("switched off, the pod's own address goes out", async () => {
    await using capture = await lab.capture(
      Object.values(outsideAddresses)
        .map((a) => `dst host ${a}`)
        .join(" or "),
    );
    for (const family of families)
      expect(await lab.reach(p2, lab.outside, { family, timeout: 300 })).toMatchObject({ ok: false });
    const packets = await capture.stop();
    for (const family of families)
      expect(packets.filter((line) => line.includes(` ${p2.addresses[family]}.`))).toHaveLength(1);
    expect(packets).toHaveLength(2);
  });
});

describe("an address that nobody has", () => {
  const unreachable = { ok: false, reason: expect.stringMatching(/No route to host|Network is unreachable/) };
  const dead = (cidrs: string[]): Addresses => ({
    ipv4: cidrs.find((cidr) => !cidr.includes(":"))!.replace(/\.0\/24$/, ".222"),
    ipv6: cidrs.find((cidr) => cidr.includes(":"))!.replace(/::\/64$/, "::dead"),
  });
  const either = ({ ipv4, ipv6 }: Addresses) => `${ipv4} or ${ipv6}`;

  /** ICMP says so at once, and nothing with that address crosses the underlay in the clear. */
  async function expectUnreachable(from: Host[], nobody: Host): Promise<void> {
    await using capture = await lab.capture(`host (${either(nobody.addresses)})`);
    for (const host of from)
      for (const family of families)
        await until(
          `ICMP to tell ${host.name} that ${nobody.name} is unreachable by ${family}`,
          async () => {
            const reached = await lab.reach(host, nobody, { family, protocol: "tcp" });
            expect(reached.ok).toBe(false);
            return !reached.ok && /No route to host|Network is unreachable/.test(reached.reason);
          },
          // The kernel limits what it tells one source to an error in two seconds, and asked more often is silent.
          { timeout: 20_000, every: 3_000 },
        );
    expect(await capture.stop()).toEqual([]);
  }

  test("in the own pod CIDR: unreachable from its pods, its node, other nodes and their pods", async () => {
    const nobody = at(n1, dead(await n1.podCIDRs()), "nobody at");
    await expectUnreachable([p1, n1, n2, p2, p3], nobody);
  });

  test("in the own pod CIDR, from outside: not sent back to where it came from", async () => {
    const cidrs = await n1.podCIDRs();
    const nobody = at(n1, dead(cidrs), "nobody at");
    const routes = cidrs.map(
      (cidr) => `route add ${cidr} via ${cidr.includes(":") ? n1.addresses.ipv6 : n1.addresses.ipv4}`,
    );
    await lab.underlay.router.ip(...routes);
    const mac = (await n1.$`cat /sys/class/net/eth0/address`).stdout.trim();
    await using returned = await lab.capture(`ether src ${mac} and dst host (${either(nobody.addresses)})`);
    await using answers = await lab.capture(`ether src ${mac} and (icmp[0] = 3 or icmp6 and ip6[40] = 1)`);
    for (const family of families)
      expect(await lab.reach(lab.outside, nobody, { family, protocol: "tcp" })).toMatchObject(unreachable);
    expect(await returned.stop()).toEqual([]);
    expect((await answers.stop()).length).toBeGreaterThanOrEqual(2);
    await lab.underlay.router.ip(...routes.map((route) => route.replace("add", "del")));
  });

  test("in the pod CIDR of a node that has lost its annotations, or has just left", async () => {
    const n4 = await lab.addNode();
    await n4.ready();
    const cidrs = await n4.podCIDRs();
    const p4 = await n4.pod("p");
    const reached = () =>
      until(
        "n4 to be in the overlay",
        async () => (await lab.unreached([p1, p2, p3].map((host): [Host, Host] => [host, p4]))).length === 0,
      );
    await reached();
    // Nothing says any more what it has, and its agent is not there to say it anew.
    await n4.stopAgent();
    const none = Object.fromEntries(Object.values(annotation).map((name) => [name, null]));
    await lab.controlPlane.api.patch(`/api/v1/nodes/${n4.name}`, { metadata: { annotations: none } });
    const guarded = async (node: LightNode) => {
      const { stdout } = await node.$`ip route show table 24600; ip -6 route show table 24600`;
      const { stdout: tunnel } =
        await node.$`ip route show table 24600 dev wigglenet; ip -6 route show table 24600 dev wigglenet`;
      return cidrs.every((cidr) => stdout.includes(`unreachable ${cidr} `) && !tunnel.includes(cidr));
    };
    await until("all to guard the pod CIDRs of n4", async () =>
      (await Promise.all([n1, n2, n3].map(guarded))).every(Boolean),
    );
    await expectUnreachable([p1, n1, p2], at(n4, p4.addresses, "the lost pod at"));

    n4.startAgent();
    await reached();
    await lab.removeNode(n4);
    const left = async (node: LightNode) => {
      const { stdout } =
        await node.$`ip route show table 24600 dev wigglenet; ip -6 route show table 24600 dev wigglenet`;
      return cidrs.every((cidr) => !stdout.includes(cidr));
    };
    await until("all to notice that n4 left", async () =>
      (await Promise.all([n1, n2, n3].map(left))).every(Boolean),
    );
    await expectUnreachable([p1, n1, p2], at(n1, p4.addresses, "nobody at"));
  });
});

describe("MTU", () => {
  const link = async (node: LightNode) =>
    (JSON.parse((await node.$`ip -j link show dev wigglenet`).stdout) as { mtu: number }[])[0]!.mtu;
  const cni = (node: LightNode) => JSON.parse(node.read(cniFile)!).plugins[0].mtu as number;

  test("is that of the node's own underlay less 80, and follows it", async () => {
    for (const [node, mtu] of [
      [n1, 1420],
      [n2, 1320],
      [n3, 8920],
    ] as const)
      expect([node.name, await link(node), cni(node)]).toEqual([node.name, mtu, mtu]);
    await n2.namespace.ip("link set eth0 mtu 1380");
    await until("the MTU of n2 to follow", async () => (await link(n2)) === 1300 && cni(n2) === 1300);
    // A running pod keeps the MTU that it was made with, and only path MTU discovery can tell it of the new one.
    const small = await n2.pod("small");
    expect((await small.$`ip -j link show dev eth0`).stdout).toContain('"mtu":1300');
    expect(await lab.unreached([small, p1, p3, n2], { protocols: ["tcp"], size: 60_000 })).toEqual([]);
  });

  test("is never less than IPv6 needs: then the tunnel's own packets are fragmented", async () => {
    for (const node of [n1, n2]) await node.namespace.ip("link set eth0 mtu 1280");
    for (const node of [n1, n2])
      await until(
        `the MTU of ${node.name} to follow`,
        async () => (await link(node)) === 1280 && cni(node) === 1280,
      );
    const small = [await n1.pod("least"), await n2.pod("least")];
    expect(await lab.unreached(small)).toEqual([]);
    expect(await lab.unreached(small, { protocols: ["tcp"], size: 60_000 })).toEqual([]);
    expect(await lab.unreached(small, { protocols: ["icmp"], size: 1280, dontFragment: true })).toEqual([]);
  });
});
