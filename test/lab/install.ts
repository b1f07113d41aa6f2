/**
 * Brings a Debian machine to where the lab can run: packages, and Kubernetes' programs and Helm built once into the cache.
 * Does only what is missing; safe to repeat. `bun test/lab/install.ts`
 */
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname } from "node:path";
import {
  cacheDir,
  helm,
  helmVersion,
  kubernetesDir,
  kubernetesVersion,
  spdxTools,
  tool,
  wireguardGo,
  wireguardGoVersion,
} from "./cache.ts";
import { VM_PACKAGES } from "./kernel/vm.ts";

/** What the lab's nodes, the control plane and the C programs need. */
const labPackages = [
  ...[
    "iproute2",
    "iptables",
    "nftables",
    "ipset",
    "conntrack",
    "ethtool",
    "wireguard-tools",
    "wireguard-go",
    "procps",
    "util-linux",
  ],
  ...[
    "containernetworking-plugins",
    "containerd",
    "runc",
    "openssl",
    "tcpdump",
    "iputils-ping",
    "gcc",
    "libc6-dev",
  ],
  ...["ca-certificates", "bash", "systemd"],
];
const imagePackages = ["buildah", "debootstrap", "catatonit"];

/** Go's own, by the module proxy, where Debian's is too old. */
const goVersion = "1.26.8";

const say = (line: string) => console.log(`install: ${line}`);

function fail(line: string): never {
  console.error(`install: ${line}`);
  process.exit(1);
}

async function installed(names: readonly string[]): Promise<Set<string>> {
  const query = Bun.spawn(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", ...names], {
    stdout: "pipe",
    stderr: "ignore",
  });
  const lines = (await new Response(query.stdout).text()).split("\n");
  return new Set(lines.flatMap((line) => (line.endsWith(" installed") ? [line.split(" ")[0]!] : [])));
}

/** Installs those Debian packages that are missing, without starting any service. */
export async function ensurePackages(names: readonly string[]): Promise<void> {
  if (!Bun.which("dpkg-query") || !Bun.which("apt-get"))
    fail(`this machine has no apt-get. Install by hand, then try again: ${names.join(" ")}`);
  const missing = await absent(names);
  if (missing.length === 0) return;
  if (process.getuid?.() !== 0) fail(`not root, so cannot install ${missing.join(" ")}`);
  say(`Debian packages: ${missing.join(" ")}`);
  // invoke-rc.d asks this file; without it, containerd would be started.
  const policy = "/usr/sbin/policy-rc.d";
  const ours = !existsSync(policy);
  if (ours) writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
  try {
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    const apt = async (...argv: string[]) =>
      (await Bun.spawn(["apt-get", "-q", "-o", "Dpkg::Use-Pty=0", ...argv], {
        env,
        stdin: "ignore",
        stdout: "ignore",
        stderr: "inherit",
      }).exited) === 0;
    if (!(await apt("update"))) say("apt-get update failed; trying with the package lists that there are");
    if (!(await apt("install", "-y", "--no-install-recommends", ...missing)))
      for (const name of missing) await apt("install", "-y", "--no-install-recommends", name);
  } finally {
    if (ours) rmSync(policy, { force: true });
  }
  const still = await absent(names);
  if (still.length > 0)
    fail(`cannot install these Debian packages: ${still.join(" ")}. This was made for Debian 12.`);
}

async function absent(names: readonly string[]): Promise<string[]> {
  const have = await installed(names);
  return names.filter((name) => !have.has(name));
}

const commands = [
  "kube-apiserver",
  "kube-controller-manager",
  "kube-scheduler",
  "kubelet",
  "kube-proxy",
  "kubectl",
];

/** Builds Kubernetes, etcd and cnitool, as pinned in test/lab/kubernetes, into the cache. */
export async function ensureKubernetes(): Promise<void> {
  const bin = `${kubernetesDir}/bin`;
  if ([...commands, "etcd", "cnitool"].every((program) => existsSync(`${bin}/${program}`))) return;
  const go = await findGo();
  say(`building Kubernetes ${kubernetesVersion} with ${go}: about 7 minutes on 2 cores, once`);
  const partial = `${kubernetesDir}/bin.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  const version = "k8s.io/component-base/version";
  const [major, minor] = kubernetesVersion.split(".");
  const names = {
    gitVersion: `v${kubernetesVersion}`,
    gitMajor: major,
    gitMinor: minor,
    gitTreeState: "clean",
    gitCommit: "none",
  };
  const set = Object.entries({ ...names, buildDate: "1970-01-01T00:00:00Z" }).map(
    ([name, value]) => `-X ${version}.${name}=${value}`,
  );
  set.push(`-X k8s.io/client-go/pkg/version.gitVersion=v${kubernetesVersion}`);
  const packages = [
    ...commands.map((name) => `k8s.io/kubernetes/cmd/${name}`),
    "github.com/containernetworking/cni/cnitool",
  ];
  // a copy of the module, so that nothing can be written into the repository
  const module = `${kubernetesDir}/module`;
  cpSync(`${import.meta.dirname}/kubernetes`, module, { recursive: true });
  const build = [go, "build", "-v", "-mod=readonly"];
  const flags = `-ldflags=-s -w ${set.join(" ")}`;
  await goBuild([...build, flags, "-o", `${partial}/`, ...packages], module);
  await goBuild([...build, "-ldflags=-s -w", "-o", `${partial}/etcd`, "go.etcd.io/etcd/server/v3"], module);
  rmSync(bin, { recursive: true, force: true });
  renameSync(partial, bin);
}

/** Builds Helm, of the version pinned in cache.ts, into the cache. */
export async function ensureHelm(): Promise<void> {
  if (existsSync(helm)) return;
  say(`building Helm ${helmVersion}: about 4 minutes on 2 cores, once`);
  await installProgram(`helm.sh/helm/v3/cmd/helm@v${helmVersion}`, helm);
}

/** Builds wireguard-go, of the version pinned in cache.ts, into the cache. */
export async function ensureWireguardGo(): Promise<void> {
  if (existsSync(wireguardGo)) return;
  say("building wireguard-go");
  await installProgram(`golang.zx2c4.com/wireguard@v${wireguardGoVersion}`, wireguardGo);
}

/**
 * Builds a program that needs no module of ours.
 * @param program its package, with a version
 * @param path of the executable, in a folder of its own
 */
async function installProgram(program: string, path: string): Promise<void> {
  const folder = dirname(path);
  const partial = `${folder}.${process.pid}`;
  const build = [await findGo(), "install", "-v", "-ldflags=-s -w", program];
  await goBuild(build, "/", { GOBIN: partial });
  const [built = ""] = readdirSync(partial);
  renameSync(`${partial}/${built}`, `${partial}/${basename(path)}`);
  rmSync(folder, { recursive: true, force: true });
  renameSync(partial, folder);
}

/** Python's reference implementation of SPDX, which tells whether a bill of materials is one. */
async function ensureSpdxTools(): Promise<void> {
  if (existsSync(spdxTools)) return;
  say("SPDX tools");
  const venv = dirname(dirname(spdxTools));
  const pip = [`${venv}/bin/pip`, "install", "-q", "--disable-pip-version-check", "-r"];
  for (const argv of [
    ["/usr/bin/python3", "-m", "venv", venv],
    [...pip, `${import.meta.dirname}/spdx-tools.txt`],
  ])
    if ((await Bun.spawn(argv, { stdin: "ignore" }).exited) !== 0) fail(`failed: ${argv.join(" ")}`);
}

export async function goBuild(argv: string[], cwd: string, also: Record<string, string> = {}): Promise<void> {
  const build = Bun.spawn(argv, {
    cwd,
    env: { ...process.env, CGO_ENABLED: "0", GOTOOLCHAIN: "local", GOFLAGS: "-buildvcs=false", ...also },
    stdin: "ignore",
    stdout: "inherit",
    stderr: "pipe",
  });
  let [count, said, last, tail] = [0, performance.now(), "", ""];
  const decoder = new TextDecoder();
  for await (const bytes of build.stderr) {
    const text = decoder.decode(bytes, { stream: true });
    tail = (tail + text).slice(-4000);
    count += text.split("\n").length - 1;
    last = text.trimEnd().split("\n").at(-1) ?? last;
    if (performance.now() - said < 15_000) continue;
    said = performance.now();
    say(`  ${count} packages (${last})`);
  }
  if ((await build.exited) !== 0) fail(`go build failed:\n${tail}`);
}

/** A Go that is new enough for test/lab/kubernetes/go.mod: the machine's, else one from the module proxy. */
export async function findGo(): Promise<string> {
  const needed = /^go (\S+)$/m.exec(readFileSync(`${import.meta.dirname}/kubernetes/go.mod`, "utf8"))![1]!;
  const places = [Bun.which("go"), "/usr/local/go/bin/go", ...debianGos()].filter(
    (go) => go && existsSync(go),
  ) as string[];
  for (const go of places) if (Bun.semver.order(await goVersionOf(go), `${needed}.0`) >= 0) return go;
  const own = `${cacheDir}/go-${goVersion}`;
  if (!existsSync(`${own}/bin/go`)) {
    say(
      `Go ${needed} is needed; ${places.length > 0 ? `${places.join(", ")} is older` : "there is none"}. Getting Go ${goVersion} as a module`,
    );
    if (places.length === 0) await ensurePackages(["golang-go"]);
    const go = places[0] ?? Bun.which("go") ?? fail(`install Go ${needed} or newer, then try again`);
    const toolchain = `golang.org/toolchain@v0.0.1-go${goVersion}.linux-${process.arch === "arm64" ? "arm64" : "amd64"}`;
    const env = { ...process.env, GOFLAGS: "", GOTOOLCHAIN: "local" };
    const download = Bun.spawn([go, "mod", "download", "-json", toolchain], {
      cwd: "/",
      env,
      stdout: "pipe",
      stderr: "inherit",
    });
    const found = await new Response(download.stdout).text();
    if ((await download.exited) !== 0)
      fail(`cannot get ${toolchain}. Install Go ${needed} or newer, then try again`);
    adopt((JSON.parse(found) as { Dir: string }).Dir, own);
  }
  return `${own}/bin/go`;
}

const debianGos = () =>
  (existsSync("/usr/lib") ? readdirSync("/usr/lib") : [])
    .filter((name) => /^go-\d/.test(name))
    .map((name) => `/usr/lib/${name}/bin/go`);

async function goVersionOf(go: string): Promise<string> {
  const version = Bun.spawn([go, "env", "GOVERSION"], {
    env: { ...process.env, GOTOOLCHAIN: "local" },
    cwd: "/",
    stdout: "pipe",
    stderr: "ignore",
  });
  const found = /(\d+)\.(\d+)(?:\.(\d+))?/.exec(await new Response(version.stdout).text());
  return found ? `${found[1]}.${found[2]}.${found[3] ?? 0}` : "0.0.0";
}

/** A module's files are neither writable nor executable, which a toolchain's programs have to be. */
function adopt(module: string, own: string): void {
  const partial = `${own}.${process.pid}`;
  cpSync(module, partial, { recursive: true });
  for (const dir of [
    `${partial}/bin`,
    ...readdirSync(`${partial}/pkg/tool`).map((name) => `${partial}/pkg/tool/${name}`),
  ])
    for (const name of readdirSync(dir)) chmodSync(`${dir}/${name}`, 0o755);
  renameSync(partial, own);
}

/** What the lab needs, and the image that its whole nodes run: all of the demo. */
export async function installLab(): Promise<void> {
  if (process.platform !== "linux") fail("the lab needs Linux");
  if (process.getuid?.() !== 0) fail("the lab needs root: network namespaces, mounts, control groups");
  await ensurePackages([...labPackages, ...imagePackages]);
  if (!existsSync("/dev/net/tun")) fail("this machine has no /dev/net/tun, which userspace WireGuard needs");
  await ensureKubernetes();
  await ensureWireguardGo();
  for (const program of ["enter", "forbid", "place"] as const) tool(program);
}

/** Everything that the tests need. */
export async function install(): Promise<void> {
  await installLab();
  await ensurePackages([...VM_PACKAGES, "python3-venv"]);
  await ensureHelm();
  await ensureSpdxTools();
}

if (import.meta.main) await install();
