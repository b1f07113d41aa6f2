/** buildah in a storage of the project's own, apart from any that the machine's user has. */
import { mkdir, writeFile } from "node:fs/promises";
import { $ as shell } from "zx";
import { cacheDir } from "../cache.ts";

export const imageCache = `${cacheDir}/images`;

const storageConf = `${imageCache}/storage.conf`;

/** zx's `$`, for buildah in that storage. */
export const $ = shell({
  env: { ...process.env, CONTAINERS_STORAGE_CONF: storageConf, BUILDAH_ISOLATION: "chroot" },
  quiet: true,
});

export async function prepareStorage(): Promise<void> {
  await mkdir(imageCache, { recursive: true });
  const lines = ["[storage]", 'driver = "overlay"'];
  lines.push(`graphroot = "${imageCache}/storage"`, `runroot = "${imageCache}/run"`, "");
  await writeFile(storageConf, lines.join("\n"));
}
