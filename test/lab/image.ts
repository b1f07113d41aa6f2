/** The image of the agent, built by buildah from Dockerfile.distroless. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "../../package.json" with { type: "json" };
import { $, imageCache, prepareStorage } from "./buildah.ts";
import { repository } from "./cache.ts";
import { makeStandIn, STAND_IN_LABEL } from "./standin.ts";

const dockerfile = join(repository, "Dockerfile.distroless");
const executable = join(repository, "dist/wigglenet");

/** The name under which deploy/manifest.yaml runs the agent. */
export const AGENT_IMAGE = `docker.io/wigglenet/wigglenet:v${packageJson.version}`;

export interface Image {
  name: string;
  /** A docker-archive: `ctr -n k8s.io images import` takes it. */
  archive: string;
}

/** Builds the agent's image from Dockerfile.distroless and dist/wigglenet, or finds the one already built from them. */
export async function agentImage(say: (line: string) => void = () => {}): Promise<Image> {
  if (!existsSync(executable)) throw new Error(`no ${executable}: run \`npm run build\` first`);
  const archive = join(imageCache, `agent-${await contentHash()}.tar`);
  if (existsSync(archive)) return { name: AGENT_IMAGE, archive };
  await prepareStorage();
  const bases = [...(await readFile(dockerfile, "utf8")).matchAll(/^FROM .*?(\S+\/\S+:\S+)/gm)];
  await Promise.all(bases.map(([, name]) => haveBase(name!, say)));
  say("building Dockerfile.distroless");
  const before = (await $`buildah images -q ${AGENT_IMAGE}`.nothrow()).stdout.trim();
  await $`buildah bud -q --layers --pull-never --timestamp 0 -f ${dockerfile} -t ${AGENT_IMAGE} ${repository}`;
  await removeArchives("agent-");
  await exportArchive(AGENT_IMAGE, archive);
  // the layers of the tools stay as a cache, the executable's 100 MB would pile up
  if (before) await $`buildah rmi ${before}`.nothrow();
  return { name: AGENT_IMAGE, archive };
}

/** Writes an image of the storage into a file that appears under its name only when it is complete. */
export async function exportArchive(name: string, archive: string): Promise<void> {
  const partial = `${archive}.${process.pid}`;
  await $`buildah push -q ${name} ${`docker-archive:${partial}:${name}`}`;
  await rename(partial, archive);
}

/** A base image from its registry, or where none can be reached a stand-in made from Debian's packages. */
async function haveBase(name: string, say: (line: string) => void): Promise<void> {
  const format = `{{index .OCIv1.Config.Labels "${STAND_IN_LABEL}"}}`;
  const present = await $`buildah inspect --type image --format ${format} ${name}`.nothrow();
  const isStandIn = present.stdout.trim() !== "";
  if (present.exitCode === 0 && !isStandIn) return;
  const pull = await $`timeout 60 buildah pull -q ${name}`.nothrow();
  if (pull.exitCode === 0) return;
  say(`${name} cannot be pulled here: ${isStandIn ? "using" : "making"} a stand-in from Debian's packages`);
  if (!isStandIn) await makeStandIn(name);
}

async function contentHash(): Promise<string> {
  const hash = createHash("sha256").update(AGENT_IMAGE);
  for (const file of [dockerfile, executable])
    for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest("hex").slice(0, 16);
}

async function removeArchives(prefix: string): Promise<void> {
  for (const file of await readdir(imageCache)) if (file.startsWith(prefix)) await rm(join(imageCache, file));
}

if (import.meta.main) {
  const { ensurePackages } = await import("./install.ts");
  await ensurePackages(["buildah", "debootstrap"]);
  const { name, archive } = await agentImage(console.log);
  console.log(`${name}\n${archive}`);
}
