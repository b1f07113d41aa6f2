/** The agent as its next version: the same sources, built under another version. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename } from "node:path";
import { $ } from "zx";
import packageJson from "../../../package.json" with { type: "json" };
import { cacheDir, repository } from "../cache.ts";
import { $ as buildah, imageCache, prepareStorage } from "../image/buildah.ts";
import { exportArchive, type Image } from "../image/image.ts";

export const nextVersion = packageJson.version.replace(/\d+$/, (patch) => String(Number(patch) + 1));

/** Its executable; built once for each dist/wigglenet. */
export async function nextBuild(): Promise<string> {
  const current = `${repository}/dist/wigglenet`;
  if (!existsSync(current)) throw new Error(`no ${current}: run \`npm run build\` first`);
  const dir = `${cacheDir}/next`;
  mkdirSync(dir, { recursive: true });
  const { mtimeMs, size } = statSync(current);
  const name = `wigglenet-${nextVersion}-${size}-${Math.trunc(mtimeMs)}`;
  if (existsSync(`${dir}/${name}`)) return `${dir}/${name}`;
  const at = mkdtempSync(`${dir}/building-`);
  try {
    await $({
      cwd: repository,
    })`cp -r src deploy tsconfig.json package.json ${at} && ln -s $PWD/node_modules ${at}`;
    await Bun.write(`${at}/package.json`, JSON.stringify({ ...packageJson, version: nextVersion }));
    await $({ cwd: at })`${process.execPath} run build`.quiet();
    for (const file of readdirSync(dir)) if (file.startsWith("wigglenet-")) rmSync(`${dir}/${file}`);
    renameSync(`${at}/dist/wigglenet`, `${dir}/${name}`);
  } finally {
    rmSync(at, { recursive: true });
  }
  return `${dir}/${name}`;
}

/** An image with it, made from the current one. */
export async function nextImage(current: Image): Promise<Image> {
  const executable = await nextBuild();
  const name = current.name.replace(/:.*$/, `:v${nextVersion}`);
  const archive = `${imageCache}/next-${basename(executable)}.tar`;
  if (existsSync(archive)) return { name, archive };
  for (const file of readdirSync(imageCache)) if (file.startsWith("next-")) rmSync(`${imageCache}/${file}`);
  await prepareStorage();
  const container = (await buildah`buildah from -q ${`docker-archive:${current.archive}`}`).stdout.trim();
  try {
    await buildah`buildah copy -q ${container} ${executable} /usr/local/bin/wigglenet`;
    await buildah`buildah commit -q ${container} ${name}`;
  } finally {
    await buildah`buildah rm ${container}`;
  }
  await exportArchive(name, archive);
  await buildah`buildah rmi ${name}`;
  return { name, archive };
}
