/**
 * `npm run release -- --dry-run`: everything that a release consists of, in dist/release. From the same commit on the
 * same machine it is the same, byte by byte: SHA256SUMS tells.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { copyFile, link, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { $ } from "zx";
import packageJson from "../package.json" with { type: "json" };
import { repository } from "../test/lab/cache.ts";
import { AGENT_IMAGE, imageArchive, sameBytes } from "../test/lab/image/image.ts";
import { ensurePackages } from "../test/lab/install.ts";
import { type Architecture, architectures, executables } from "./architecture.ts";
import { billOfMaterials } from "./materials.ts";
import { unpack } from "./unpack.ts";

export const releaseDirectory = join(repository, "dist/release");

const { version } = packageJson;
const begin = performance.now();
const say = (line: string) =>
  console.log(`${((performance.now() - begin) / 1000).toFixed(0).padStart(4)} s  ${line}`);
const quiet = $({ quiet: true, cwd: repository });

async function release(): Promise<void> {
  await ensurePackages(["buildah", "debootstrap"]);
  await rm(releaseDirectory, { recursive: true, force: true });
  await mkdir(releaseDirectory, { recursive: true });
  say("executables, CNI plugins and licences");
  await quiet`npm run --silent image-files`;
  // one after the other: the image's storage is one
  for (const architecture of architectures) await releaseArchitecture(architecture);
  await releaseManifests();
  const files = readdirSync(releaseDirectory).sort();
  const sums = await $({ quiet: true, cwd: releaseDirectory })`sha256sum ${files}`;
  await writeFile(join(releaseDirectory, "SHA256SUMS"), sums.stdout);
  say(`${releaseDirectory}:`);
  console.log(sums.stdout.trimEnd());
}

async function releaseArchitecture(architecture: Architecture): Promise<void> {
  const name = (part: string) => join(releaseDirectory, `wigglenet-v${version}${part}-linux-${architecture}`);
  await copyFile(executables[architecture], name(""));
  const archive = await imageArchive(architecture, "oci", say);
  await link(archive, `${name("-image")}.tar`).catch(() => copyFile(archive, `${name("-image")}.tar`));
  say(`bill of materials for ${architecture}`);
  const work = await mkdtemp(join(tmpdir(), "wigglenet-release-"));
  try {
    const { root, digest } = await unpack(archive, work);
    const created = await committedAt();
    const bill = await billOfMaterials({
      architecture,
      root,
      digest: digest.replace("sha256:", ""),
      created,
    });
    await writeFile(`${name("-image")}.spdx.json`, `${JSON.stringify(bill, null, 1)}\n`);
  } finally {
    await rm(work, { recursive: true });
  }
}

/** The manifests and the chart as they are committed, but that they run this version's image. */
async function releaseManifests(): Promise<void> {
  say("manifests");
  const deploy = join(repository, "deploy");
  for (const file of readdirSync(deploy).filter((file) => /^manifest.*\.yaml$/.test(file))) {
    const text = withVersion(readFileSync(join(deploy, file), "utf8"));
    await writeFile(join(releaseDirectory, file), text);
  }
  if (!existsSync(join(deploy, "chart"))) return;
  const work = await mkdtemp(join(tmpdir(), "wigglenet-chart-"));
  try {
    await quiet`cp -r ${deploy}/chart ${work}/wigglenet`;
    const meta = join(work, "wigglenet/Chart.yaml");
    const text = readFileSync(meta, "utf8").replace(/^version:.*$/m, `version: ${version}`);
    await writeFile(meta, text.replace(/^appVersion:.*$/m, `appVersion: "${version}"`));
    // `helm package` would write the time into it
    await quiet`tar ${sameBytes} -C ${work} -c wigglenet | gzip -n9 > ${releaseDirectory}/wigglenet-${version}.tgz`;
  } finally {
    await rm(work, { recursive: true });
  }
}

/** That for bare metal runs no image. */
function withVersion(manifest: string): string {
  const image = AGENT_IMAGE.replace("docker.io/", "").replace(/:.*/, "");
  return manifest.replace(new RegExp(`(image: "?(?:docker.io/)?${image}):[^\\s"]+`, "g"), `$1:v${version}`);
}

async function committedAt(): Promise<string> {
  const { stdout } = await quiet`git log -1 --format=%ct`;
  return new Date(Number(stdout) * 1000).toISOString().replace(".000", "");
}

const byHand = `publishing is not done by this command. After \`npm run release -- --dry-run\`, from a clean checkout of the
tag v${version}, with buildah logged in to the registry and the host's own command for releases:
  cd dist/release && sha256sum -c SHA256SUMS
  buildah manifest create wigglenet:v${version}
  for arch in ${architectures.join(" ")}; do
    buildah manifest add wigglenet:v${version} oci-archive:wigglenet-v${version}-image-linux-$arch.tar
  done
  buildah manifest push --all wigglenet:v${version} docker://${AGENT_IMAGE}
and then upload every file of dist/release to the release of that tag.`;

if (import.meta.main) {
  const { values } = parseArgs({ options: { "dry-run": { type: "boolean" } } });
  if (!values["dry-run"]) {
    console.error(`release: ${byHand}`);
    process.exit(2);
  }
  await release();
}
