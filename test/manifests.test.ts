/** The chart and what is made from it: what is committed, every setting, every value. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { parse } from "yaml";
import { $ } from "zx";
import { chart, chartFiles, fixed, inPod, manifests, render } from "../deploy/manifests.ts";
import packageJson from "../package.json" with { type: "json" };
import { type SettingName, settingNames, settings } from "../src/config/settings.ts";
import { helm, kubernetes, kubernetesVersion, repository } from "./lab/cache.ts";
import { type ApiObject, objectsOf } from "./lab/cluster/api.ts";
import { AGENT_IMAGE } from "./lab/image/image.ts";

setDefaultTimeout(60_000);

interface Container {
  env: { name: SettingName; value?: string }[];
  [key: string]: unknown;
}
interface DaemonSet extends ApiObject {
  spec: {
    template: {
      metadata: { annotations?: Record<string, string> };
      spec: {
        containers: [Container];
        volumes: { name: string; hostPath?: { path: string } }[];
        [key: string]: unknown;
      };
    };
  };
}

const read = (path: string) => readFileSync(`${repository}/${path}`, "utf8");
const values = parse(read("deploy/chart/values.yaml")) as object;
const kindsOf = (manifest: string) => objectsOf(manifest).map(({ kind }) => kind);
const daemonSetOf = (manifest: string) =>
  objectsOf(manifest).find(({ kind }) => kind === "DaemonSet") as DaemonSet;
const podOf = (manifest: string) => daemonSetOf(manifest).spec.template.spec;
const containerOf = (manifest: string) => podOf(manifest).containers[0];

test("what is committed is what the chart renders, for this version", async () => {
  const rendered = await manifests();
  for (const [path, text] of [...chartFiles(), ...rendered]) expect(readFileSync(path, "utf8")).toBe(text);
  const committed = [...new Bun.Glob("deploy/{manifest*,ipv6_only}.yaml").scanSync(repository)];
  expect(committed.map((file) => `${repository}/${file}`).sort()).toEqual([...rendered.keys()].sort());
  const { version, appVersion } = parse(read("deploy/chart/Chart.yaml"));
  expect([version, appVersion]).toEqual([packageJson.version, packageJson.version]);
  expect(containerOf(read("deploy/manifest.yaml")).image).toBe(AGENT_IMAGE);
});

test("every variable that the agent reads is in the manifest, with one comment and its default", () => {
  const lines = read("deploy/manifest.yaml")
    .split("\n")
    .map((line) => line.trim());
  const { env } = containerOf(read("deploy/manifest.yaml"));
  expect(env.map(({ name }) => name).sort()).toEqual([...settingNames].sort());
  for (const { name, value } of env) {
    const [before, comment] = lines.slice(lines.indexOf(`- name: ${name}`) - 2);
    expect([before![0], comment]).toEqual([expect.not.stringMatching("#"), `# ${settings[name].meaning}`]);
    if (!fixed.includes(name)) expect([name, value]).toEqual([name, inPod[name] ?? settings[name].default]);
  }
});

test("the variants differ from the default in what their names say", () => {
  const differences = (variant: string) =>
    containerOf(read(`deploy/manifest_${variant}.yaml`))
      .env.filter(
        ({ name, value }) => !fixed.includes(name) && value !== (inPod[name] ?? settings[name].default),
      )
      .map(({ name, value }) => `${name}=${value}`);
  expect(differences("no_masq_ipv6")).toEqual(["FILTER_IPV6=1", "MASQUERADE_IPV6=0"]);
  expect(differences("ipv6_only")).toEqual(["MASQUERADE_IPV4=0", "POD_CIDR_SOURCE_IPV4=none"]);
  expect(differences("metrics")).toEqual(["ENABLE_METRICS=1"]);
  expect(differences("native_routing")).toEqual(["NATIVE_ROUTING_IPV4=1", "NATIVE_ROUTING_IPV6=1"]);
  expect(kindsOf(read("deploy/manifest_bare_metal.yaml"))).toEqual([...rights, ...policy]);
});

test.each([
  [":9091", "9091"],
  ["10.0.0.7:9092", "9092"],
  ["[fd00::7]:9092", "9092"],
  ["127.0.0.1:9091", undefined],
  ["[::1]:9091", undefined],
])("metrics at %s: Prometheus is told of what it can reach", async (address, port) => {
  const flags = `settings.ENABLE_METRICS=1,settings.METRICS_BIND_ADDR=${address}`;
  const { annotations } = daemonSetOf(await render(["--set", flags])).spec.template.metadata;
  expect(annotations?.["prometheus.io/port"]).toBe(port);
});

test("each setting is a value of the chart", async () => {
  const flags = [
    ...settingNames.filter((name) => !fixed.includes(name)).map((name) => `settings.${name}=of-${name}`),
    "allowedNodeIPs[0]=10.0.0.0/8",
  ];
  await lint(flags);
  const env = containerOf(await render(["--set", flags.join(",")])).env.filter(
    ({ name }) => !fixed.includes(name),
  );
  expect(env).toEqual(env.map(({ name }) => ({ name, value: `of-${name}` })));
  expect(env.length).toBe(flags.length - 1);
  // as users write them
  const typed = containerOf(
    await render(["--set", "settings.MASQUERADE_IPV6=false,settings.WIGGLENET_WG_PORT=51820"]),
  );
  expect(typed.env).toContainEqual({ name: "MASQUERADE_IPV6", value: "false" });
  expect(typed.env).toContainEqual({ name: "WIGGLENET_WG_PORT", value: "51820" });
});

function hostPaths(manifest: string): unknown[] {
  return podOf(manifest).volumes.map(({ hostPath }) => hostPath?.path);
}

const rights = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
const admission = "ValidatingAdmissionPolicy";
/** Of values, and of the Node. */
const policy = [admission, admission, `${admission}Binding`, `${admission}Binding`];
/** The expression of a variable of the policy of values. */
const variable = (name: string) => (manifest: string) => {
  const values = objectsOf(manifest).find(({ metadata }) => metadata.name === "wigglenet-values");
  const { variables } = values!.spec as { variables: { name: string; expression: string }[] };
  return variables.find((each) => each.name === name)?.expression;
};
const others: [string, (manifest: string) => unknown, unknown][] = [
  ["image.repository=r", (text) => containerOf(text).image, `r:v${packageJson.version}`],
  ["image.tag=t", (text) => containerOf(text).image, "docker.io/wigglenet/wigglenet:t"],
  ["image.pullPolicy=Always", (text) => containerOf(text).imagePullPolicy, "Always"],
  ["imagePullSecrets[0].name=s", (text) => podOf(text).imagePullSecrets, [{ name: "s" }]],
  ["nodeSelector.pool=a", (text) => podOf(text).nodeSelector, { "kubernetes.io/os": "linux", pool: "a" }],
  ["resources.limits.memory=1Gi", (text) => containerOf(text).resources, { limits: { memory: "1Gi" } }],
  ["cni.confDir=/c", hostPaths, ["/c"]],
  ["stateDir=/s", hostPaths, ["/s"]],
  ["cni.install=false", (text) => podOf(text).initContainers, undefined],
  ["cni.binDir=/b", hostPaths, ["/b"]],
  ["extraVolumes[0].name=v", (text) => podOf(text).volumes, [{ name: "v" }]],
  ["extraVolumeMounts[0].name=v", (text) => containerOf(text).volumeMounts, [{ name: "v" }]],
  ["allowedPodCIDRs[0]=10.0.0.0/8", variable("allowedPodCIDRs"), '["10.0.0.0/8"]'],
  ["allowedNodeIPs={10.0.0.0/8,fd00::/8}", variable("allowedNodeIPs"), '["10.0.0.0/8","fd00::/8"]'],
  ["admissionPolicy=false", kindsOf, [...rights, "DaemonSet"]],
  ["daemonSet=false", kindsOf, [...rights, ...policy]],
  ["userspaceWireguard=true", (text) => podOf(text).volumes.map(({ name }) => name), ["tun"]],
  ["iptables=true", (text) => podOf(text).volumes.map(({ name }) => name), ["xtables-lock"]],
];
test.each(others)("--set %s", async (flag, pick, expected) => {
  await lint([flag]);
  const changed = pick(await render(["--set", flag]));
  expect(changed).not.toEqual(pick(read("deploy/manifest.yaml")));
  if (pick === kindsOf) expect(changed).toEqual(expected);
  else if (Array.isArray(expected)) expect(changed).toEqual(expect.arrayContaining(expected));
  else if (typeof expected === "object") expect(changed).toMatchObject(expected as object);
  else expect(changed).toBe(expected);
});

// What differs from the default, and no value that the chart does not know.
test.each([
  ["k3s", "/etc/wigglenet"],
  ["kind", "/etc/wigglenet"],
  ["rke2", "/etc/wigglenet"],
  ["talos", "/var/lib/wigglenet"],
])("deploy/chart/platforms/%s.yaml", async (platform, stateDir) => {
  const file = `${chart}/platforms/${platform}.yaml`;
  const { stdout } = await $({
    quiet: true,
  })`${helm} lint ${chart} --strict --kube-version ${kubernetesVersion} -f ${file}`;
  expect(stdout).toContain("1 chart(s) linted, 0 chart(s) failed");
  const pod = podOf(await render(["--values", file]));
  const from = (name: string) => pod.volumes.find((volume) => volume.name === name)?.hostPath?.path;
  // Where these look for it unless they bring a network plugin of their own.
  expect([from("private-key"), from("cni"), from("cni-plugins")]).toEqual([
    stateDir,
    "/etc/cni/net.d",
    "/opt/cni/bin",
  ]);
});

test("every platform is tried", () => {
  const files = [...new Bun.Glob("*").scanSync(`${chart}/platforms`)].sort();
  expect(files).toEqual(["k3s.yaml", "kind.yaml", "rke2.yaml", "talos.yaml"]);
});

test("no value is untried, and one that there is not is refused by its name", async () => {
  const tried = others.map(([flag]) => flag.split(/[.[=]/)[0]!);
  expect([...new Set(["settings", ...tried])].sort()).toEqual(Object.keys(values).sort());
  for (const name of ["settings.MASQERADE_IPV6", "images.tag", "userspace"])
    expect(render(["--set", `${name}=1`])).rejects.toThrow(
      `'${name.split(".").at(-1)!.replace("tag", "images")}' not allowed`,
    );
});

test.each([
  ["userspace", "userspaceWireguard"],
  ["iptables", "iptables"],
])("deploy/%s.yaml gives by kubectl what --set %s=true gives by Helm", async (file, value) => {
  const input = JSON.stringify(daemonSetOf(read("deploy/manifest.yaml")));
  const patch = `${repository}/deploy/${file}.yaml`;
  const { stdout } = await $({
    quiet: true,
    input,
  })`${kubernetes("kubectl")} patch --local -f - --patch-file ${patch} -o json`;
  expect(ordered(JSON.parse(stdout))).toEqual(ordered(daemonSetOf(await render(["--set", `${value}=true`]))));
});

test("kubelet probes where the agent answers, and Prometheus finds its port", async () => {
  const probes = (manifest: string) => {
    const { readinessProbe, livenessProbe } = containerOf(manifest) as Record<
      string,
      { httpGet?: object } | undefined
    >;
    return [readinessProbe?.httpGet, livenessProbe?.httpGet];
  };
  const at = (host: string, port: number) => [
    { host, port, path: "/readyz" },
    { host, port, path: "/healthz" },
  ];
  expect(probes(read("deploy/manifest.yaml"))).toEqual(at("127.0.0.1", 24602));
  const health = (address: string) => render(["--set", `settings.HEALTH_BIND_ADDR=${address}`]);
  expect(probes(await health("[::1]:9"))).toEqual(at("::1", 9));
  expect(probes(await health(":9"))).toEqual(at("127.0.0.1", 9));
  expect(probes(await health("[::]:9"))).toEqual(at("::", 9));
  expect(probes(await health(""))).toEqual([undefined, undefined]);
  expect(read("deploy/manifest_metrics.yaml")).toContain("docs/configuration.md#who-may-read-the-metrics");
  expect(
    daemonSetOf(read("deploy/manifest_metrics.yaml")).spec.template.metadata.annotations,
  ).toBeUndefined();
  const open = "settings.ENABLE_METRICS=1,settings.METRICS_BIND_ADDR=:9091";
  const { metadata, spec } = daemonSetOf(await render(["--set", open])).spec.template;
  expect(metadata.annotations).toEqual({ "prometheus.io/scrape": "true", "prometheus.io/port": "9091" });
  expect(spec.containers[0].ports).toEqual([{ name: "metrics", containerPort: 9091 }]);
  expect(containerOf(read("deploy/manifest.yaml")).ports).toBeUndefined();
  // Empty, or taken away, is the default.
  for (const address of ["", "null"])
    expect(
      containerOf(await render(["--set", `settings.ENABLE_METRICS=1,settings.METRICS_BIND_ADDR=${address}`]))
        .ports,
    ).not.toEqual([expect.objectContaining({ containerPort: null })]);
});

// Of 1.10 Helm keeps 1.1, and of a date it makes 2.0e+07.
test.each(["image.tag=20241101", "image.repository=5", "stateDir=1", "cni.binDir=true"])(
  "a text that YAML takes for something else is refused: %s",
  (value) => {
    const name = value.replace(/=.*/, "").replaceAll(".", "/");
    expect(render(["--set", value])).rejects.toThrow(`'/${name}'`);
  },
);

// Helm reads the numbers of a file as floating-point ones.
test("large numbers stay whole, from a file too", async () => {
  const file = `${mkdtempSync(`${tmpdir()}/wigglenet-values-`)}/values.yaml`;
  writeFileSync(file, "settings: { FLOWTABLE_PACKET_THRESHOLD: 12345678, ENABLE_METRICS: true }");
  const { env } = containerOf(await render(["--values", file]));
  expect(env).toContainEqual({ name: "FLOWTABLE_PACKET_THRESHOLD", value: "12345678" });
  expect(env).toContainEqual({ name: "ENABLE_METRICS", value: "true" });
});

test("servers before 1.30 get no policy, and before 1.31 none of values", async () => {
  const policies = async (version: string) =>
    objectsOf(await render(["--kube-version", version]))
      .filter(({ kind }) => kind === "ValidatingAdmissionPolicy")
      .map(({ metadata }) => metadata.name);
  expect(await policies("1.29.15")).toEqual([]);
  expect(await policies("v1.30.0-eks-1")).toEqual(["wigglenet"]);
  expect((await policies("v1.31.0-eks-1")).sort()).toEqual(["wigglenet", "wigglenet-values"]);
});

// The agents refuse all that is not in it, of either family.
test.each([
  ["allowedPodCIDRs={10.0.0.0/8,fd00::/8}", "10.0.0.0/8,fd00::/8"],
  ["allowedPodCIDRs={fd00::/8}", ""],
  ["allowedPodCIDRs={10.0.0.0/8}", ""],
  ["allowedPodCIDRs={fd00::/8},settings.POD_CIDR_SOURCE_IPV4=none", "fd00::/8"],
  ["allowedPodCIDRs={10.0.0.0/8},settings.POD_CIDR_SOURCE_IPV6=none", "10.0.0.0/8"],
  ["allowedPodCIDRs={10.0.0.0/8,fd00::/8},settings.ALLOWED_POD_CIDRS=10.1.0.0/16", "10.1.0.0/16"],
])("--set %s gives the agents ALLOWED_POD_CIDRS=%s", async (set, value) => {
  expect(containerOf(await render(["--set", set])).env).toContainEqual({ name: "ALLOWED_POD_CIDRS", value });
});

test.each([
  [
    ["settings.NODE_IP_INTERFACES=eth1"],
    "NODE_IP_INTERFACES needs allowedNodeIPs",
    "allowedNodeIPs[0]=10.0.0.0/8",
  ],
  [
    ["settings.POD_CIDR_SOURCE_IPV4=file"],
    "POD_CIDR_SOURCE_IPV4=file needs an IPv4 prefix in allowedPodCIDRs",
    "allowedPodCIDRs={fd00::/8,10.0.0.0/8}",
  ],
  [
    ["settings.POD_CIDR_SOURCE_IPV6=expression", "allowedPodCIDRs[0]=10.0.0.0/8"],
    "POD_CIDR_SOURCE_IPV6=expression needs an IPv6 prefix in allowedPodCIDRs",
    "allowedPodCIDRs={2001:db8::/32}",
  ],
])("%j is refused: what such agents say would be", async (values, why, remedy) => {
  const set = (...all: string[]) => all.flatMap((each) => ["--set", each]);
  expect(render(set(...values))).rejects.toThrow(why);
  expect(await render(set(...values, "admissionPolicy=false"))).toContain("kind: DaemonSet");
  expect(await render(set(...values, remedy))).toContain("wigglenet-values");
});

// The policy would fail with one, and refuse whatever any agent says.
test.each([
  ["allowedPodCIDRs", "10.1.2.3"],
  ["allowedPodCIDRs", "2001:db8::"],
  ["allowedPodCIDRs", "10.0.0.0/33"],
  ["allowedPodCIDRs", "10.0.0.0/8'"],
  ["allowedNodeIPs", "eth1"],
  ["allowedNodeIPs", "1"],
  ["allowedNodeIPs", ""],
])("%s with %p is refused by name", (name, value) => {
  expect(render(["--set", `${name}[0]=${value}`])).rejects.toThrow(name);
});

async function lint(set: string[]): Promise<void> {
  const flags = ["--strict", "--kube-version", kubernetesVersion, "--set", set.join(",")];
  const { stdout } = await $({ quiet: true })`${helm} lint ${chart} ${flags}`;
  expect(stdout).toContain("1 chart(s) linted, 0 chart(s) failed");
}

/** Lists by name: kubectl puts what it adds first. */
function ordered(value: unknown): unknown {
  if (Array.isArray(value))
    return value.map(ordered).sort((a, b) => JSON.stringify(a).localeCompare(JSON.stringify(b)));
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, each]) => [key, ordered(each)])
      .sort(),
  );
}
