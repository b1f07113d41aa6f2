/** What Dockerfile.distroless copies into the image besides Debian's packages: `npm run image-files`. */
import { existsSync } from "node:fs";
import { cp, mkdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { $ } from "zx";
import { repository } from "../test/lab/cache.ts";
import { type Architecture, architectures, executables } from "./architecture.ts";
import { agentLicences, pluginLicences } from "./licences.ts";
import { builtPlugins } from "./plugins.ts";

/** Where the image has what it runs. */
export const inImage = { agent: "usr/local/bin/wigglenet", plugins: "usr/lib/cni" };

/**
 * Fills dist/image/ARCHITECTURE from the executable and the plugins, which are built if they are not yet. Where it is the
 * same already it is left alone: another process may be building an image from it.
 */
export async function imageFiles(architecture: Architecture): Promise<string> {
  const executable = executables[architecture];
  if (!existsSync(executable)) {
    const script = architecture === "amd64" ? "build" : `build:${architecture}`;
    throw new Error(`no ${executable}: run \`npm run ${script}\` first`);
  }
  const plugins = await builtPlugins(architecture);
  const tree = join(repository, "dist/image", architecture);
  const draft = `${tree}.${process.pid}`;
  const place = async (path: string, put: (path: string) => Promise<void>) => {
    await mkdir(dirname(join(draft, path)), { recursive: true });
    await put(join(draft, path));
  };
  const licences = (path: string, text: string) => place(path, (to) => writeFile(to, text));
  try {
    await place(`agent/${inImage.agent}`, (to) => cp(executable, to));
    await licences("agent/usr/share/doc/wigglenet/copyright", agentLicences());
    await place(`cni/${inImage.plugins}`, (to) => cp(plugins, to, { recursive: true }));
    await licences("cni/usr/share/doc/cni-plugins/copyright", await pluginLicences(plugins));
    // whoever builds the image with other tools gets the same layers
    await $({ quiet: true })`find ${draft} -exec touch -h -d @0 {} +`;
    const same = (await $({ quiet: true, nothrow: true })`diff -r ${draft} ${tree}`).exitCode === 0;
    if (!same) {
      await rm(tree, { recursive: true, force: true });
      await rename(draft, tree);
    }
  } finally {
    await rm(draft, { recursive: true, force: true });
  }
  return tree;
}

if (import.meta.main) {
  for (const architecture of architectures) {
    await $`npm run --silent ${architecture === "amd64" ? "build" : `build:${architecture}`}`;
    console.log(await imageFiles(architecture));
  }
}
