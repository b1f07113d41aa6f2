/** No pod packet crosses the underlay in the clear, whatever happens; and the firewall comes back where it was harmed. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Pod } from "./lab/cluster/pod.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { objectsOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { Arrivals } from "./lab/probe/arrivals.ts";
import { sleep, until } from "./lab/process.ts";

let lab: Lab;
let nodes: [LightNode, LightNode];
let pods: [Pod, Pod];

beforeAll(async () => {
  // Pods with addresses that the Internet knows: what is not masqueraded would be seen with them.
  // A wireguard-go, as one can be kept from coming back; a link of the kernel's is made anew at once.
  lab = await Lab.start({ nodes: 2, wireguard: "service", env: { RESYNC_PERIOD: "600" } });
  nodes = lab.nodes as typeof nodes;
  pods = [await nodes[0].pod("p"), await nodes[1].pod("p")];
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

const families = ["ipv4", "ipv6"] as const;

/** Packets in both directions, which need not arrive. */
async function load(): Promise<AsyncDisposable> {
  const streams = families.flatMap((family) =>
    [pods, [...pods].reverse()].map(async ([from, to]) =>
      from!.place.stream({ protocol: "udp", address: to!.addresses[family]!, rate: 200 }),
    ),
  );
  const started = await Promise.all(streams);
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(started.map((stream) => stream.stop(0)));
    },
  };
}

describe("nothing in the clear", () => {
  test("while a node is fresh: from when the others know it, which is before its first pod starts", async () => {
    await using capture = await lab.capture();
    const fresh = await lab.addNode({}, { agent: false });
    const [ipv4 = "", ipv6 = ""] = await fresh.podCIDRs();
    fresh.startAgent();
    await until("the others to know of it", async () =>
      (
        await nodes[0].namespace.run(["ip", "route", "show", "type", "unreachable", "table", "24600"])
      ).includes(ipv4),
    );
    const first = [ipv4.replace(/0\/24$/, "2"), ipv6.replace(/\/64$/, "2")];
    const streams = await Promise.all(
      first.map((address) => pods[0].place.stream({ protocol: "udp", address, rate: 200 })),
    );
    await fresh.ready();
    const pod = await fresh.pod("p");
    await until("the streams to arrive", async () =>
      (await Promise.all(streams.map((stream) => stream.count()))).every((count) => count.received > 0),
    );
    expect([pod.addresses.ipv4, pod.addresses.ipv6]).toEqual(first);
    // And when it leaves, with pods elsewhere that go on sending to it.
    await lab.removeNode(fresh);
    await until(
      "the peer to go",
      async () => !(await nodes[0].namespace.run(["wg", "show", "wigglenet", "allowed-ips"])).includes(ipv4),
    );
    await sleep(500);
    await Promise.all(streams.map((stream) => stream.stop(0)));
    expect(await capture.stop()).toEqual([]);
  });

  test("while the tunnel's link is deleted under load, and made anew", async () => {
    await using capture = await lab.capture();
    await using _ = await load();
    await nodes[0].namespace.ip("link delete wigglenet");
    await nodes[0].stopWireguard();
    await sleep(300);
    await nodes[0].startWireguard();
    await until("the pods to reach each other", async () => (await lab.unreached(pods)).length === 0, {
      timeout: 20_000,
    });
    expect(await capture.stop()).toEqual([]);
  });

  test("while a node is powered off and on again", async () => {
    await using capture = await lab.capture();
    const streams = await Promise.all(
      families.map((family) =>
        pods[0].place.stream({ protocol: "udp", address: pods[1].addresses[family]!, rate: 200 }),
      ),
    );
    await nodes[1].powerCut();
    await sleep(300);
    await nodes[1].boot();
    nodes[1].startAgent();
    await nodes[1].ready();
    pods[1] = await nodes[1].pod("p");
    await until("the pods to reach each other", async () => (await lab.unreached(pods)).length === 0, {
      timeout: 30_000,
    });
    await Promise.all(streams.map((stream) => stream.stop(0)));
    expect(await capture.stop()).toEqual([]);
  });

  test("from a pod that claims the address of another of its own node: in the tunnel, as that one's", async () => {
    const owner = await nodes[0].pod("owner");
    await using capture = await lab.capture();
    await using arrivals = await Arrivals.start(pods[1], lab.underlay.dir);
    for (const family of families) {
      const source = owner.addresses[family]!;
      const length = family === "ipv4" ? 32 : 128;
      await pods[0].ip(`address add ${source}/${length} dev eth0${family === "ipv6" ? " nodad" : ""}`);
      // The answer goes to the pod that has it.
      expect(
        await lab.reach(pods[0], pods[1], { family, source, size: 200, protocol: "icmp", timeout: 300 }),
      ).toMatchObject({ ok: false });
      await pods[0].ip(`address delete ${source}/${length} dev eth0`);
    }
    expect(await arrivals.source("ipv6", 200)).toBe(owner.addresses.ipv6!);
    // The kernel's strict rp_filter, which there is for IPv4 alone, had the first for itself.
    expect(arrivals.sources()).toEqual([owner.addresses.ipv6!]);
    expect(await capture.stop()).toEqual([]);
    await owner.remove();
  });

  test("from a pod that claims another pod's address, or a stranger's", async () => {
    await using capture = await lab.capture(
      "host 10.244.1.77 or host 198.51.100.9 or host fd00:10:244:1::77 or host 2001:db8::9",
    );
    const sources = { ipv4: ["10.244.1.77", "198.51.100.9"], ipv6: ["fd00:10:244:1::77", "2001:db8::9"] };
    for (const family of families)
      for (const source of sources[family]) {
        await pods[0].ip(
          `address add ${source}/${family === "ipv4" ? 32 : 128} dev eth0${family === "ipv6" ? " nodad" : ""}`,
        );
        for (const to of [pods[1], nodes[1], lab.outside])
          expect(await lab.reach(pods[0], to, { family, source, timeout: 300 })).toMatchObject({ ok: false });
        await pods[0].ip(`address delete ${source}/${family === "ipv4" ? 32 : 128} dev eth0`);
      }
    expect(await capture.stop()).toEqual([]);
  });
});

/** What there is of ours, without counters. */
async function firewall(node: LightNode, backend: string): Promise<string> {
  const script =
    backend === "nftables"
      ? "nft -s list table inet wigglenet"
      : "for f in iptables ip6tables; do for t in mangle filter nat; do $f-nft -t $t -S | grep WIGGLENET; done; done";
  const text = await node.namespace.run(["/bin/sh", "-c", script]).catch(() => "");
  if (backend !== "nftables") return text;
  return objectsOf(text.replaceAll(/ counter packets \d+ bytes \d+/g, "")).join("\n");
}

/** The first rule that drops lets pass, under the comment that it had. */
const replacedByNft = `
  set -- $(nft -a list table inet wigglenet | awk '/chain / { chain = $2 } / drop / { comment = match($0, /comment "[^"]*"/) ? substr($0, RSTART, RLENGTH) : ""; print chain, $NF, comment; exit }')
  nft replace rule inet wigglenet "$1" handle "$2" counter accept $3 $4`;
const replacedByIptables = `
  comment=$(iptables-nft -S WIGGLENET-FILTER 1 | grep -o -- '-m comment --comment [^ ]*' | tr -d '"' || true)
  iptables-nft -R WIGGLENET-FILTER 1 $comment -j RETURN`;

describe.each([
  [
    "nftables",
    [
      "nft delete table inet wigglenet",
      "nft flush chain inet wigglenet forward",
      "nft flush set inet wigglenet own-ipv4",
      "nft add rule inet wigglenet input drop",
      ["a rule replaced under the same comment", replacedByNft],
    ],
  ],
  [
    "iptables",
    [
      "iptables-nft -F WIGGLENET-FILTER",
      "iptables-nft -D FORWARD -j WIGGLENET-FILTER",
      "ip6tables-nft -t mangle -F",
      ["a rule replaced under the same comment", replacedByIptables],
    ],
  ],
])("%s", (backend, harms) => {
  test("a switch to it on a running node loses no packet", async () => {
    await using probe = await lab.probe(pods[0], pods[1], { family: "ipv6" });
    await using outward = await lab.probe(pods[0], lab.outside, { family: "ipv4" });
    await nodes[0].stopAgent();
    nodes[0].startAgent({ FIREWALL_BACKEND: backend, FILTER_IPV4: "1", FILTER_IPV6: "1" });
    await nodes[0].inSync();
    await Promise.all([probe.flowing(20), outward.flowing(20)]);
    expect((await probe.stop()).lost).toBe(0);
    expect((await outward.stop()).lost).toBe(0);
  });

  test.each([
    ["pods masqueraded", {}],
    ["pods with their own addresses outside", { MASQUERADE_IPV4: "0", MASQUERADE_IPV6: "0" }],
  ])(
    "a node's address leaves the tunnel: flows that were in it stop, and go on when it is back; %s",
    async (_, env) => {
      const [client, node] = [nodes[0], nodes[1]];
      const masquerades = Object.keys(env).length === 0;
      if (!masquerades) {
        await client.stopAgent();
        client.startAgent({ FIREWALL_BACKEND: backend, ...env });
        await client.inSync();
      }
      const { addresses } = node;
      const others = { ipv4: "172.30.0.77", ipv6: "fd30::77" };
      const tunnelled = async () => {
        const { stdout } = await client.$`ip route show table 24601; ip -6 route show table 24601`;
        return families.filter((family) => stdout.includes(`${addresses[family]} dev wigglenet`)).length;
      };
      const start = (to: Host, ...protocols: ("tcp" | "udp" | "icmp")[]) =>
        protocols.flatMap((protocol) =>
          families.map((family) => lab.probe(pods[0], to, { family, protocol })),
        );
      // Where the node is the client, the pod's answers are what could go in the clear.
      const fromNode = (["tcp", "udp", "icmp"] as const).flatMap((protocol) =>
        families.map((family) =>
          lab.probe(node, pods[0], { family, protocol, source: addresses[family]!, rate: 100 }),
        ),
      );
      const [stopping, staying] = await Promise.all([
        Promise.all([...start(node, "tcp", "udp", "icmp"), ...fromNode]),
        Promise.all([...start(pods[1], "tcp", "udp"), ...(masquerades ? start(lab.outside, "udp") : [])]),
      ]);
      const counts = () => Promise.all(stopping.map((stream) => stream.count()));
      await using capture = await lab.capture();
      // It keeps them: a wireguard-go would try for 15 s to send from an address that is gone.
      await node.namespace.ip(
        `address replace ${others.ipv4}/24 dev eth0`,
        `address replace ${others.ipv6}/64 dev eth0 nodad`,
      );
      await node.publishAddresses(others);
      await until("the addresses to leave the tunnel", async () => (await tunnelled()) === 0);
      const before = await counts();
      await until("more packets to be sent", async () =>
        (await counts()).every((count, index) => count.sent > before[index]!.sent + 20),
      );
      if (masquerades)
        for (const family of families)
          for (const protocol of ["tcp", "udp"] as const)
            expect(await lab.reach(pods[0], node, { family, protocol })).toMatchObject({
              ok: true,
              seen: client.addresses[family],
            });
      for (const stream of staying) expect(await stream.stop()).toMatchObject({ lost: 0 });
      const after = await counts();
      // What was on its way when they were counted.
      expect(after.filter((count, index) => count.received > before[index]!.received + 2)).toEqual([]);
      await node.publishAddresses(addresses);
      await until("the addresses to be in the tunnel again", async () => (await tunnelled()) === 2);
      await until(
        "the flows to go on",
        async () => (await counts()).every((count, index) => count.received > after[index]!.received + 5),
        { why: async () => JSON.stringify(await counts()) },
      );
      expect(await capture.stop()).toEqual([]);
      await Promise.all(stopping.map((stream) => stream.stop(0)));
      if (!masquerades) {
        await client.stopAgent();
        client.startAgent({ FIREWALL_BACKEND: backend });
        await client.inSync();
      }
    },
    60_000,
  );

  test("a packet that belongs to no connection, which nobody masquerades, does not go outside", async () => {
    const tcp = await Promise.all(
      families.map((family) => lab.probe(pods[0], lab.outside, { family, protocol: "tcp" })),
    );
    await using capture = await lab.capture();
    await nodes[0].namespace.sysctl({ "net.netfilter.nf_conntrack_tcp_loose": 0 });
    for (const family of families)
      await nodes[0].namespace.run(["conntrack", "-D", "-f", family, "-s", pods[0].addresses[family]!]);
    const before = await Promise.all(tcp.map((stream) => stream.count()));
    await until("TCP to send again what was not answered", async () => {
      const counts = await Promise.all(tcp.map((stream) => stream.count()));
      return counts.every((count, index) => count.retransmitted > before[index]!.retransmitted + 2);
    });
    await Promise.all(tcp.map((stream) => stream.stop(0)));
    await nodes[0].namespace.sysctl({ "net.netfilter.nf_conntrack_tcp_loose": 1 });
    expect(await capture.stop()).toEqual([]);
  });

  const named = harms.map((harm) => (typeof harm === "string" ? [harm, harm] : harm) as [string, string]);
  test.each(named)("%s: repaired within a second", async (_, harm) => {
    const before = await firewall(nodes[0], backend);
    expect(before).not.toBe("");
    const repairs = () => nodes[0].agentLog().filter((line) => line.msg === "firewall");
    const { length } = repairs();
    // The agent looks at most once a second: what is harmed sooner after a repair waits for that.
    await sleep(Math.max(0, Date.parse(String(repairs().at(-1)?.time ?? 0)) + 1_000 - Date.now()));
    await nodes[0].namespace.run(["/bin/sh", "-ec", harm]);
    const from = Date.now();
    await until(
      "the repair, and the agent's word of it",
      async () => repairs().length > length && (await firewall(nodes[0], backend)) === before,
      {
        timeout: 6_000,
        why: async () => `${before}\nbecame\n${await firewall(nodes[0], backend)}`,
      },
    );
    // What writes the last of it, by the agent's clock: to look takes longer on a busy machine.
    expect(atLeast("warn", nodes[0].agentLog())).toEqual([]);
    expect(Date.parse(String(repairs().at(-1)?.time)) - from).toBeLessThan(1_000);
  });

  test("1,000 foreign rules and tables, some that this program cannot print, stay and do not disturb", async () => {
    const rules = Array.from(
      { length: 1_000 },
      (_, n) => `add rule ip foreign${n % 20} c ip saddr 192.0.2.${n % 250} tcp dport ${n + 1} accept`,
    );
    const tables = Array.from({ length: 20 }, (_, n) => [
      `add table ip foreign${n}`,
      `add chain ip foreign${n} c { type filter hook forward priority 5; }`,
    ]).flat();
    await nodes[0].namespace.run(["nft", "-f", "-"], { stdin: [...tables, ...rules, ""].join("\n") });
    // Extensions of iptables, of which nft can show but a comment.
    await nodes[0].namespace.run([
      "/bin/sh",
      "-ec",
      "iptables-nft -A INPUT -m string --string x --algo bm -m comment --comment foreign -j ACCEPT",
    ]);
    const foreign = async () =>
      await nodes[0].namespace.run([
        "/bin/sh",
        "-c",
        "for t in $(seq 0 19); do nft list table ip foreign$t; done; iptables-nft -S INPUT | grep -v WIGGLENET",
      ]);
    const before = await foreign();
    await nodes[0].stopAgent();
    nodes[0].startAgent({ FIREWALL_BACKEND: backend });
    await nodes[0].inSync();
    expect(await foreign()).toBe(before);
    expect(await lab.unreached(pods)).toEqual([]);
    await nodes[0].namespace.run([
      "/bin/sh",
      "-c",
      "for t in $(seq 0 19); do nft delete table ip foreign$t; done; iptables-nft -D INPUT -m string --string x --algo bm -m comment --comment foreign -j ACCEPT",
    ]);
  });
});
