/** The image of the agent, built by buildah from Dockerfile.distroless. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Architecture } from "../../../deploy/architecture.ts";
import { imageFiles } from "../../../deploy/tree.ts";
import packageJson from "../../../package.json" with { type: "json" };
import { repository } from "../cache.ts";
import { buildArchitecture, dockerfile, haveBases } from "./baseimages.ts";
import { $, imageCache, prepareStorage } from "./buildah.ts";

/** The name under which deploy/manifest.yaml runs the agent. */
export const AGENT_IMAGE = `docker.io/wigglenet/wigglenet:v${packageJson.version}`;

export interface Image {
  name: string;
  /** A docker-archive: `ctr -n k8s.io images import` takes it. */
  archive: string;
}

type Say = (line: string) => void;

/** This machine's image from Dockerfile.distroless and dist/, or the one already built from the same. */
export async function agentImage(say: Say = () => {}): Promise<Image> {
  return { name: AGENT_IMAGE, archive: await imageArchive(buildArchitecture, "docker", say) };
}

/** "docker": layers as they are, quick to make; "oci": compressed, and the same bytes each time. */
export type Format = "docker" | "oci";

/** The archive of an architecture's image. Needs its executable, as `npm run build` makes it. */
export async function imageArchive(
  architecture: Architecture,
  format: Format,
  say: Say = () => {},
): Promise<string> {
  const files = await imageFiles(architecture);
  const prefix = `agent-${architecture}-${format}-`;
  const archive = join(imageCache, `${prefix}${await contentHash(files)}.tar`);
  if (existsSync(archive)) return archive;
  const image = await buildImage(architecture, { say });
  for (const file of await readdir(imageCache))
    if (file.startsWith(prefix)) await rm(join(imageCache, file), { recursive: true, force: true });
  if (format === "docker") await exportArchive(image, archive, AGENT_IMAGE);
  else await exportLayout(image, archive);
  return archive;
}

/** Builds an image, and gives its id, the digest of its configuration. `cold`: with no layer of an earlier build. */
export async function buildImage(
  architecture: Architecture,
  { cold = false, say = () => {} }: { cold?: boolean; say?: Say },
): Promise<string> {
  await prepareStorage();
  await haveBases(say);
  say(`building Dockerfile.distroless for ${architecture}`);
  const name = `localhost/wigglenet:${architecture}`;
  const before = await idOf(name);
  const flags = ["--layers", "--pull-never", "--timestamp", "0", ...(cold ? ["--no-cache"] : [])];
  const version = `VERSION=${packageJson.version}`;
  await $`buildah bud -q ${flags} --platform ${`linux/${architecture}`} --build-arg ${version} -f ${dockerfile} -t ${name} ${repository}`;
  const image = await idOf(name);
  // the layers of the tools stay as a cache, the executable's 100 MB would pile up
  if (before && before !== image) await $`buildah rmi ${before}`.nothrow();
  return image!;
}

async function idOf(name: string): Promise<string | undefined> {
  const { stdout } = await $`buildah images -q --no-trunc ${name}`.nothrow();
  return stdout.trim().replace("sha256:", "") || undefined;
}

/** For `tar`, so that the same files make the same archive. */
export const sameBytes = [
  "--sort=name",
  "--mtime=@0",
  "--mode=u=rwX,go=rX",
  "--owner=0",
  "--group=0",
  "--numeric-owner",
];

/** Writes an image of the storage into a file that appears under its name only when it is complete. */
export async function exportArchive(image: string, archive: string, name = image): Promise<void> {
  const partial = `${archive}.${process.pid}`;
  await $`buildah push -q ${image} ${`docker-archive:${partial}:${name}`}`;
  await rename(partial, archive);
}

/** An OCI image layout in a tar file, under the name that containerd gives it when it imports it. */
async function exportLayout(image: string, archive: string): Promise<void> {
  const dir = `${archive}.layout.${process.pid}`;
  // at its default level buildah's gzip is no match for others
  const compression = ["--compression-format", "gzip", "--compression-level", "9"];
  await $`buildah push -q ${compression} ${image} ${`oci:${dir}:${AGENT_IMAGE}`}`;
  const index = JSON.parse(await readFile(join(dir, "index.json"), "utf8"));
  index.manifests[0].annotations["io.containerd.image.name"] = AGENT_IMAGE;
  await writeFile(join(dir, "index.json"), JSON.stringify(index));
  await $`tar ${sameBytes} -C ${dir} -cf ${archive}.partial .`;
  await rm(dir, { recursive: true });
  await rename(`${archive}.partial`, archive);
}

async function contentHash(files: string): Promise<string> {
  const hash = createHash("sha256").update(AGENT_IMAGE);
  const glob = new Bun.Glob("**/*");
  const paths = [...glob.scanSync({ cwd: files, absolute: true })].sort();
  for (const file of [dockerfile, ...paths])
    for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest("hex").slice(0, 16);
}

if (import.meta.main) {
  const { ensurePackages } = await import("../install.ts");
  await ensurePackages(["buildah", "debootstrap"]);
  const { name, archive } = await agentImage(console.log);
  console.log(`${name}\n${archive}`);
}
