/**
 * Drift, wherever it comes from, is repaired (within a second or two where the kernel or the API server
 * tells, else at the resync): afterwards all is as it was, and the pods reach and are reached.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import type { Host } from "./lab/kernel/namespace.ts";
import { type NodeState, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

/** What the harms are aimed at. */
interface Scene {
  /** The node that is harmed. */
  node: LightNode;
  /** A remote pod CIDR, in table 24600 by the tunnel. */
  pods: { v4: string; v6: string };
  /** Its node's addresses, in table 24601 by the tunnel. */
  remote: { v4: string; v6: string };
  /** The own link's addresses. */
  own: { v4: string; v6: string };
  /** Public keys of the two peers. */
  keys: [string, string];
  /** How it was at the beginning, and has to be after each repair. */
  healthy: NodeState;
}

type Harm = string | ((scene: Scene) => string | Promise<unknown>);
type Row = [name: string, harm: Harm];

let lab: Lab;
/** Of the one the kernel and the API server alone tell, its resync is an hour away; the other looks each second. */
let told: Scene;
let looking: Scene;

beforeAll(async () => {
  const nodes = [
    { env: { RESYNC_PERIOD: "3600" } },
    { env: { RESYNC_PERIOD: "1" } },
    { env: { RESYNC_PERIOD: "3600" } },
  ];
  // A wireguard-go that is a service ends with its link; one that the agent starts, the agent starts again.
  lab = await Lab.start({ nodes, wireguard: "child" });
  await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
  const [first, second, third] = lab.nodes as [LightNode, LightNode, LightNode];
  told = await scene(first, second);
  looking = await scene(second, third);
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

async function scene(node: LightNode, other: LightNode): Promise<Scene> {
  const state = await until("the overlay to be settled", async () => {
    const state = await stateOf(node);
    return state.wireguard.length === 3 && state;
  });
  const cidrs = await other.podCIDRs();
  const of = (v6: boolean) => (value: string) => value.includes(":") === v6;
  const own = state.link.flatMap((line) => / inet6? (\S+)/.exec(line)?.[1] ?? []);
  const peers = state.wireguard.map((line) => line.split(" ")).filter((fields) => fields.length === 5);
  const [k1, k2] = peers.map(([key]) => key);
  return {
    node,
    pods: { v4: cidrs.find(of(false))!, v6: cidrs.find(of(true))! },
    remote: { v4: other.addresses.ipv4!, v6: other.addresses.ipv6! },
    own: { v4: own.find(of(false))!, v6: own.find(of(true))! },
    keys: [k1!, k2!],
    healthy: state,
  };
}

/** Does the harm and waits until all is as it was at the beginning; the milliseconds until the agent's last command. */
async function repaired(scene: Scene, harm: Harm, timeout = 10_000): Promise<number> {
  const { node, healthy } = scene;
  const begin = performance.now();
  const script = typeof harm === "string" ? harm : await harm(scene);
  if (typeof script === "string") await node.$`/bin/sh -ec ${script}`;
  let now: NodeState | undefined;
  await until(
    "the repair",
    async () => {
      now = await stateOf(node);
      // A harm that does none would prove nothing, and it may not be seen yet.
      return Bun.deepEquals(now, healthy) && changes(node, begin).length > 0;
    },
    { every: 50, timeout },
  ).catch((error) => {
    expect(now).toEqual(healthy);
    throw error;
  });
  const last = String(changes(node, begin).at(-1)?.time);
  const took = Date.parse(last) - (performance.timeOrigin + begin);
  const pod = podOf(node);
  const pairs = lab.nodes
    .filter((each) => each !== node)
    .flatMap((each): [Host, Host][] => [
      [pod, podOf(each)],
      [podOf(each), pod],
      [pod, each],
    ]);
  let unreached: string[] = [];
  await until(
    "pods of the node to reach and be reached",
    async () => {
      unreached = await lab.unreached(pairs, { protocols: ["udp"], timeout: 500 });
      return unreached.length === 0;
    },
    { why: () => unreached.join("\n") },
  );
  return took;
}

/** Log lines that tell of a change, since a moment of performance.now(). */
function changes(node: LightNode, since: number): Record<string, unknown>[] {
  const from = performance.timeOrigin + since;
  return node
    .agentLog()
    .filter((line) => (line.commands || line.annotations) && Date.parse(String(line.time)) >= from - 1);
}

function podOf(node: LightNode): Host {
  return node.pods.get("p")!;
}

/** The states of all nodes but the one that is harmed. */
function others(): Promise<NodeState[]> {
  return Promise.all(lab.nodes.filter((node) => node !== told.node).map(stateOf));
}

const gateway = { v4: "172.30.0.1", v6: "fd30::1" };

/** Drift of our table: the kernel tells of all of it, and each look finds it. */
const ruleset: Row[] = [
  ["nftables: table deleted", "nft delete table inet wigglenet"],
  ["nftables: all flushed", "nft flush ruleset"],
  ["nftables: chain flushed", "nft flush chain inet wigglenet prerouting"],
  ["nftables: chain deleted", "nft delete chain inet wigglenet postrouting"],
  ["nftables: chain that drops", "nft 'chain inet wigglenet prerouting { policy drop; }'"],
  [
    "nftables: element removed",
    ({ remote }) => `nft delete element inet wigglenet nodes-ipv4 { ${remote.v4} }`,
  ],
  ["nftables: prefix removed", ({ pods }) => `nft delete element inet wigglenet remote-ipv6 { ${pods.v6} }`],
  ["nftables: element added", "nft add element inet wigglenet remote-ipv4 { 198.51.100.0/24 }"],
  ["nftables: set flushed", "nft flush set inet wigglenet remote-ipv4"],
  ["nftables: rule added", "nft insert rule inet wigglenet postrouting counter drop"],
  [
    "nftables: rule deleted",
    "nft delete rule inet wigglenet prerouting handle $(nft -a list chain inet wigglenet prerouting | grep nfproto | grep -m1 -o 'handle [0-9]*$' | cut -d' ' -f2)",
  ],
  [
    "nftables: chain and set added",
    "nft add chain inet wigglenet other; nft 'add set inet wigglenet more { type ipv4_addr; }'; nft add rule inet wigglenet other ip saddr @more drop",
  ],
];

/** Of the repairs that the agent was told of, ms. A machine that has much else to do makes single ones late. */
const times: number[] = [];
describe("the kernel tells", () => {
  test.each<Row>([
    ["IPv4 forwarding off", "echo 0 > /proc/sys/net/ipv4/ip_forward"],
    ["IPv4 forwarding of the own link off", "echo 0 > /proc/sys/net/ipv4/conf/wigglenet/forwarding"],
    ["IPv4 forwarding of new links off", "echo 0 > /proc/sys/net/ipv4/conf/default/forwarding"],
    ["IPv4 forwarding of the uplink off", "echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding"],
    [
      "IPv4 forwarding of a pod's link off",
      "for f in /proc/sys/net/ipv4/conf/veth*; do echo 0 > $f/forwarding; done",
    ],
    ["IPv6 forwarding off", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"],
    ["own link deleted", "ip link delete wigglenet"],
    ["own link down", "ip link set wigglenet down"],
    ["own link down and up", "ip link set wigglenet down; ip link set wigglenet up"],
    ["MTU of the own link", "ip link set wigglenet mtu 1280"],
    // With its last IPv4 address a link loses its IPv4 routes without a word.
    ["own IPv4 address removed", ({ own }) => `ip address delete ${own.v4} dev wigglenet`],
    ["own IPv6 address removed", ({ own }) => `ip address delete ${own.v6} dev wigglenet`],
    ["all addresses removed", "ip address flush dev wigglenet"],
    ["foreign IPv4 address on the own link", "ip address add 192.0.2.99/32 dev wigglenet"],
    ["foreign IPv6 address on the own link", "ip address add 2001:db8::99/64 dev wigglenet"],
    ["IPv4 pod CIDR's route removed", ({ pods }) => `ip route delete ${pods.v4} dev wigglenet table 24600`],
    [
      "IPv6 pod CIDR's route removed",
      ({ pods }) => `ip -6 route delete ${pods.v6} dev wigglenet table 24600`,
    ],
    ["IPv4 node address's route removed", ({ remote }) => `ip route delete ${remote.v4} table 24601`],
    ["IPv6 node address's route removed", ({ remote }) => `ip -6 route delete ${remote.v6} table 24601`],
    ["table 24600 flushed", "ip route flush table 24600; ip -6 route flush table 24600"],
    ["table 24601 flushed", "ip route flush table 24601; ip -6 route flush table 24601"],
    ["all own routes flushed", "ip route flush table all proto 246; ip -6 route flush table all proto 246"],
    [
      "IPv4 route taken by a foreign one",
      ({ pods }) => `ip route replace ${pods.v4} via ${gateway.v4} table 24600`,
    ],
    [
      "IPv6 route taken by a foreign one",
      ({ pods }) => `ip -6 route replace ${pods.v6} via ${gateway.v6} table 24600`,
    ],
    [
      "IPv4 route in table 24601 taken by a foreign one",
      ({ remote }) => `ip route replace ${remote.v4} dev eth0 table 24601`,
    ],
    [
      "IPv6 route in table 24601 taken by a foreign one",
      ({ remote }) => `ip -6 route replace ${remote.v6} dev eth0 table 24601`,
    ],
    ["extra IPv4 route by eth0", "ip route add 198.51.100.0/24 dev eth0 proto 246"],
    ["extra IPv4 route by a gateway", `ip route add 198.51.100.0/24 via ${gateway.v4} proto 246`],
    ["extra IPv4 route by the tunnel", "ip route add 198.51.100.0/24 dev wigglenet proto 246"],
    ["extra IPv6 route by eth0", "ip -6 route add 2001:db8:1::/64 dev eth0 proto 246"],
    ["extra IPv6 route by a gateway", `ip -6 route add 2001:db8:1::/64 via ${gateway.v6} proto 246`],
    ["extra IPv6 route by the tunnel", "ip -6 route add 2001:db8:1::/64 dev wigglenet proto 246"],
    ["extra IPv4 route of another metric", "ip route add 198.51.100.0/24 dev eth0 metric 7 proto 246"],
    ["extra IPv6 route of another metric", "ip -6 route add 2001:db8:1::/64 dev eth0 metric 7 proto 246"],
    ["extra IPv4 blackhole", "ip route add blackhole 198.51.100.0/24 proto 246"],
    ["extra IPv6 blackhole", "ip -6 route add blackhole 2001:db8:1::/64 proto 246"],
    ["IPv4 default route in table 24601", `ip route add default via ${gateway.v4} table 24601 proto 246`],
    ["IPv6 default route in table 24601", `ip -6 route add default via ${gateway.v6} table 24601 proto 246`],
    ["extra IPv4 route in a table of others", "ip route add 198.51.100.1 dev eth0 table 77 proto 246"],
    ["IPv4 guard removed", ({ pods }) => `ip route delete unreachable ${pods.v4} table 24600 metric 4096`],
    ["IPv6 guard removed", ({ pods }) => `ip -6 route delete unreachable ${pods.v6} table 24600 metric 4096`],
    ["own IPv4 pod CIDR's guard removed", "ip route flush type unreachable proto 246"],
    ["own IPv6 pod CIDR's guard removed", "ip -6 route flush type unreachable proto 246"],
    ["extra IPv4 route on the own link, not of our protocol", "ip route add 198.51.100.0/24 dev wigglenet"],
    ["extra IPv6 route on the own link", "ip -6 route add 2001:db8:1::/64 dev wigglenet proto static"],
    [
      "extra IPv4 exception",
      ({ pods }) => `ip route add throw ${pods.v4.replace("0/", "7/").split("/")[0]} table 24600 proto 246`,
    ],
    ["IPv4 rule removed", "ip rule delete priority 2459"],
    ["IPv6 rule removed", "ip -6 rule delete priority 2459"],
    ["IPv4 rule of remote pods removed", "ip rule delete priority 2460"],
    ["IPv6 rule of own pods removed", "ip -6 rule delete priority 2461"],
    [
      "version 1.0.0's rule",
      "ip rule add fwmark 0x1000000/0x1000000 lookup 24601 priority 24601 protocol 246",
    ],
    ["extra IPv4 rule", "ip rule add from 198.51.100.0/24 lookup 77 priority 300 protocol 246"],
    ["extra IPv6 rule", "ip -6 rule add from 2001:db8::/64 lookup 77 priority 300 protocol 246"],
    ["extra rule by mark", "ip rule add fwmark 0x7/0xff lookup 77 priority 300 protocol 246"],
    ["extra rule without a table", "ip rule add from 198.51.100.0/24 prohibit priority 300 protocol 246"],
    ["extra rule in the own one's place", "ip rule add fwmark 0x7 lookup main priority 2459 protocol 246"],
    // systemd#19106: networkd, when it restarts, removes the rules that it did not make.
    [
      "all rules but the kernel's removed",
      ["-4", "-6"]
        .map(
          (family) =>
            `printf '%s\\n' 'rule flush' 'rule add lookup main priority 32766 protocol kernel' ${
              family === "-4" ? "'rule add lookup default priority 32767 protocol kernel'" : ""
            } | ip ${family} -batch -`,
        )
        .join("; "),
    ],
    ...ruleset,
    // As systemctl restart nftables does it, with a file of the host's own rules.
    [
      "nftables restarted",
      `printf '%s\\n' 'flush ruleset' 'table inet filter { chain input { type filter hook input priority 0; }; }' | nft -f -`,
    ],
    [
      "all at once",
      ({ pods, own }) =>
        `ip route flush table all proto 246; ip -6 rule delete priority 2460; ip address delete ${own.v6} dev wigglenet
         ip -6 route replace ${pods.v6} via ${gateway.v6} table 24600; ip link set wigglenet down mtu 1300`,
    ],
  ])("%s", async (_, harm) => {
    times.push(await repaired(told, harm));
  });
});

const patch =
  (annotations: Record<string, string | null>): Harm =>
  ({ node }) =>
    node.patch({ metadata: { annotations } });

describe("the API server tells", () => {
  test.each<Row>([
    ["public key removed", patch({ "wigglenet/public-key": null })],
    ["public key edited", patch({ "wigglenet/public-key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=" })],
    ["node-ips edited", patch({ "wigglenet/node-ips": '["192.0.2.1"]' })],
    ["pod-cidrs garbled", patch({ "wigglenet/pod-cidrs": "{" })],
    ["agent removed", patch({ "wigglenet/agent": null })],
    [
      "all removed",
      patch({
        "wigglenet/public-key": null,
        "wigglenet/node-ips": null,
        "wigglenet/pod-cidrs": null,
        "wigglenet/agent": null,
      }),
    ],
  ])("own annotation: %s", async (_, harm) => {
    const before = await others();
    times.push(await repaired(told, harm));
    await until("the others to be as before", async () => Bun.deepEquals(await others(), before));
  });

  test("own Node deleted, and made again without annotations", async () => {
    const { node } = told;
    const path = `/api/v1/nodes/${node.name}`;
    const { api } = lab.controlPlane;
    const before = await others();
    const { spec } = await node.object();
    const again = async () => {
      await api.remove(path);
      await until("the others to forget it", async () =>
        (await others()).every(({ wireguard }) => wireguard.length === 2),
      );
      const { podCIDR, podCIDRs } = spec;
      const metadata = { name: node.name };
      await api.create({ apiVersion: "v1", kind: "Node", metadata, spec: { podCIDR, podCIDRs } });
      await node.publishAddresses();
      // The old one was bound to the old object.
      await node.renewToken();
    };
    // Without a token that counts, the agent has asked ever more seldom.
    await repaired(told, again, 20_000);
    await until("the others to be as before", async () => Bun.deepEquals(await others(), before));
  });
});

describe("found at the resync", () => {
  test.each<Row>([
    ["peer removed", ({ keys }) => `wg set wigglenet peer ${keys[0]} remove`],
    ["all peers removed", ({ keys }) => keys.map((key) => `wg set wigglenet peer ${key} remove`).join("; ")],
    ["peer's AllowedIPs emptied", ({ keys }) => `wg set wigglenet peer ${keys[0]} allowed-ips ''`],
    [
      "a prefix more for a peer",
      ({ keys }) =>
        `wg set wigglenet peer ${keys[0]} allowed-ips "$(wg show wigglenet allowed-ips | grep '^${keys[0]}' | cut -f2 | tr ' ' ,),198.51.100.0/24"`,
    ],
    [
      "a peer's AllowedIPs given to another",
      ({ keys }) =>
        `wg set wigglenet peer ${keys[1]} allowed-ips "$(wg show wigglenet allowed-ips | cut -f2 | tr ' \\n' ,, | sed 's/,$//')"`,
    ],
    ["foreign peer", "wg set wigglenet peer $(wg genkey | wg pubkey) allowed-ips 198.51.100.0/24"],
    [
      "foreign peer with the AllowedIPs of one of ours",
      ({ pods }) => `wg set wigglenet peer $(wg genkey | wg pubkey) allowed-ips ${pods.v4},${pods.v6}`,
    ],
    [
      "pre-shared key for a peer",
      ({ keys }) => `wg genpsk > /run/psk; wg set wigglenet peer ${keys[0]} preshared-key /run/psk`,
    ],
    ["keepalive of a peer", ({ keys }) => `wg set wigglenet peer ${keys[0]} persistent-keepalive 25`],
    ["private key", "wg genkey > /run/key; wg set wigglenet private-key /run/key"],
    ["port", "wg set wigglenet listen-port 24602"],
    ["mark of the tunnel's own packets", "wg set wigglenet fwmark 0x1000000"],
    ...ruleset,
    ["CNI file deleted", `rm ${cniFile}`],
    ["CNI file edited", `sed -i s/wigglenet/other/ ${cniFile}`],
    ["CNI file emptied", `: > ${cniFile}`],
    ["CNI file a link", `cp ${cniFile} /run/plain; ln -sfn /run/plain ${cniFile}`],
    ["what pods wait for deleted", "rm /run/wigglenet/agent-in-sync"],
    ["rp_filter of the own link", "echo 1 > /proc/sys/net/ipv4/conf/wigglenet/rp_filter"],
    ["drift that the kernel tells of", "ip route flush table 24601"],
  ])("%s", async (_, harm) => {
    expect(await repaired(looking, harm)).toBeLessThan(5000);
  });
});

test("what the agent is told of, it repairs at once", () => {
  expect(times.length).toBeGreaterThan(40);
  console.log(`repaired after ms: ${times.map(Math.round).join(" ")}`);
  expect(times.sort((a, b) => a - b)[Math.floor(times.length / 2)]).toBeLessThan(1000);
  expect(times.at(-1)).toBeLessThan(5000);
});
