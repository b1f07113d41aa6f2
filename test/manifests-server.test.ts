/** The manifests on a real API server: each is valid, and by their policy an agent writes its own annotations only. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { $ } from "zx";
import { helm, repository } from "./lab/cache.ts";
import { Api, type ApiObject, refusal as refused } from "./lab/cluster/api.ts";
import { goManifest } from "./lab/cluster/gomanifest.ts";
import { commandBlocks } from "./lab/documents.ts";
import { Lab } from "./lab/lab.ts";
import { until } from "./lab/process.ts";

setDefaultTimeout(120_000);

const account = "/api/v1/namespaces/kube-system/serviceaccounts/wigglenet";
const four = {
  "wigglenet/public-key": `${"A".repeat(42)}E=`,
  "wigglenet/node-ips": "[]",
  "wigglenet/pod-cidrs": "[]",
  "wigglenet/agent": `{"version":"1.0.0","nodeIps":"${"0".repeat(16)}","tunnelled":0}`,
};
const annotated = (annotations: object) => ({ metadata: { annotations } });

let lab: Lab;
let admin: Api;
/** Agents of n1, in each of the three ways in which one may be. */
const agents = new Map<string, Api>();

beforeAll(async () => {
  lab = await Lab.start({
    nodes: 2,
    agents: false,
    node: { annotations: { theirs: "1" }, labels: { zone: "a" } },
  });
  admin = lab.controlPlane.api;
  await admin.patch("/api/v1/nodes/n1", { metadata: { finalizers: ["example.org/held"] } });
  agents.set("a token bound to the Node", admin.withToken(await lab.nodes[0]!.renewToken()));
  agents.set("a token of a pod on the node", await ofPod("n1"));
  agents.set("a client certificate", await ofCertificate("/O=wigglenet:nodes/CN=wigglenet:node:n1"));
  // From then on nothing but these tests changes a Node.
  for (const name of ["n1", "n2"])
    await until(`${name} to have its pod CIDRs`, async () => (await admin.node(name)).spec?.podCIDRs);
  // The API server puts a new policy into force within a second or so.
  const other = agents.get("a token bound to the Node")!;
  await until("the policy to be in force", async () =>
    /ValidatingAdmissionPolicy/.test((await refusal(other, "PATCH", "n2", annotated(four))) ?? ""),
  );
});

afterAll(async () => {
  await admin.patch("/api/v1/nodes/n1", { metadata: { finalizers: null } });
  await lab[Symbol.asyncDispose]();
});

for (const who of ["a token bound to the Node", "a token of a pod on the node", "a client certificate"]) {
  test(`${who}: its own four annotations are written, and taken away`, async () => {
    const agent = agents.get(who)!;
    expect(await refusal(agent, "PATCH", "n1", annotated(four))).toBeUndefined();
    expect((await admin.node("n1")).metadata.annotations).toEqual({ theirs: "1", ...four });
    const none = Object.fromEntries(Object.keys(four).map((name) => [name, null]));
    expect(await refusal(agent, "PATCH", "n1", annotated(none))).toBeUndefined();
    expect((await admin.node("n1")).metadata.annotations).toEqual({ theirs: "1" });
  });

  const onlyOwn = "an agent may change no annotations but wigglenet/public-key, wigglenet/node-ips,";
  const nothingElse = "an agent may change annotations of its Node, and no labels, taints or anything else";
  test.each<[string, string, object, string]>([
    ["another node", "n2", annotated(four), "the agent of Node n1 may not change Node n2"],
    ["another annotation, new", "n1", annotated({ new: "1" }), onlyOwn],
    ["another annotation, changed", "n1", annotated({ theirs: "2" }), onlyOwn],
    ["another annotation, removed", "n1", annotated({ theirs: null }), onlyOwn],
    ["another annotation, with its own", "n1", annotated({ ...four, "wigglenet/other": "1" }), onlyOwn],
    ["a label, new", "n1", { metadata: { labels: { new: "1" } } }, nothingElse],
    ["a label, changed", "n1", { metadata: { labels: { zone: "b" } } }, nothingElse],
    ["all labels", "n1", { metadata: { labels: null } }, nothingElse],
    ["a taint", "n1", { spec: { taints: [{ key: "k", effect: "NoSchedule" }] } }, nothingElse],
    ["unschedulable", "n1", { spec: { unschedulable: true } }, nothingElse],
    ["a finalizer", "n1", { metadata: { finalizers: null } }, nothingElse],
    [
      "an owner",
      "n1",
      { metadata: { ownerReferences: [{ apiVersion: "v1", kind: "Node", name: "n2", uid: "u" }] } },
      nothingElse,
    ],
  ])(`${who}: %s is refused`, async (_, node, change, why) => {
    const before = await admin.node(node);
    expect(await refusal(agents.get(who)!, "PATCH", node, change)).toContain(why);
    expect(await admin.node(node)).toEqual(before);
  });
}

test.each([...new Bun.Glob("deploy/{manifest*,ipv6_only}.yaml").scanSync(repository)].sort())(
  "%s is valid",
  async (file) => {
    // The server decodes it strictly, by the schemas of its own version, and validates and admits it: all that
    // kubeconform would look at and more, with no schemas from elsewhere.
    const { kubectl } = lab.controlPlane;
    const text = readFileSync(`${repository}/${file}`, "utf8");
    const { stdout } =
      await kubectl`apply --server-side --force-conflicts --dry-run=server --validate=strict -f ${repository}/${file}`;
    expect(stdout.match(/ serverside-applied \(server dry run\)$/gm)).toHaveLength(
      text.match(/^kind: /gm)!.length,
    );
    const wrong = text.replace("subjects:", "subject:");
    const refused = await kubectl({ input: wrong, nothrow: true })`apply --dry-run=server -f -`;
    expect(refused.stderr).toContain('unknown field "subject"');
  },
);

test("a server too old for the policy takes the rest, and kubectl says so", async () => {
  const manifest = readFileSync(`${repository}/deploy/manifest.yaml`, "utf8");
  const input = manifest.replaceAll("admissionregistration.k8s.io/v1", "admissionregistration.k8s.io/v0");
  const applied = await lab.controlPlane.kubectl({ input, nothrow: true })`apply --dry-run=server -f -`;
  expect(applied.exitCode).toBe(1);
  expect(applied.stdout.match(/ (created|configured|unchanged) \(server dry run\)$/gm)).toHaveLength(6);
  expect(applied.stderr).toContain('no matches for kind "ValidatingAdmissionPolicy"');
});

test.each(["manifest.yaml", "ipv6_only.yaml", "manifest-metrics.yaml"])(
  "%s is applied over that of the Go implementation, and back, and nothing of the other is left",
  async (file) => {
    const { kubectl } = lab.controlPlane;
    const daemonSet = async () => {
      const { stdout } = await kubectl`-n kube-system get daemonset wigglenet -o json`;
      const { metadata, spec } = JSON.parse(stdout) as ApiObject;
      return { labels: metadata.labels, spec };
    };
    const ours = () => kubectl`apply -f ${repository}/deploy/${file}`;
    const theirs = () =>
      kubectl({ input: JSON.stringify({ apiVersion: "v1", kind: "List", items: goManifest() }) })`apply -f -`;
    const remove = () => kubectl`-n kube-system delete daemonset wigglenet --ignore-not-found`;
    await remove();
    await ours();
    const own = await daemonSet();
    await remove();
    await theirs();
    const go = await daemonSet();
    await ours();
    expect(await daemonSet()).toEqual(own);
    await theirs();
    expect(await daemonSet()).toEqual(go);
    await ours();
    await remove();
  },
);

test("what is bound to no node writes nothing, and is told what to do", async () => {
  const unbound = await token({});
  const why = await refusal(unbound, "PATCH", "n1", annotated(four));
  console.log(why);
  expect(why).toContain("create token wigglenet --bound-object-kind Node --bound-object-name NODE");
  const nameless = await ofCertificate("/O=wigglenet:nodes/CN=somebody");
  expect(await refusal(nameless, "PATCH", "n1", annotated(four))).toContain("is bound to no Node");
});

test("a certificate without the group has no rights at all", async () => {
  const stranger = await ofCertificate("/CN=wigglenet:node:n1");
  expect(await refusal(stranger, "PATCH", "n1", annotated(four))).toContain('cannot patch resource "nodes"');
});

test("the rights are get, list, watch and patch of nodes", async () => {
  const agent = agents.get("a token bound to the Node")!;
  const rules = await agent.request<{
    status: { resourceRules: { verbs: string[]; apiGroups: string[]; resources: string[] }[] };
  }>("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {
    apiVersion: "authorization.k8s.io/v1",
    kind: "SelfSubjectRulesReview",
    spec: { namespace: "kube-system" },
  });
  // what everybody may, is to ask for one's own rights
  const own = rules.status.resourceRules.filter(({ resources }) => !/^selfsubject/.test(resources[0]!));
  expect(own).toEqual([{ verbs: ["get", "list", "watch", "patch"], apiGroups: [""], resources: ["nodes"] }]);
});

test("even with every right on nodes an agent makes and deletes none, and touches no subresource", async () => {
  const name = "wigglenet-test-everything";
  const rules = [{ apiGroups: [""], resources: ["nodes", "nodes/status", "nodes/proxy"], verbs: ["*"] }];
  const rbac = "rbac.authorization.k8s.io";
  await admin.apply({ apiVersion: `${rbac}/v1`, kind: "ClusterRole", metadata: { name }, rules });
  await admin.apply({
    apiVersion: `${rbac}/v1`,
    kind: "ClusterRoleBinding",
    metadata: { name },
    roleRef: { apiGroup: rbac, kind: "ClusterRole", name },
    subjects: [{ kind: "ServiceAccount", name: "wigglenet", namespace: "kube-system" }],
  });
  const agent = agents.get("a token bound to the Node")!;
  const denied = "ValidatingAdmissionPolicy 'wigglenet'";
  await until("the rights to be there", async () => (await refusal(agent, "DELETE", "n1"))?.includes(denied));
  const status = { status: { nodeInfo: { kernelVersion: "other" } } };
  expect(await refusal(agent, "PATCH", "n1/status", status)).toContain("nothing by a subresource");
  expect(await refusal(agent, "GET", "n1/proxy/metrics")).toContain(denied);
  expect(await refusal(agent, "DELETE", "n1")).toContain("an agent may change annotations of its Node");
  expect(await refusal(agent, "DELETE", "n2")).toContain("the agent of Node n1 may not change Node n2");
  const made = { apiVersion: "v1", kind: "Node", metadata: { name: "n9" } };
  expect(await refusal(agent, "POST", "", made)).toContain(denied);
  expect((await admin.nodes()).map(({ metadata }) => metadata.name)).toEqual(["n1", "n2"]);
  // a whole object instead of a patch is judged alike
  const node = await admin.node("n1");
  const { annotations } = node.metadata;
  const own = { ...node, metadata: { ...node.metadata, annotations: { ...annotations, ...four } } };
  expect(await refusal(agent, "PUT", "n1", own)).toBeUndefined();
});

test("others are not held to it", async () => {
  expect(await refusal(admin, "PATCH", "n2", annotated({ ...four, new: "1" }))).toBeUndefined();
  expect(await refusal(admin, "PATCH", "n2", { metadata: { labels: { new: "1" } } })).toBeUndefined();
});

test("helm install, upgrade and uninstall", async () => {
  const { kubectl, kubeconfig } = lab.controlPlane;
  await kubectl`delete -f ${repository}/deploy/manifest.yaml --ignore-not-found`;
  const helmed = $({ quiet: true, env: { ...process.env, KUBECONFIG: kubeconfig } });
  const release = [`${repository}/deploy/chart`, "--namespace", "kube-system"];
  const installed = await helmed`${helm} install wigglenet ${release}`;
  expect(installed.stdout).toContain("kubectl -n kube-system rollout status daemonset/wigglenet");
  await helmed`${helm} upgrade wigglenet ${release} --set settings.FILTER_IPV6=1`;
  const documented = commandBlocks("docs/configuration.md").find(({ text }) =>
    text.includes("allowedPodCIDRs={"),
  )!;
  await helmed({ cwd: repository })`bash -ec ${documented.text.replace("helm", helm)}`;
  const { spec } = await admin.get<ApiObject & { spec: { variables: { expression: string }[] } }>(
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/wigglenet-values",
  );
  expect(spec.variables.slice(0, 2).map(({ expression }) => expression)).toEqual([
    '["2001:db8::/32"]',
    '["192.0.2.0/24"]',
  ]);
  const { stdout } = await kubectl`-n kube-system get daemonset wigglenet -o json`;
  expect(JSON.parse(stdout).spec.template.spec.containers[0].env).toContainEqual({
    name: "FILTER_IPV6",
    value: "1",
  });
  expect((await helmed`${helm} uninstall wigglenet --namespace kube-system`).stdout).toContain("uninstalled");
  expect((await kubectl`get -f ${repository}/deploy/manifest.yaml --ignore-not-found`).stdout).toBe("");
});

/** Why the API server refuses a request; undefined if it does not. */
function refusal(as: Api, method: string, node: string, body?: object): Promise<string | undefined> {
  const type = method === "PATCH" ? "application/merge-patch+json" : "application/json";
  return refused(as.request(method, `/api/v1/nodes${node && `/${node}`}`, body, type));
}

async function token(spec: object): Promise<Api> {
  const request = { apiVersion: "authentication.k8s.io/v1", kind: "TokenRequest", spec };
  const { status } = await admin.request<{ status: { token: string } }>("POST", `${account}/token`, request);
  return admin.withToken(status.token);
}

/** As kubelet asks for a pod's token. */
async function ofPod(node: string): Promise<Api> {
  const pod = { apiVersion: "v1", kind: "Pod", name: "agent" };
  const { metadata } = await admin.create({
    ...pod,
    metadata: { name: "agent", namespace: "kube-system" },
    spec: { serviceAccountName: "wigglenet", nodeName: node, containers: [{ name: "c", image: "none" }] },
  });
  return await token({ boundObjectRef: { ...pod, uid: metadata.uid } });
}

async function ofCertificate(subject: string): Promise<Api> {
  const { pki } = lab.controlPlane;
  const files = await pki.issue(`client-${Bun.hash(subject)}`, subject);
  const [cert, key] = [files.cert, files.key].map((file) => readFileSync(file, "utf8"));
  return new Api(admin.server, { ca: lab.controlPlane.ca, cert: cert!, key: key! });
}
