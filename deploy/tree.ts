/** What Dockerfile.distroless copies into the image besides Debian's packages: `npm run image-files`. */
import { existsSync } from "node:fs";
import { cp, mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { $ } from "zx";
import { repository } from "../test/lab/cache.ts";
import { agentLicences, pluginLicences } from "./licences.ts";
import { builtPlugins } from "./plugins.ts";

/** As OCI and Go name them. */
export const architectures = ["amd64", "arm64"] as const;
export type Architecture = (typeof architectures)[number];

/** What `npm run build` and `npm run build:arm64` make. */
export const executables: Record<Architecture, string> = {
  amd64: join(repository, "dist/wigglenet"),
  arm64: join(repository, "dist/wigglenet-arm64"),
};

/** Where the image has what it runs. */
export const inImage = { agent: "usr/local/bin/wigglenet", plugins: "usr/lib/cni" };

/** Fills dist/image/ARCHITECTURE from the executable and the plugins, which are built if they are not yet. */
export async function imageFiles(architecture: Architecture): Promise<string> {
  const executable = executables[architecture];
  if (!existsSync(executable)) {
    const script = architecture === "amd64" ? "build" : `build:${architecture}`;
    throw new Error(`no ${executable}: run \`npm run ${script}\` first`);
  }
  const plugins = await builtPlugins(architecture);
  const tree = join(repository, "dist/image", architecture);
  await rm(tree, { recursive: true, force: true });
  const place = async (path: string, put: (path: string) => Promise<void>) => {
    await mkdir(dirname(join(tree, path)), { recursive: true });
    await put(join(tree, path));
  };
  const licences = (path: string, text: string) => place(path, (to) => writeFile(to, text));
  await place(`agent/${inImage.agent}`, (to) => cp(executable, to));
  await licences("agent/usr/share/doc/wigglenet/copyright", agentLicences());
  await place(`cni/${inImage.plugins}`, (to) => cp(plugins, to, { recursive: true }));
  await licences("cni/usr/share/doc/cni-plugins/copyright", await pluginLicences(plugins));
  // whoever builds the image with other tools gets the same layers
  await $({ quiet: true })`find ${tree} -exec touch -h -d @0 {} +`;
  return tree;
}

if (import.meta.main) {
  for (const architecture of architectures) {
    await $`npm run --silent ${architecture === "amd64" ? "build" : `build:${architecture}`}`;
    console.log(await imageFiles(architecture));
  }
}
