/** An image from its OCI archive, as a container would see it. */
import { readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { $ } from "zx";

export interface Unpacked {
  /** Its files. */
  root: string;
  digest: string;
  config: {
    architecture: string;
    os: string;
    config: { Labels: Record<string, string>; Entrypoint: string[]; User?: string };
  };
  /** From the base image up; size in bytes, compressed. */
  layers: { digest: string; size: number; file: string }[];
}

/** Unpacks into an empty folder. */
export async function unpack(archive: string, dir: string): Promise<Unpacked> {
  const [layout, root] = [join(dir, "layout"), join(dir, "root")];
  for (const folder of [layout, root]) await mkdir(folder);
  const quiet = $({ quiet: true });
  await quiet`tar -xf ${archive} -C ${layout}`;
  const blob = (digest: string) => join(layout, "blobs", digest.replace(":", "/"));
  const read = (file: string) => JSON.parse(readFileSync(file, "utf8"));
  const { digest } = read(join(layout, "index.json")).manifests[0];
  const manifest = read(blob(digest)) as { config: { digest: string }; layers: Unpacked["layers"] };
  const layers = manifest.layers.map(({ digest, size }) => ({ digest, size, file: blob(digest) }));
  for (const { file } of layers) await quiet`tar -xzf ${file} -C ${root}`;
  return { root, digest, config: read(blob(manifest.config.digest)), layers };
}
