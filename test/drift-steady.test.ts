/** What is no drift costs nothing: no command, no write, whether the agent looks, is told, or starts again. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { version } from "../package.json";
import { annotation, annotationsOf } from "../src/plan/overlay/node.ts";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { atLeast } from "./lab/cluster/loglevel.ts";
import type { Namespace } from "./lab/kernel/namespace.ts";
import { fileIdentity, stateOf } from "./lab/kernel/state.ts";
import { Lab } from "./lab/lab.ts";
import type { Service } from "./lab/process.ts";
import { until } from "./lab/process.ts";

let lab: Lab;
/** It looks at everything each second. */
let looking: LightNode;
/** It looks when it is told. */
let told: LightNode;

beforeAll(async () => {
  const nodes = [{ env: { RESYNC_PERIOD: "3600" } }, { env: { RESYNC_PERIOD: "1" } }];
  lab = await Lab.start({ nodes });
  [told, looking] = lab.nodes as [LightNode, LightNode];
  await Promise.all(lab.nodes.map((node) => node.pod("p")));
  await lab.greeted();
  await lab.shakeHands();
}, 60_000);
afterAll(() => lab[Symbol.asyncDispose]());

/** Log lines that tell of a change. */
function changes(node: LightNode): Record<string, unknown>[] {
  return node.agentLog().filter((line) => line.commands || line.annotations);
}

/** Does a harm and waits for its repair: what came before has been seen by then. The commands since. */
async function afterNextRepair(node: LightNode, since: number): Promise<unknown[]> {
  const healthy = await stateOf(node);
  const harm = node === told ? "ip route flush table 24601" : "nft flush set inet wigglenet remote-ipv4";
  await node.$`/bin/sh -ec ${harm}`;
  await until(
    "the repair",
    async () => changes(node).length > since && Bun.deepEquals(await stateOf(node), healthy),
  );
  return changes(node)
    .slice(since)
    .flatMap(({ commands }) => commands);
}

const foreign = [
  "ip route add 198.51.100.0/24 via 172.30.0.1",
  "ip -6 route add 2001:db8:1::/64 via fd30::1",
  "ip route add unreachable 203.0.113.0/24 metric 4096",
  "ip route add 198.51.100.7 dev eth0 table 77",
  // Inside of a remote pod CIDR, of one that no pod has.
  "ip route add 10.244.0.224/28 via 172.30.0.1; ip route add 10.244.1.224/28 via 172.30.0.1",
  "ip rule add from 203.0.113.0/24 lookup 77 priority 300",
  "ip -6 rule add fwmark 0x4000/0x4000 lookup 77 priority 24600",
  "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 0; }'",
  "nft add rule inet other forward counter accept",
  "ip link add other0 type bridge; ip link set other0 up; ip address add 198.51.100.200/32 dev other0",
  "ip address add 172.30.0.250/24 dev eth0",
];

test.each(["told", "looking"])("what is not ours is left alone, by the one that is %s", async (which) => {
  const node = which === "told" ? told : looking;
  const everything = `for f in -4 -6; do ip $f route show table all; ip $f rule; done; nft -s list ruleset; ip -br address`;
  const others = async () => (await node.$`/bin/sh -ec ${everything}`).stdout.split("\n").sort();
  const since = changes(node).length;
  await node.$`/bin/sh -ec ${foreign.join("\n")}`;
  const pods = await Promise.all(["q", "r"].map((name) => node.pod(name)));
  await Promise.all(pods.map((pod) => pod.remove()));
  const before = await others();
  expect(before.join("\n")).toContain("198.51.100.200/32");
  const lines = await afterNextRepair(node, since);
  expect(lines.filter((line) => !/24601|remote-ipv4/.test(String(line)))).toEqual([]);
  expect(await others()).toEqual(before);
});

const publicKeyOf = async (node: LightNode) =>
  (await node.object()).metadata.annotations?.[annotation.publicKey] as string;
const endpointOf = async (node: LightNode, key: string) =>
  (await stateOf(node)).wireguard.find((line) => line.startsWith(key))?.split(" ")[2];

test("an endpoint that moved stays while its peer is heard of, also across a restart", async () => {
  const key = await publicKeyOf(told);
  const before = await endpointOf(looking, key);
  expect(before).toBe(`${told.addresses.ipv4}:24601`);
  const roamed = `[${told.addresses.ipv6}]:24601`;
  const since = changes(looking).length;
  await looking.$`wg set wigglenet peer ${key} endpoint ${roamed}`;
  const lines = await afterNextRepair(looking, since);
  expect(lines.filter((line) => String(line).includes("endpoint"))).toEqual([]);
  expect(await endpointOf(looking, key)).toBe(roamed);
  await looking.stopAgent();
  looking.startAgent();
  await looking.inSync();
  expect(await endpointOf(looking, key)).toBe(roamed);
  expect(await lab.unreached([...lab.nodes.map((node) => node.pods.get("p")!)])).toEqual([]);
  await looking.$`wg set wigglenet peer ${key} endpoint ${before!}`;
});

test("an endpoint of a peer that is not heard of is set right", async () => {
  const key = "c2lsZW50LXBlZXItYS1rZXktb2YtMzItYnl0ZXMtMTI=";
  const annotations = annotationsOf({
    version,
    publicKey: key,
    podCidrs: ["10.244.200.0/24"],
    addresses: ["172.30.0.200"],
    endpoints: ["172.30.0.200"],
  });
  await lab.controlPlane.api.create({
    apiVersion: "v1",
    kind: "Node",
    metadata: { name: "silent", annotations },
  });
  const right = async () => (await endpointOf(looking, key)) === "172.30.0.200:24601";
  await until("the peer", right);
  await looking.$`wg set wigglenet peer ${key} endpoint 172.30.0.201:24601`;
  await until("its endpoint to be set right", right);
  await lab.controlPlane.api.remove("/api/v1/nodes/silent");
  for (const node of [looking, told])
    await until("it to go", async () => (await endpointOf(node, key)) === undefined);
});

/** Lines of a monitor between two marks that are made in its sight. */
class Watch {
  readonly #node: Namespace;
  readonly #monitor: Service;
  readonly #mark: (name: string) => string;

  constructor(node: Namespace, argv: string[], log: string, mark: (name: string) => string) {
    this.#node = node;
    this.#monitor = node.start(argv.join(" "), argv, log);
    this.#mark = mark;
  }

  /** Waits until the monitor tells of a mark that is made now. */
  async mark(name: string): Promise<void> {
    await until(`${this.#monitor.name} to tell of ${name}`, async () => {
      await this.#node.$`/bin/sh -c ${this.#mark(name)}`.nothrow();
      return readFileSync(this.#monitor.log, "utf8").includes(name);
    });
  }

  /** The lines that are not about a mark. */
  async stop(marks: RegExp): Promise<string[]> {
    await this.#monitor.stop("SIGKILL");
    return readFileSync(this.#monitor.log, "utf8")
      .split("\n")
      .filter((line) => line !== "" && !marks.test(line));
  }
}

test.each(["SIGTERM", "SIGKILL"] as const)("a restart after %s writes nothing", async (signal) => {
  const node = told;
  const { dir } = lab.underlay;
  const files = () => [cniFile, "/run/wigglenet/agent-in-sync", "/etc/wigglenet/private.key"];
  const everything = async () => ({
    state: await stateOf(node),
    files: files().map((path) => fileIdentity(node, path)),
    resourceVersion: (await node.object()).metadata.resourceVersion,
  });
  const before = await everything();
  const kernel = new Watch(
    node.namespace,
    ["ip", "-o", "monitor", "label", "all"],
    `${dir}/log/ip-monitor-${signal}.log`,
    (name) => `ip route add ${name} dev lo table 78; ip route delete ${name} dev lo table 78`,
  );
  const nft = new Watch(
    node.namespace,
    ["nft", "monitor"],
    `${dir}/log/nft-monitor-${signal}.log`,
    (name) => `nft add table inet mark-${name}; nft delete table inet mark-${name}`,
  );
  await Promise.all([kernel.mark("198.51.100.11"), nft.mark("first")]);
  await node.stopAgent(signal);
  node.startAgent();
  await node.inSync();
  await Promise.all([kernel.mark("198.51.100.12"), nft.mark("second")]);
  // Neighbours come and go with the packets themselves.
  expect(await kernel.stop(/198\.51\.100\.1[12]|^\[(NEIGH|NSID)\]/)).toEqual([]);
  expect(await nft.stop(/mark-(first|second)|new generation/)).toEqual([]);
  expect(changes(node)).toEqual([]);
  expect(atLeast("warn", node.agentLog())).toEqual([]);
  expect(await everything()).toEqual(before);
});
