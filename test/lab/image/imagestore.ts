/** A containerd that has imported the lab's images, made once and cheap to copy: importing takes seconds on each node. */
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { $ } from "zx";
import { Service, until } from "../process.ts";
import { imageCache } from "./buildah.ts";
import type { Image } from "./image.ts";

/** Directory of a containerd's root that has these images. Not to be written to: copy it by `copyStore`. */
export async function imageStore(images: readonly Image[]): Promise<string> {
  const store = `${imageCache}/store-${storeHash(images)}`;
  if (existsSync(store)) return store;
  for (const file of readdirSync(imageCache)) {
    if (file.startsWith("store-")) rmSync(`${imageCache}/${file}`, { recursive: true, force: true });
  }
  const dir = mkdtempSync(`${imageCache}/importing-`);
  try {
    await importInto(dir, images);
    renameSync(`${dir}/root`, store);
  } catch (error) {
    // another process may have been faster
    if (!existsSync(store)) throw error;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
  return store;
}

function storeHash(images: readonly Image[]): string {
  const facts = images.map(({ name, archive }) => [name, archive, statSync(archive).mtimeMs]);
  return createHash("sha256").update(JSON.stringify(facts)).digest("hex").slice(0, 16);
}

async function importInto(dir: string, images: readonly Image[]): Promise<void> {
  const socket = `${dir}/containerd.sock`;
  writeFileSync(
    `${dir}/config.toml`,
    `version = 2
root = "${dir}/root"
state = "${dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "${socket}"
`,
  );
  await using containerd = Service.start("containerd", ["containerd", "--config", `${dir}/config.toml`], {
    log: `${dir}/log`,
  });
  await until(
    "containerd to import images with",
    async () => containerd.running && (await $`ctr -a ${socket} version`.quiet().nothrow()).exitCode === 0,
    { why: () => containerd.tail() },
  );
  for (const { archive } of images) await $`ctr -a ${socket} -n k8s.io images import ${archive}`.quiet();
  await containerd.stop();
}

/**
 * Layers and blobs are never written to again: links to them do, where `to` is on the same filesystem.
 * The databases are copied.
 */
export async function copyStore(store: string, to: string): Promise<void> {
  mkdirSync(to, { recursive: true });
  const linked = await $`cp -al ${store}/. ${to}`.quiet().nothrow();
  if (linked.exitCode !== 0) {
    await $`rm -rf ${to}/* && cp -a ${store}/. ${to}`.quiet();
    return;
  }
  await $`cd ${store} && find . -name '*.db' -exec cp -a --parents --remove-destination -t ${to} {} +`.quiet();
}
