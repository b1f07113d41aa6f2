/** The images that Dockerfile.distroless builds on, in buildah's storage, for each architecture. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Architecture, architectures } from "../../../deploy/architecture.ts";
import { repository } from "../cache.ts";
import { makeStandIn, STAND_IN_LABEL } from "../cluster/standin.ts";
import { $ } from "./buildah.ts";

export const dockerfile = join(repository, "Dockerfile.distroless");

/** This machine's. */
export const buildArchitecture: Architecture = process.arch === "arm64" ? "arm64" : "amd64";

/**
 * Has every base image from its registry, or where none can be reached a stand-in made from Debian's packages. Each
 * becomes a list of images by architecture, under its own name.
 */
export async function haveBases(say: (line: string) => void): Promise<void> {
  const from = /^FROM --platform=\$(BUILD|TARGET)PLATFORM (\S+)/gm;
  for (const [, platform, name = ""] of (await readFile(dockerfile, "utf8")).matchAll(from)) {
    const wanted = platform === "BUILD" ? [buildArchitecture] : architectures;
    for (const architecture of wanted) await haveBase(name, architecture, say);
    // buildah 1.28 looks for the build machine's base image under the target's architecture
    for (const architecture of architectures)
      if (!wanted.includes(architecture)) await relabel(name, architecture);
    // rmi would take the image that a list leads to
    if ((await $`buildah manifest rm ${name}`.nothrow()).exitCode !== 0)
      await $`buildah rmi ${name}`.nothrow();
    await $`buildah manifest create ${name}`;
    for (const architecture of architectures)
      await $`buildah manifest add ${name} ${localName(name, architecture)}`;
  }
}

async function haveBase(
  name: string,
  architecture: Architecture,
  say: (line: string) => void,
): Promise<void> {
  const local = localName(name, architecture);
  const format = `{{index .OCIv1.Config.Labels "${STAND_IN_LABEL}"}}`;
  const present = await $`buildah inspect --type image --format ${format} ${local}`.nothrow();
  const isStandIn = present.stdout.trim() !== "";
  if (present.exitCode === 0 && !isStandIn) return;
  const pulled = await $`timeout 60 buildah pull -q --policy always --arch ${architecture} ${name}`.nothrow();
  if (pulled.exitCode === 0) return void (await $`buildah tag ${pulled.stdout.trim()} ${local}`);
  const from = `a stand-in from Debian's packages`;
  say(`${name} (${architecture}) cannot be pulled here: ${isStandIn ? "using" : "making"} ${from}`);
  if (!isStandIn) await makeStandIn(local, { base: name, architecture });
}

/** The build machine's image again, in the place of another architecture's. */
async function relabel(name: string, architecture: Architecture): Promise<void> {
  const image = localName(name, buildArchitecture);
  const container = (await $`buildah from --pull-never ${image}`).stdout.trim();
  await $`buildah config --arch ${architecture} ${container}`;
  await $`buildah commit -q --rm --timestamp 0 ${container} ${localName(name, architecture)}`;
}

function localName(name: string, architecture: Architecture): string {
  return `localhost/${name.replace(/^.*\//, "").replace(":", "-")}:${architecture}`;
}
