/** What a release consists of: `npm run release -- --dry-run`, and what is in its images. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "zx";
import { type Architecture, architectures } from "../deploy/architecture.ts";
import { npmPackages } from "../deploy/licences.ts";
import { goModules } from "../deploy/plugins.ts";
import { type Unpacked, unpack } from "../deploy/unpack.ts";
import packageJson from "../package.json" with { type: "json" };
import { cniPlugins } from "../src/host/plugins.ts";
import { helm, kubernetesVersion, repository, spdxTools } from "./lab/cache.ts";
import { objectsOf } from "./lab/cluster/api.ts";
import { buildImage } from "./lab/image/image.ts";

setDefaultTimeout(600_000);

const { version } = packageJson;
const release = `${repository}/dist/release`;
const dir = mkdtempSync(`${tmpdir()}/wigglenet-release-test-`);
const images = {} as Record<Architecture, Unpacked>;
const sh = $({ quiet: true, cwd: repository });

interface Bill {
  spdxVersion: string;
  packages: { externalRefs: { referenceLocator: string }[] }[];
  files: { fileName: string; SPDXID: string; checksums: { checksumValue: string }[] }[];
  relationships: { spdxElementId: string; relatedSpdxElement: string }[];
}

type Workload = { spec: { template: { spec: Record<string, { image: string }[]> } } };

/** What of an image's files is looked at more than once. */
interface File {
  path: string;
  size: number;
  executable: boolean;
  /** The architecture that it is machine code for. */
  elf: "x86-64" | "aarch64" | "other" | undefined;
}
const files = {} as Record<Architecture, File[]>;

beforeAll(async () => {
  await sh`npm run --silent release -- --dry-run`;
  for (const architecture of architectures) {
    const to = join(dir, architecture);
    mkdirSync(to);
    const archive = `${release}/wigglenet-v${version}-image-linux-${architecture}.tar`;
    images[architecture] = await unpack(archive, to);
    files[architecture] = list(images[architecture].root);
  }
});

afterAll(() => rmSync(dir, { recursive: true }));

test("all files of a release, with their checksums", async () => {
  const chart = readdirSync(`${repository}/deploy`).includes("chart") ? [`wigglenet-${version}.tgz`] : [];
  const manifests = readdirSync(`${repository}/deploy`).filter((name) => /^manifest.*\.yaml$/.test(name));
  const perArchitecture = architectures.flatMap((architecture) => [
    `wigglenet-v${version}-linux-${architecture}`,
    `wigglenet-v${version}-image-linux-${architecture}.tar`,
    `wigglenet-v${version}-image-linux-${architecture}.spdx.json`,
  ]);
  const expected = [...perArchitecture, ...manifests, ...chart].sort();
  expect(readdirSync(release).sort()).toEqual(["SHA256SUMS", ...expected]);
  const checked = await $({ cwd: release, quiet: true })`sha256sum -c SHA256SUMS`;
  expect(checked.stdout.trim().split("\n")).toEqual(expected.map((name) => `${name}: OK`));
});

test("made twice it is the same, and files that an image is built from at that moment are left alone", async () => {
  const sums = readFileSync(`${release}/SHA256SUMS`, "utf8");
  const files = () =>
    architectures.flatMap((architecture) => {
      const tree = `${repository}/dist/image/${architecture}`;
      const paths = readdirSync(tree, { recursive: true, encoding: "utf8" }).sort();
      return paths.map((path) => `${path} ${lstatSync(join(tree, path)).ino}`);
    });
  const before = files();
  await sh`npm run --silent release -- --dry-run`;
  expect(readFileSync(`${release}/SHA256SUMS`, "utf8")).toBe(sums);
  expect(files()).toEqual(before);
});

test("the executable is the same wherever it is built", async () => {
  const elsewhere = join(dir, "elsewhere");
  mkdirSync(elsewhere);
  await sh`cp -r src deploy package.json tsconfig.json ${elsewhere} && cp -al node_modules ${elsewhere}/ || cp -r node_modules ${elsewhere}/`;
  await $({ quiet: true, cwd: elsewhere })`npm run --silent build`;
  await sh`cmp ${elsewhere}/dist/wigglenet ${release}/wigglenet-v${version}-linux-amd64`;
});

test("without --dry-run it says what to do by hand, and does nothing", async () => {
  const before = statSync(`${release}/SHA256SUMS`).mtimeMs;
  const refused = await sh`npm run --silent release`.nothrow();
  expect(refused.exitCode).toBe(2);
  expect(refused.stderr).toContain("publishing is not done by this command");
  expect(refused.stderr).toContain(`docker://docker.io/wigglenet/wigglenet:v${version}`);
  expect(statSync(`${release}/SHA256SUMS`).mtimeMs).toBe(before);
});

test("every manifest runs this version's image", () => {
  const manifests = readdirSync(release).filter((name) => name.endsWith(".yaml"));
  expect(manifests).toContain("manifest.yaml");
  for (const name of manifests) {
    const objects = objectsOf(readFileSync(`${release}/${name}`, "utf8"));
    const daemonSet = objects.find(({ kind }) => kind === "DaemonSet") as Workload | undefined;
    expect(daemonSet === undefined).toBe(name === "manifest_bare_metal.yaml");
    const { containers = [], initContainers = [] } = daemonSet?.spec.template.spec ?? {};
    for (const { image } of [...containers, ...initContainers])
      expect(image.replace(/^docker\.io\//, "")).toBe(`wigglenet/wigglenet:v${version}`);
  }
});

test("the chart that is released is the one of this version", async () => {
  const lines = (await sh`tar -xzOf ${release}/wigglenet-${version}.tgz wigglenet/Chart.yaml`).stdout.split(
    "\n",
  );
  expect(lines).toContain(`version: ${version}`);
  expect(lines).toContain(`appVersion: "${version}"`);
  const rendered =
    await sh`${helm} template wigglenet --kube-version ${kubernetesVersion} ${release}/wigglenet-${version}.tgz`;
  expect(rendered.stdout).toContain(`wigglenet/wigglenet:v${version}`);
});

describe.each([...architectures])("the image for %s", (architecture) => {
  const machine = { amd64: "x86-64", arm64: "aarch64" } as const;
  const libraries = { amd64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" }[architecture];
  const here = () => files[architecture];

  test("says what it is", () => {
    const { config } = images[architecture];
    expect({ architecture: config.architecture, os: config.os }).toEqual({ architecture, os: "linux" });
    expect(config.config.Entrypoint).toEqual(["/usr/local/bin/wigglenet"]);
    expect(config.config.Labels).toMatchObject({
      "org.opencontainers.image.title": "Wigglenet",
      "org.opencontainers.image.description": packageJson.description,
      "org.opencontainers.image.version": version,
      "org.opencontainers.image.base.name": "gcr.io/distroless/base-nossl-debian12:latest",
    });
  });

  test("has a label with every licence of what it is made of that is known", () => {
    const label =
      images[architecture].config.config.Labels["org.opencontainers.image.licenses"]!.split(" AND ");
    const known = new Set([
      packageJson.license,
      "Apache-2.0",
      ...npmPackages().map(({ license }) => license),
    ]);
    expect([...known].filter((licence) => !label.includes(licence))).toEqual([]);
  });

  test("has these executables and no others, all machine code for it", () => {
    const loader = { amd64: "ld-linux-x86-64.so.2", arm64: "ld-linux-aarch64.so.1" }[architecture];
    const tools = ["ip", "ipset", "nft", "wg", "wireguard-go", "xtables-legacy-multi", "xtables-nft-multi"];
    const machineCode = here().filter(({ elf }) => elf);
    expect(machineCode.filter(({ executable }) => executable).map(({ path }) => path)).toEqual(
      [
        `lib/${libraries}/${loader}`,
        `lib/${libraries}/libc.so.6`,
        ...cniPlugins.map((name) => `usr/lib/cni/${name}`),
        "usr/local/bin/wigglenet",
        ...tools.map((name) => `usr/sbin/${name}`),
      ].sort(),
    );
    expect(machineCode.filter(({ elf }) => elf !== machine[architecture])).toEqual([]);
  });

  test("can run no script: what is one has no interpreter, and there is no shell and no package manager", () => {
    const { root } = images[architecture];
    const scripts = here().filter(({ executable, elf }) => executable && !elf);
    for (const { path } of scripts) {
      const [, interpreter = "none"] = /^#! ?(\S+)/.exec(readFileSync(join(root, path), "latin1")) ?? [];
      expect(lstatSync(join(root, interpreter), { throwIfNoEntry: false })).toBeUndefined();
    }
    const shells = ["sh", "bash", "dash", "ash", "ksh", "zsh", "busybox", "perl", "python3"];
    const managers = ["dpkg", "dpkg-deb", "apt", "apt-get", "rpm", "apk"];
    const names = new Set(here().map(({ path }) => path.split("/").at(-1)!));
    expect([...shells, ...managers].filter((name) => names.has(name))).toEqual([]);
  });

  test("is no larger than it may be", () => {
    const size = (wanted: (path: string) => boolean) =>
      here().reduce((sum, { path, size }) => sum + (wanted(path) ? size : 0), 0);
    const compressed = images[architecture].layers.reduce((sum, { size }) => sum + size, 0);
    const plugins = size((path) => path.startsWith("usr/lib/cni/"));
    const base = new Set(baseFiles(images[architecture].root));
    const tools = size((path) => /^usr\/(sbin|lib\/[^/]+-linux-gnu)\//.test(path) && !base.has(path));
    const mb = (bytes: number) => (bytes / 1e6).toFixed(2);
    console.log(
      `${architecture}: ${mb(compressed)} MB compressed; tools ${mb(tools)}, plugins ${mb(plugins)} MB`,
    );
    expect(compressed).toBeLessThanOrEqual(72e6);
    expect(plugins).toBeLessThanOrEqual(20e6);
    // arm64's are aligned to pages of 64 KiB, of which most is nothing
    if (architecture === "amd64") expect(tools).toBeLessThanOrEqual(8 * 2 ** 20);
  });

  test("has the licence of each thing that it carries", () => {
    const { root } = images[architecture];
    const packages = readdirSync(join(root, "var/lib/dpkg/status.d")).filter(
      (name) => !name.endsWith(".md5sums"),
    );
    expect(packages).toContain("nftables");
    for (const name of [...packages, "wigglenet", "cni-plugins"])
      expect(statSync(join(root, "usr/share/doc", name, "copyright")).size).toBeGreaterThan(200);
    const copyright = (name: string) => readFileSync(join(root, "usr/share/doc", name, "copyright"), "utf8");
    for (const [name, version] of Object.entries(packageJson.dependencies))
      expect(copyright("wigglenet")).toContain(`\n${name} ${version} (`);
    expect(copyright("cni-plugins")).toContain("\ngithub.com/vishvananda/netlink v");
  });

  describe("its bill of materials", () => {
    const name = `wigglenet-v${version}-image-linux-${architecture}.spdx.json`;
    const bill = (): Bill => JSON.parse(readFileSync(`${release}/${name}`, "utf8"));
    const purls = () => bill().packages.flatMap(({ externalRefs }) => externalRefs[0]!.referenceLocator);

    test("is valid SPDX 2.3", async () => {
      expect(bill().spdxVersion).toBe("SPDX-2.3");
      // says what is wrong, and nothing if nothing is
      const said = await sh`${spdxTools} --version SPDX-2.3 -i ${release}/${name}`.nothrow();
      expect({ exitCode: said.exitCode, said: said.stdout + said.stderr }).toEqual({ exitCode: 0, said: "" });
    });

    test("has every file of the image, of one package each", () => {
      const { files: listed, relationships } = bill();
      expect(listed.map(({ fileName }) => fileName).sort()).toEqual(
        here()
          .map(({ path }) => `./${path}`)
          .sort(),
      );
      const owners = Map.groupBy(
        relationships.filter(({ relatedSpdxElement }) => relatedSpdxElement.startsWith("SPDXRef-File")),
        ({ relatedSpdxElement }) => relatedSpdxElement,
      );
      expect(listed.filter(({ SPDXID }) => owners.get(SPDXID)?.length !== 1)).toEqual([]);
      const owner = (path: string) =>
        owners.get(listed.find(({ fileName }) => fileName === `./${path}`)!.SPDXID)![0]!.spdxElementId;
      expect(owner("usr/sbin/nft")).toStartWith("SPDXRef-Package-nftables");
      expect(owner("usr/local/bin/wigglenet")).toStartWith("SPDXRef-Package-wigglenet");
      expect(owner("usr/lib/cni/ptp")).toStartWith("SPDXRef-Package-plugins");
    });

    test("has the checksum of each executable", async () => {
      const { root } = images[architecture];
      const executables = here().filter(({ executable }) => executable);
      const sums = await $({ cwd: root, quiet: true })`sha256sum ${executables.map(({ path }) => path)}`;
      const listed = new Map(
        bill().files.map(({ fileName, checksums }) => [fileName.slice(2), checksums[1]!.checksumValue]),
      );
      for (const line of sums.stdout.trim().split("\n"))
        expect(listed.get(line.slice(66))).toBe(line.slice(0, 64));
    });

    test("has every Debian package, Go module and npm package", async () => {
      const { root } = images[architecture];
      const records = join(root, "var/lib/dpkg/status.d");
      const debian = readdirSync(records).filter((name) => !name.endsWith(".md5sums"));
      expect(debian).toContain("libc6");
      for (const name of debian) {
        const [, version = ""] = /^Version: (.*)$/m.exec(readFileSync(join(records, name), "utf8"))!;
        const purl = `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=debian-12`;
        expect(purls()).toContain(purl);
      }
      for (const plugin of cniPlugins)
        for (const { path, version } of await goModules(join(root, "usr/lib/cni", plugin)))
          expect(purls()).toContain(`pkg:golang/${path === "std" ? "stdlib" : path}@${version}`);
      // what is compiled into the agent, as Bun tells it
      const bundle = join(dir, "bundle");
      await sh`bun build --target bun --sourcemap=external --outdir ${bundle} src/main.ts`;
      const { sources } = JSON.parse(readFileSync(join(bundle, "main.js.map"), "utf8")) as {
        sources: string[];
      };
      const compiled = new Set(
        sources.flatMap((path) => /^.*node_modules\/(@[^/]+\/[^/]+|[^@/][^/]*)/.exec(path)?.[0] ?? []),
      );
      expect(compiled.size).toBeGreaterThan(5);
      for (const path of compiled) {
        const file = join(bundle, path, "package.json");
        const { name, version } = JSON.parse(readFileSync(file, "utf8"));
        expect(purls()).toContain(`pkg:npm/${name.replace(/^@/, "%40")}@${version}`);
      }
    });
  });

  test("has the nft of Debian 12, older than which no host's is", () => {
    const record = readFileSync(join(images[architecture].root, "var/lib/dpkg/status.d/nftables"), "utf8");
    expect(record).toMatch(/^Version: 1\.0\.6-/m);
  });
});

test("each program of the image starts", async () => {
  const { root } = images.amd64;
  const iptables = ["iptables", "ip6tables"].flatMap((name) =>
    ["", "-nft", "-legacy"].flatMap((variant) =>
      ["", "-save", "-restore"].map((verb) => name + variant + verb),
    ),
  );
  const mounts = 'mount --bind /proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"';
  const enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounts];
  const said: Record<string, string> = {};
  for (const [argv, expected] of [
    [["ip", "-V"], "ip utility"],
    [["nft", "--version"], "nftables v1.0.6"],
    [["wg", "--version"], "wireguard-tools v1"],
    [["wireguard-go", "--version"], "wireguard-go v0"],
    [["ipset", "--version"], "ipset v7"],
    [["/usr/local/bin/wigglenet", "version"], version],
    ...iptables.map((name): [string[], string] => [[name, "--version"], "v1.8.9 ("]),
    ...cniPlugins.map((name): [string[], string] => [[`/usr/lib/cni/${name}`], `CNI ${name} plugin v1`]),
  ] as [string[], string][]) {
    const output = await sh`${enter} ${root} ${argv}`.nothrow();
    said[argv[0]!] = output.stdout + output.stderr;
    expect(said[argv[0]!]).toContain(expected);
  }
});

test("an image built with no layer of an earlier build has the same digest", async () => {
  const config = async () => {
    const index = await sh`tar -xOf ${release}/wigglenet-v${version}-image-linux-amd64.tar ./index.json`;
    const { digest } = JSON.parse(index.stdout).manifests[0];
    const manifest =
      await sh`tar -xOf ${release}/wigglenet-v${version}-image-linux-amd64.tar ${`./blobs/${digest.replace(":", "/")}`}`;
    return JSON.parse(manifest.stdout).config.digest.replace("sha256:", "");
  };
  expect(await buildImage("amd64", { cold: true })).toBe(await config());
});

/** The regular files of an image, sorted by path. */
function list(root: string): File[] {
  const paths = [...new Bun.Glob("**/*").scanSync({ cwd: root, dot: true, onlyFiles: true })].sort();
  return paths.flatMap((path) => {
    const found = lstatSync(join(root, path));
    if (!found.isFile()) return [];
    const head = readFileSync(join(root, path)).subarray(0, 20);
    const isElf = head.subarray(0, 4).toString("latin1") === "\x7fELF";
    const elf = isElf
      ? (({ 62: "x86-64", 183: "aarch64" } as const)[head.readUInt16LE(18)] ?? "other")
      : undefined;
    return [{ path, size: found.size, executable: (found.mode & 0o111) !== 0, elf }];
  });
}

/** Paths of what libc6, the one library of the base image, brings. */
function baseFiles(root: string): string[] {
  const sums = readFileSync(join(root, "var/lib/dpkg/status.d/libc6.md5sums"), "utf8");
  return sums.split("\n").map((line) => line.slice(34));
}
