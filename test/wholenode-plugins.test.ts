/** `wigglenet install-cni` as the DaemonSet's init container, on a whole node that has no CNI plugin at all. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { cniPlugins } from "../src/host/plugins.ts";
import { Cluster, type PodObject } from "./lab/cluster/cluster.ts";
import { until } from "./lab/process.ts";

setDefaultTimeout(120_000);

const folder = "/opt/cni/bin";
let cluster: Cluster;

beforeAll(async () => {
  cluster = await Cluster.start({ nodes: 1, plugins: false });
});

afterAll(() => cluster[Symbol.asyncDispose]());

const node = () => cluster.node("n1");
const listed = async () => (await node().$`ls -A ${folder}`).stdout.split("\n").filter((name) => name !== "");

test("an empty folder, and be it another user's, gets the plugins, and pods start with them", async () => {
  expect(await listed()).toEqual([]);
  // As the plugins' own archive leaves it.
  await node().$`chown 1001:127 ${folder}`;
  await cluster.kubectl`apply -f deploy/manifest.yaml`;
  await cluster.ready();
  expect((await listed()).sort()).toEqual(cniPlugins);
  const said = await log();
  expect(said.map(({ plugin, msg }) => [plugin, msg])).toEqual(
    cniPlugins.map((name) => [name, "plugin installed"]),
  );
  await cluster.kubectl`apply -f test/web.yaml`;
  await cluster.kubectl`scale deployment web --replicas=2`;
  const [one, other] = await cluster.pods("app=web", 2);
  for (const address of Object.values(other!.addresses))
    expect(await one!.place.reach({ protocol: "tcp", address, timeout: 2000 })).toMatchObject({ ok: true });
});

test("the next start leaves what is there, and puts back what is missing", async () => {
  await node().$`rm ${folder}/bandwidth && touch -d @0 ${folder}/ptp`;
  const [before] = await agents();
  await cluster.kubectl`-n kube-system delete pod ${before!.metadata.name}`;
  await until("another agent", async () => {
    const all = await agents();
    return (
      all.length === 1 &&
      all[0]!.metadata.uid !== before!.metadata.uid &&
      (await listed()).includes("bandwidth")
    );
  });
  const said = await until("the log of its init container", async () => {
    const lines = await log();
    return lines.length === cniPlugins.length && lines;
  });
  expect(Object.fromEntries(said.map(({ plugin, msg }) => [plugin, msg]))).toEqual({
    ...Object.fromEntries(cniPlugins.map((name) => [name, "plugin is there already"])),
    bandwidth: "plugin installed",
  });
  expect((await node().$`stat -c %Y ${folder}/ptp`).stdout.trim()).toBe("0");
});

test.each([
  ["size=1m", "no space is left there: free some"],
  ["ro", "it is mounted read-only: mount it writable"],
])("a folder that cannot take them (%s) is named, and keeps no half of one", async (option, why) => {
  const [{ metadata }] = (await agents()) as [PodObject];
  const { pid } = await until("the agent to run", () =>
    node()
      .task(metadata.uid, "wigglenet")
      .catch(() => undefined),
  );
  await node().$`mkdir -p /run/full && mount -t tmpfs -o ${option} tmpfs /run/full`;
  const program = `/proc/${pid}/root`;
  const failed = await node()
    .$`${program}/usr/local/bin/wigglenet install-cni --source ${program}/usr/lib/cni --target /run/full`.nothrow();
  expect({ exitCode: failed.exitCode, stderr: failed.stderr }).toEqual({
    exitCode: 1,
    stderr: `wigglenet: cannot install bandwidth into /run/full: ${why}\n`,
  });
  expect((await node().$`ls -A /run/full`).stdout).toBe("");
  await node().$`umount /run/full`;
});

async function agents(): Promise<PodObject[]> {
  const selector = encodeURIComponent("app.kubernetes.io/name=wigglenet");
  return await cluster.api.list<PodObject>(`/api/v1/namespaces/kube-system/pods?labelSelector=${selector}`);
}

async function log(): Promise<{ plugin: string; msg: string }[]> {
  const running = (await agents()).find(({ metadata }) => !metadata.deletionTimestamp)!;
  const { stdout } =
    await cluster.kubectl`-n kube-system logs ${running.metadata.name} -c install-cni`.nothrow();
  return stdout.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line)] : []));
}
