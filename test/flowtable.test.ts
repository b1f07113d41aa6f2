/**
 * Flows that are offloaded: that they work, that they do pass by the chains, and that nothing of them is in the clear. Where the
 * kernel has no flow tables (the virtual machine's has) the agent says so, and the node works without.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { parseDevices, refusal } from "../src/host/firewall/flowtable.ts";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import type { Stream } from "./lab/cluster/place.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Addresses, Host } from "./lab/kernel/namespace.ts";
import { objectsOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
let n1: LightNode, n2: LightNode;
let p1: Pod, q1: Pod, p2: Pod;
const families = ["ipv4", "ipv6"] as const;
const settings = {
  ENABLE_FLOWTABLE: "1",
  FLOWTABLE_DEVICES: "eth0,wigglenet,veth*,extra0",
  FLOWTABLE_PACKET_THRESHOLD: "10",
  // Of public pods: what leaves the tunnel has a pod's address on it.
  MASQUERADE_IPV6: "0",
  RESYNC_PERIOD: "600",
};
const service = { ipv4: "10.96.0.77", ipv6: "fd00:10:96::77" };

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2, env: settings, clear: true });
  [n1, n2] = lab.nodes as [LightNode, LightNode];
  [p1, q1, p2] = [await n1.pod("p"), await n1.pod("q"), await n2.pod("p")];
  await lab.shakeHands();
}, 120_000);
afterAll(() => lab[Symbol.asyncDispose]());

async function restart(node: LightNode, env: Record<string, string>): Promise<void> {
  await node.stopAgent();
  node.startAgent(env);
  await node.inSync(30_000);
}

const writes = (node: LightNode) =>
  node.agentLog().filter((line) => line.msg === "firewall" || line.msg === "flow table");

const offers = (await refusal()) === undefined;

if (!offers)
  test("a kernel without flow tables: a warning names the remedy, and the node works", async () => {
    for (const node of lab.nodes) {
      await node.inSync(30_000);
      expect(node.agentLog()).toContainEqual(
        expect.objectContaining({
          level: "warn",
          msg: expect.stringContaining("modprobe -a nf_flow_table_inet nft_flow_offload"),
        }),
      );
      expect((await node.$`nft list table inet wigglenet`).stdout).not.toContain("flow");
    }
    expect(await lab.unreached([p1, p2, q1])).toEqual([]);
  });

if (offers)
  describe("flows are offloaded", () => {
    /** What conntrack says is offloaded, as `udp FROM TO`. */
    async function offloaded(node: LightNode): Promise<Set<string>> {
      const listings = families.map(async (family) => (await node.$`conntrack -L -f ${family}`).stdout);
      const flow = /^(tcp|udp) .*?src=(\S+) dst=(\S+) .*\[OFFLOAD\]/gm;
      return new Set(
        (await Promise.all(listings)).flatMap((text) =>
          [...text.matchAll(flow)].map(([, protocol, from, to]) => `${protocol} ${from} ${to}`),
        ),
      );
    }

    async function areOffloaded(node: LightNode, flows: string[]): Promise<void> {
      let missing: string[] = [];
      const all = async () => {
        const there = await offloaded(node);
        missing = flows.filter((flow) => !there.has(flow));
        return missing.length === 0;
      };
      await until("flows to be offloaded", all, {
        timeout: 20_000,
        why: () => missing.join(", "),
      });
    }

    const udp = (from: Host, to: Host, family: "ipv4" | "ipv6") =>
      `udp ${from.addresses[family]} ${to.addresses[family]}`;

    const devices = async (node: LightNode): Promise<string[]> => {
      return parseDevices((await node.$`nft -j list flowtables`).stdout).sort();
    };

    /** The host's side of pods' links. */
    const veths = async (node: LightNode): Promise<string[]> =>
      (JSON.parse((await node.$`ip -j link show type veth`).stdout) as { ifname: string }[])
        .map((link) => link.ifname)
        .filter((name) => name.startsWith("veth"));

    /** Packets that the forward hook has seen. */
    async function forwarded(node: LightNode): Promise<number> {
      const { stdout } = await node.$`nft -j list counter inet seen passing`;
      return JSON.parse(stdout).nftables[1].counter.packets;
    }

    async function all(streams: Stream[], packets: number): Promise<void> {
      await Promise.all(streams.map((stream) => stream.flowing(packets, 20_000)));
    }

    const to = (name: string, addresses: Addresses): Host => ({ name, addresses, place: p2.place });

    beforeAll(async () => {
      // As kube-proxy translates; that itself would take half a minute to start in the virtual machine.
      const rules = families.map(
        (family) =>
          `${family === "ipv4" ? "ip" : "ip6"} daddr ${service[family]} dnat ${family === "ipv4" ? "ip" : "ip6"} to ${p2.addresses[family]}`,
      );
      for (const rule of rules)
        await n1.namespace.run(["nft", "-f", "-"], {
          stdin: `add table inet services\nadd chain inet services p { type nat hook prerouting priority dstnat; }\nadd rule inet services p ${rule}\n`,
        });
      await n1.namespace.run(["nft", "-f", "-"], {
        stdin:
          "add table inet seen\nadd counter inet seen passing\nadd chain inet seen f { type filter hook forward priority -300; }\nadd rule inet seen f meta l4proto { tcp, udp } counter name passing\n",
      });
      // Outside, and a node that is none yet, know the way to the pods, whose IPv6 is not masqueraded.
      await lab.underlay.router.ip(`route add ${(await n1.podCIDRs())[1]} via ${n1.addresses.ipv6}`);
      await until("the devices to be in the flow table", async () => (await devices(n1)).length === 4);
    });

    test("at the links that there are, and a link that is not there is named", async () => {
      expect(await devices(n1)).toEqual(["eth0", ...(await veths(n1)), "wigglenet"].sort());
      await until("the warning", () =>
        n1.agentLog().some((line) => String(line.msg).startsWith("FLOWTABLE_DEVICES names links")),
      );
      expect(n1.agentLog().filter((line) => line.missing)).toEqual([
        expect.objectContaining({ level: "warn", missing: ["extra0"] }),
      ]);
    });

    test("between pods, to nodes, outside and a service: offloaded, not one lost, and none in the clear", async () => {
      await using capture = await lab.capture(
        `(net 10.244.0.0/16 or net fd00:10:244::/48) and not host ${lab.outside.addresses.ipv6}`,
      );
      const hosts = [p2, q1, n2, lab.outside, to("service", service)];
      const paths = hosts.flatMap((host) =>
        families.flatMap((family) =>
          (["tcp", "udp"] as const).map((protocol) => ({ host, family, protocol })),
        ),
      );
      const streams: Stream[] = [];
      for (const { host, ...path } of paths) streams.push(await lab.probe(p1, host, { ...path, rate: 10 }));
      // And one from another node, which the tunnel carries both ways by addresses of nodes.
      for (const family of families) {
        const source = n2.addresses[family]!;
        streams.push(
          await n2.place.stream({ protocol: "udp", address: p1.addresses[family]!, source, rate: 10 }),
        );
      }
      await areOffloaded(n1, [
        ...paths.map(
          (path) => `${path.protocol} ${p1.addresses[path.family]} ${path.host.addresses[path.family]}`,
        ),
        ...families.map((family) => udp(n2, p1, family)),
      ]);
      const before = await forwarded(n1);
      await all(streams, 20);
      // 22 streams, 20 packets each, both ways: had they gone by the chains, there would be 880 more.
      expect((await forwarded(n1)) - before).toBeLessThan(50);
      for (const stream of streams) expect((await stream.stop()).lost).toBe(0);
      expect(await capture.stop()).toEqual([]);
    }, 120_000);

    test("what is larger than any MTU on the way", async () => {
      const hosts = [p2, n2, lab.outside, to("service", service)];
      const paths = hosts.flatMap((host) => families.map((family) => ({ host, family })));
      const streams = await Promise.all(
        paths.map(({ host, family }) =>
          lab.probe(p1, host, { protocol: "tcp", family, size: 6_000, rate: 5 }),
        ),
      );
      await areOffloaded(
        n1,
        paths.map(({ host, family }) => `tcp ${p1.addresses[family]} ${host.addresses[family]}`),
      );
      await all(streams, 5);
      for (const stream of streams) expect((await stream.stop()).lost).toBe(0);
    }, 60_000);

    test("a host that becomes a node: what was offloaded to it in the clear goes into the tunnel", async () => {
      const n3 = await lab.addNode({}, { agent: false });
      await using stream = await lab.probe(p1, n3, { family: "ipv6", rate: 20 });
      await areOffloaded(n1, [udp(p1, n3, "ipv6")]);
      await using before = await lab.capture(`host ${p1.addresses.ipv6}`);
      await stream.flowing(10);
      expect((await before.stop()).length).toBeGreaterThan(10);
      n3.startAgent();
      await n3.ready();
      await until(
        "n1 to have its address behind the tunnel",
        async () => (await n1.$`nft list set inet wigglenet nodes-ipv6`).stdout.includes(n3.addresses.ipv6!),
        { timeout: 20_000 },
      );
      await using after = await lab.capture(`src host ${p1.addresses.ipv6}`);
      await stream.flowing(20);
      expect(await after.stop()).toEqual([]);
      await areOffloaded(n1, [udp(p1, n3, "ipv6")]);
      await lab.removeNode(n3);
    }, 120_000);

    test("the tunnel's link is deleted under load: nothing in the clear, and the flows come back", async () => {
      await using capture = await lab.capture();
      await using four = await lab.probe(p1, p2, { family: "ipv4" });
      await using six = await lab.probe(p1, p2, { family: "ipv6" });
      await areOffloaded(
        n1,
        families.map((family) => udp(p1, p2, family)),
      );
      await n1.namespace.ip("link delete wigglenet");
      await all([four, six], 20);
      await until("the new link to be in the flow table", async () =>
        (await devices(n1)).includes("wigglenet"),
      );
      await areOffloaded(
        n1,
        families.map((family) => udp(p1, p2, family)),
      );
      expect(await capture.stop()).toEqual([]);
    }, 60_000);

    test("a link that comes, goes, and comes again", async () => {
      for (const _ of [1, 2]) {
        await n1.namespace.ip("link add extra0 type bridge");
        await until("it to be in the flow table", async () => (await devices(n1)).includes("extra0"));
        await n1.namespace.ip("link delete extra0");
        await until("it to be gone", async () => !(await devices(n1)).includes("extra0"));
      }
      const pod = await n1.pod("late");
      await until("the new pod's link to be there", async () => (await devices(n1)).length === 5);
      expect(await devices(n1)).toEqual(["eth0", ...(await veths(n1)), "wigglenet"].sort());
      await using stream = await lab.probe(pod, p2, { family: "ipv6" });
      await areOffloaded(n1, [udp(pod, p2, "ipv6")]);
      expect((await stream.stop()).lost).toBe(0);
    }, 60_000);

    test("more links than one message to the kernel holds", async () => {
      const more = Array.from({ length: 300 }, (_, index) => `veth-${index}`);
      await n1.namespace.ip(...more.map((name) => `link add ${name} type dummy`));
      await restart(n1, {});
      expect(await devices(n1)).toEqual(expect.arrayContaining(more));
      await n1.namespace.ip(...more.map((name) => `link delete ${name}`));
      await until("them to be gone", async () => (await devices(n1)).length === 5, { timeout: 30_000 });
    }, 120_000);

    test.each([
      "nft 'delete flowtable inet wigglenet fastpath { hook ingress priority 0; devices = { eth0 }; }'",
      "nft delete table inet wigglenet",
      "nft flush chain inet wigglenet forward",
    ])(
      "%s: repaired",
      async (harm) => {
        // The links come last in a repair, so they are read last.
        const state = async () => [
          objectsOf((await n1.$`nft -s list table inet wigglenet`).stdout),
          await devices(n1),
        ];
        const before = await state();
        await n1.namespace.run(["/bin/sh", "-ec", harm]);
        await until("the repair", async () => Bun.deepEquals(await state().catch(() => []), before), {
          timeout: 10_000,
        });
      },
      30_000,
    );

    test("a restart with nothing changed writes nothing; other settings are taken without a loss", async () => {
      await restart(n1, {});
      expect(writes(n1)).toEqual([]);
      await using stream = await lab.probe(p1, p2, { family: "ipv6" });
      await areOffloaded(n1, [udp(p1, p2, "ipv6")]);
      await restart(n1, { FLOWTABLE_DEVICES: "wigglenet", FLOWTABLE_PACKET_THRESHOLD: "9" });
      expect(await devices(n1)).toEqual(["wigglenet"]);
      expect((await n1.$`nft list table inet wigglenet`).stdout).toContain("ct packets > 9 flow add");
      await stream.flowing(20);
      await restart(n1, { ENABLE_FLOWTABLE: "0" });
      expect((await n1.$`nft list ruleset`).stdout).not.toMatch(/flowtable|flow add/);
      await until("it to be offloaded no more", async () => !(await offloaded(n1)).has(udp(p1, p2, "ipv6")));
      await stream.flowing(20);
      expect((await stream.stop()).lost).toBe(0);
    }, 120_000);
  });
