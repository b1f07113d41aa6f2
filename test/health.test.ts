/** The health and metrics endpoints, asked from the node itself. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, readdirSync } from "node:fs";
import { cniFile, type LightNode } from "./lab/cluster/lightnode.ts";
import { type Issued, Pki } from "./lab/cluster/pki.ts";
import { Lab } from "./lab/lab.ts";
import { patience, until } from "./lab/process.ts";

const health = { HEALTH_BIND_ADDR: "127.0.0.1:24602" };

let lab: Lab;
let node: LightNode;
let other: LightNode;

beforeAll(async () => {
  lab = await Lab.start({ nodes: 2, node: { env: { ...health, ENABLE_METRICS: "1" } }, agents: false });
  [node, other] = lab.nodes as [LightNode, LightNode];
}, 60_000 * patience);
afterAll(() => lab[Symbol.asyncDispose]());

interface Answer {
  status: number;
  text: string;
  /** Of the certificate. */
  subject?: string;
}

/** GET from the node; undefined if there was no answer. */
async function get(url: string, tls: Record<string, string> = {}, from = node): Promise<Answer | undefined> {
  const asked = from.namespace.run([process.execPath, "-e", ask], {
    env: { URL: url, TLS: JSON.stringify(tls) },
  });
  return await asked.then((answer) => JSON.parse(answer) as Answer).catch(() => undefined);
}

const ask = `
const { request } = require(process.env.URL.startsWith("https") ? "node:https" : "node:http");
const files = Object.entries(JSON.parse(process.env.TLS)).map(([name, path]) => [name, require("node:fs").readFileSync(path)]);
const asked = request(process.env.URL, { agent: false, ...Object.fromEntries(files) }, async (answer) => {
  const subject = answer.socket.getPeerCertificate?.().subject?.CN;
  let text = "";
  for await (const chunk of answer) text += chunk;
  console.log(JSON.stringify({ status: answer.statusCode, text, subject }));
});
asked.on("error", () => process.exit(1));
asked.end();
`;

const ready = (from = node) => get("http://127.0.0.1:24602/readyz", {}, from);

/** Values by name, with labels: { "wigglenet_failures_total{resource=\"link\"}": 1 }. */
async function metrics(): Promise<Record<string, number>> {
  const answer = await get("http://127.0.0.1:9091/metrics");
  expect(answer?.status).toBe(200);
  const lines = answer!.text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return Object.fromEntries(
    lines.map((line) => [line.replace(/ [^ ]*$/, ""), Number(/[^ ]*$/.exec(line)?.[0])]),
  );
}

test(
  "ready when in sync and published, not before; not while something fails; ready again",
  async () => {
    await lab.controlPlane.stopServer();
    node.startAgent();
    const waiting = await until("an answer", ready);
    expect(waiting).toMatchObject({ status: 503, text: expect.stringContaining("have not been read yet") });
    expect(await get("http://127.0.0.1:24602/healthz")).toMatchObject({ status: 200, text: "ok\n" });
    await lab.controlPlane.startServer();
    await until("the node to be ready", async () => (await ready())?.status === 200, { timeout: 45_000 });
    expect((await node.object()).metadata.annotations).toHaveProperty(["wigglenet/public-key"]);

    // A directory where the CNI file should be cannot be replaced by a file. A pass that is still under way may put the file
    // back before the directory is there.
    await until("the directory", async () => {
      const made = await node.$`rm ${cniFile} && mkdir -p ${cniFile}/full`.nothrow();
      return made.exitCode === 0;
    });
    await node.$`ip link set wigglenet down`;
    const failing = await until("the node to be unready", async () => {
      const answer = await ready();
      return answer?.status === 503 && answer;
    });
    expect(failing.text).toStartWith("CNI file: ");
    expect(await get("http://127.0.0.1:24602/healthz")).toMatchObject({ status: 200 });
    expect(await metrics()).toMatchObject({ wigglenet_in_sync: 0 });
    await node.$`rm -r ${cniFile}`;
    await until("the node to be ready again", async () => (await ready())?.status === 200, {
      timeout: 40_000,
    });
    expect((await metrics())['wigglenet_failures_total{resource="CNI file"}']).toBeGreaterThan(0);
    expect(await get("http://127.0.0.1:24602/")).toMatchObject({ status: 404 });
  },
  120_000 * patience,
);

test(
  "metrics count passes, changes, nodes, handshakes, what each peer sent and got, and what the process takes",
  async () => {
    other.startAgent();
    await until("the other node to be ready", async () => (await ready(other))?.status === 200, {
      timeout: 15_000,
    });
    const [a, b] = await Promise.all([node.pod("p"), other.pod("p")]);
    await until("a packet to arrive", async () => (await lab.reach(a, b, { timeout: 6000 })).ok);
    await lab.controlPlane.api.create({
      apiVersion: "v1",
      kind: "Node",
      metadata: {
        name: "malformed",
        annotations: { "wigglenet/public-key": "x", "wigglenet/node-ips": "[]" },
      },
    });
    const values = await until("the malformed node and the handshake to be counted", async () => {
      const values = await metrics();
      // The controller manager gives it pod CIDRs as well.
      const counted = values.wigglenet_nodes_with_problems === 1 && values.wigglenet_pod_cidrs_total === 6;
      return counted && values.wigglenet_peers_connected === 1 && values;
    });
    const { version } = (await import("../package.json")).default;
    expect(values).toMatchObject({
      [`wigglenet_build_info{version="${version}",firewall_backend="nftables"}`]: 1,
      wigglenet_in_sync: 1,
      wigglenet_nodes: 2,
      wigglenet_peers_total: 1,
      wigglenet_peers_connected: 1,
      wigglenet_pass_duration_seconds_count: expect.any(Number),
    });
    expect(values['wigglenet_changes_total{what="peers added or changed"}']).toBeGreaterThan(0);
    expect(Date.now() / 1000 - values.wigglenet_last_handshake_timestamp_seconds!).toBeWithin(-1, 60);
    const peer = (await other.object()).metadata.annotations!["wigglenet/public-key"]!;
    const endpoint = `${other.addresses.ipv4}:24601`;
    const labels = `{public_key="${peer}",endpoint="${endpoint}",node="${other.name}"}`;
    expect(values[`wigglenet_peer_last_handshake_seconds${labels}`]).toBeWithin(0, 60);
    expect(values[`wigglenet_peer_receive_bytes_total${labels}`]).toBeGreaterThan(0);
    expect(values[`wigglenet_peer_transmit_bytes_total${labels}`]).toBeGreaterThan(0);
    const pid = `/proc/${await node.agentPid()}`;
    expect(values.process_start_time_seconds).toBeWithin(Date.now() / 1000 - 120, Date.now() / 1000);
    expect(values.process_cpu_seconds_total).toBeWithin(0.01, 60);
    expect(values.process_resident_memory_bytes).toBeWithin(20e6, 500e6);
    expect(values.process_virtual_memory_bytes).toBeGreaterThan(values.process_resident_memory_bytes!);
    expect(values.process_open_fds).toBeWithin(5, readdirSync(`${pid}/fd`).length + 10);
    expect(values.process_max_fds).toBeGreaterThan(100);
    await lab.controlPlane.api.remove("/api/v1/nodes/malformed");
  },
  60_000 * patience,
);

/** What the queries of the Go implementation's dashboard select and group by, but for those of policies. */
const dashboard: [metric: string, labels: Record<string, string | undefined>][] = [
  ["wigglenet_build_info", { version: undefined, firewall_backend: undefined }],
  ["wigglenet_pod_cidrs_total", {}],
  ["wigglenet_peers_total", {}],
  ["wigglenet_firewall_sync_total", { backend: undefined, status: "error" }],
  ["wigglenet_firewall_sync_total", { backend: undefined, status: "success" }],
  ["wigglenet_firewall_sync_duration_seconds_bucket", { backend: undefined, le: "+Inf" }],
  ["wigglenet_peer_receive_bytes_total", { public_key: undefined, endpoint: undefined }],
  ["wigglenet_peer_transmit_bytes_total", { public_key: undefined, endpoint: undefined }],
  ["wigglenet_peer_last_handshake_seconds", { public_key: undefined, endpoint: undefined }],
];
test.each(dashboard)("the dashboard of the Go implementation finds %s with %j", async (metric, wanted) => {
  const found = Object.keys(await metrics())
    .filter((name) => name.replace(/\{.*/, "") === metric)
    .map((name) =>
      Object.fromEntries([...name.matchAll(/(\w+)="([^"]*)"/g)].map(([, label, value]) => [label, value])),
    );
  const matching = found.filter((labels) =>
    Object.entries(wanted).every(([label, value]) =>
      value === undefined ? labels[label] : labels[label] === value,
    ),
  );
  if (matching.length === 0) throw new Error(`of ${metric} there is only ${JSON.stringify(found)}`);
});

test("metrics are not open to the network unless that is asked for", async () => {
  for (const host of [node.addresses.ipv4, `[${node.addresses.ipv6}]`])
    expect(await get(`http://${host}:9091/metrics`, {}, other)).toBeUndefined();
  expect(await get("http://127.0.0.1:9091/metrics")).toMatchObject({ status: 200 });
});

describe("by HTTPS", () => {
  const files = "/etc/wigglenet";
  const url = "https://127.0.0.1:24603/metrics";
  let pki: Pki;
  let server: Issued;
  let renewed: Issued;
  let client: Issued;
  let stranger: Issued;

  beforeAll(async () => {
    mkdirSync(`${lab.underlay.dir}/pki-metrics`);
    mkdirSync(`${lab.underlay.dir}/pki-strange`);
    pki = await Pki.create(`${lab.underlay.dir}/pki-metrics`);
    const strange = await Pki.create(`${lab.underlay.dir}/pki-strange`);
    server = await pki.issue("first", "/CN=first", ["IP:127.0.0.1"]);
    renewed = await pki.issue("second", "/CN=second", ["IP:127.0.0.1"]);
    client = await pki.issue("prometheus", "/CN=prometheus");
    stranger = await strange.issue("stranger", "/CN=stranger");
    const ca = `${pki.dir}/ca.crt`;
    install(server);
    copyFileSync(ca, inside("client-ca.crt"));
    await node.stopAgent();
    node.startAgent({
      METRICS_BIND_ADDR: "127.0.0.1:24603",
      METRICS_TLS_CERT_FILE: `${files}/tls.crt`,
      METRICS_TLS_KEY_FILE: `${files}/tls.key`,
      METRICS_TLS_CLIENT_CA_FILE: `${files}/client-ca.crt`,
    });
    await until("the agent to be ready", async () => (await ready())?.status === 200);
  }, 60_000 * patience);

  const inside = (name: string) => `/proc/${node.namespace.pid}/root${files}/${name}`;
  const install = ({ cert, key }: Issued) => {
    copyFileSync(cert, inside("tls.crt"));
    copyFileSync(key, inside("tls.key"));
  };
  const by = (issued?: Issued) => get(url, { ca: `${pki.dir}/ca.crt`, ...issued });

  test("a client with a certificate of the CA is answered, and no other", async () => {
    expect(await by(client)).toMatchObject({ status: 200, subject: "first" });
    expect(await by()).toBeUndefined();
    expect(await by(stranger)).toBeUndefined();
    expect(await get(url.replace("https", "http"))).toBeUndefined();
  });

  test(
    "a renewed certificate is taken without a restart, one that does not fit its key is not",
    async () => {
      copyFileSync(renewed.cert, inside("tls.crt"));
      await until(
        "the mistake to be told",
        () => node.agentLog().some((line) => /renewed certificate cannot be used/.test(String(line.msg))),
        { timeout: 15_000 },
      );
      expect(await by(client)).toMatchObject({ status: 200, subject: "first" });
      install(renewed);
      await until("the new certificate", async () => (await by(client))?.subject === "second", {
        timeout: 15_000,
      });
      expect(node.agentLog().some((line) => line.msg === "in sync")).toBe(true);
    },
    40_000 * patience,
  );

  test("wrong files are told of at the start, with the variable and the file", async () => {
    await node.stopAgent();
    const cert = { ENABLE_METRICS: "1", METRICS_TLS_CERT_FILE: `${files}/tls.crt` };
    for (const [env, says] of [
      [{ ...cert, METRICS_TLS_KEY_FILE: `${files}/client-ca.crt` }, "_KEY_FILE=.*: is no private key in PEM"],
      [
        { ...cert, METRICS_TLS_KEY_FILE: `${files}/tls.key`, METRICS_TLS_CLIENT_CA_FILE: `${files}/tls.key` },
        "METRICS_TLS_CLIENT_CA_FILE=.*: is no certificate in PEM",
      ],
    ] as const) {
      node.startAgent(env);
      expect(await node.agentExit()).toBe(2);
      expect(JSON.stringify(node.agentLog())).toMatch(new RegExp(`wrong configuration:.*${says}`));
    }
  });

  test("a certificate that is half renewed at the start is waited for, and the network does not wait", async () => {
    copyFileSync(server.key, inside("other.key"));
    node.startAgent({
      METRICS_BIND_ADDR: "127.0.0.1:24603",
      METRICS_TLS_CERT_FILE: `${files}/tls.crt`,
      METRICS_TLS_KEY_FILE: `${files}/other.key`,
    });
    await node.inSync();
    expect(JSON.stringify(node.agentLog())).toContain("other.key is not the key of the certificate");
    copyFileSync(renewed.key, inside("other.key"));
    await until("metrics", async () => (await by())?.status === 200);
  });
});

test(
  "an address that is taken, or not the node's: of health it ends the start, of metrics it is tried again",
  async () => {
    if (node.agentRuns) await node.stopAgent();
    const holder = node.namespace.start(
      "the holder of the port",
      [process.execPath, "-e", 'Bun.serve({ hostname: "::1", port: 24604, fetch: () => new Response() })'],
      `${lab.underlay.dir}/log/holder.log`,
    );
    await until("the port to be taken", async () => (await get("http://[::1]:24604/")) !== undefined);
    node.startAgent({ HEALTH_BIND_ADDR: "[::1]:24604" });
    expect(await node.agentExit()).toBe(1);
    expect(JSON.stringify(node.agentLog())).toContain(
      String.raw`HEALTH_BIND_ADDR=\"[::1]:24604\": cannot listen: something else listens there`,
    );
    await holder.stop();
    node.startAgent({ METRICS_BIND_ADDR: "192.0.2.1:9091" });
    await node.inSync();
    expect(JSON.stringify(node.agentLog())).toContain(
      String.raw`METRICS_BIND_ADDR=\"192.0.2.1:9091\": cannot listen: this node has no such address`,
    );
    await node.stopAgent();
    node.startAgent({ HEALTH_BIND_ADDR: "[::1]:24604" });
    await until("an answer by IPv6", async () => (await get("http://[::1]:24604/readyz"))?.status === 200);
  },
  60_000 * patience,
);
