/**
 * The agent beside kubelet on whole nodes, as docs/bare-metal.md has it: its command blocks are what is run. Systemd is in
 * vm-systemd.test.ts.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { kubernetes, repository } from "./lab/cache.ts";
import { Cluster, isReady } from "./lab/cluster/cluster.ts";
import type { WholeNode } from "./lab/cluster/wholenode.ts";
import { paths, reachability, settle, unreached } from "./lab/probe/reachability.ts";
import { type Service, until } from "./lab/process.ts";

setDefaultTimeout(120_000);

const folder = "/etc/wigglenet";
const agents: Service[] = [];
let cluster: Cluster;

beforeAll(async () => {
  cluster = await Cluster.start({ nodes: 2 });
});
afterAll(async () => {
  await Promise.all(agents.map((agent) => agent.stop()));
  await cluster?.[Symbol.asyncDispose]();
});

/** The one block of docs/bare-metal.md that holds `word`, for a node. */
function block(word: string, node: WholeNode): string {
  const document = readFileSync(`${repository}/docs/bare-metal.md`, "utf8");
  const blocks = document.split("\n\n").flatMap((part) => (part.startsWith("    ") ? [part] : []));
  // A here-document may have an empty line in it; none of ours has.
  const found = blocks.filter((each) => each.includes(word));
  expect([word, found.length]).toEqual([word, 1]);
  return found[0]!.replace(/^ {4}/gm, "").replaceAll("NODE", node.name);
}

/** Runs a block as an admin. */
async function asAdmin(script: string, cwd = repository): Promise<string> {
  const env = {
    PATH: `${dirname(kubernetes("kubectl"))}:${process.env.PATH}`,
    KUBECONFIG: cluster.controlPlane.kubeconfig,
    // kubectl keeps a cache there
    HOME: cluster.underlay.dir,
  };
  const child = Bun.spawn(["bash", "-euo", "pipefail", "-c", script], { cwd, env, stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (child.exitCode !== 0) throw new Error(`${script}\n${stderr}`);
  return stdout;
}

async function write(node: WholeNode, name: string, text: string): Promise<void> {
  await Bun.write(`/proc/${node.namespace.pid}/root${folder}/${name}`, text);
}

/** The kubeconfig of the document, with this lab's server and another user if need be. */
async function writeKubeconfig(node: WholeNode, user?: string): Promise<void> {
  const written = block("current-context", node)
    .replace("https://API-SERVER:6443", cluster.controlPlane.server("ipv4"))
    .replace("/etc/kubernetes/pki/ca.crt", `${folder}/ca.crt`);
  const indented = user?.replace(/^/gm, "    ");
  await write(node, "kubeconfig", indented ? written.replace(/ {4}user:\n.*/, indented.trimEnd()) : written);
  await write(node, "ca.crt", cluster.controlPlane.ca);
}

function start(node: WholeNode, env: Record<string, string> = {}): Service {
  const log = `${cluster.underlay.dir}/log/${node.name}-agent.log`;
  const argv = [`${repository}/dist/wigglenet`, "agent"];
  return node.namespace.start(`agent of ${node.name}`, argv, log, {
    PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    NODE_NAME: node.name,
    KUBECONFIG: `${folder}/kubeconfig`,
    ...env,
  });
}

test("the kubelet's own kubeconfig cannot do, and the agent says so", async () => {
  const node = cluster.node("n1");
  const agent = start(node, { KUBECONFIG: `${node.disk}/config/kubelet.kubeconfig` });
  const line = await until("the agent to say so", () =>
    agent
      .tail()
      .split("\n")
      .find((each) => each.includes("identity of a kubelet")),
  );
  console.log(line);
  expect(line).toContain("HTTP 403");
  expect(line).toContain(
    "system:node:n1 is the identity of a kubelet, which may not read the other nodes: give the agent one of its own, see docs/bare-metal.md",
  );
  await agent.stop();
});

test("beside kubelet, by a token bound to the Node and by a client certificate, nodes become Ready", async () => {
  const [n1, n2] = cluster.nodes as [WholeNode, WholeNode];
  await asAdmin(block("apply -f deploy", n1));
  await write(n1, "token", await asAdmin(block("create token", n1)));
  await writeKubeconfig(n1);
  agents.push(start(n1));

  const request = block("openssl req", n2).replaceAll(folder, ".");
  const directory = mkdtempSync(join(tmpdir(), "wigglenet-csr-"));
  await asAdmin(request, directory);
  await write(n2, "client.key", readFileSync(`${directory}/client.key`, "utf8"));
  const [apply, approve, get] = block("certificate approve", n2).split(/\n(?=kubectl (?:certificate|get) )/);
  await asAdmin(`${apply}\n${approve}`, directory);
  const issued = await until("the certificate", async () => await asAdmin(get!, directory));
  rmSync(directory, { recursive: true });
  await write(n2, "client.crt", issued);
  await writeKubeconfig(n2, block("client-certificate:", n2));
  agents.push(start(n2));

  await cluster.ready();
  // A node is ready by its CNI file, which comes before its annotations.
  await until("every Node to have its annotations", async () =>
    (await cluster.api.nodes()).every(({ metadata }) => metadata.annotations?.["wigglenet/public-key"]),
  );
});

test("their pods reach each other and every node", async () => {
  await cluster.kubectl`apply -f test/web.yaml`;
  await cluster.kubectl`scale deployment web --replicas=2`;
  const pods = await cluster.pods("app=web");
  const all = await paths(cluster, pods);
  await settle(all, pods);
  expect(unreached(await reachability(all))).toEqual([]);
  expect((await cluster.api.nodes()).every((node) => isReady(node))).toBe(true);
});
