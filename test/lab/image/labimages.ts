/** The images that every whole node needs and that no registry may give, from Debian's static programs. */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { $, imageCache, prepareStorage } from "./buildah.ts";
import { exportArchive, type Image } from "./image.ts";

/** containerd's sandbox image: the name is what its configuration asks for, the program is catatonit. */
export const PAUSE_IMAGE = "registry.k8s.io/pause:3.6";

/** What the lab's Deployments run: busybox with every applet. */
export const BUSYBOX_IMAGE = "docker.io/library/busybox:lab";

export async function labImages(): Promise<Image[]> {
  return [await pause(), await busybox()];
}

function pause(): Promise<Image> {
  return imageFromRoot(
    PAUSE_IMAGE,
    "pause",
    ["--entrypoint", '["/catatonit","-P"]', "--user", "65535:65535"],
    (root) => $`cp /usr/bin/catatonit ${root}/`,
  );
}

function busybox(): Promise<Image> {
  return imageFromRoot(BUSYBOX_IMAGE, "busybox", ["--cmd", '["sh"]', "--env", "PATH=/bin"], async (root) => {
    for (const dir of ["bin", "etc", "root", "tmp", "var", "www"]) await mkdir(join(root, dir));
    await $`cp /bin/busybox ${root}/bin/ && chroot ${root} /bin/busybox --install -s /bin`;
    await writeFile(join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
    await writeFile(join(root, "etc/group"), "root:x:0:\n");
  });
}

async function imageFromRoot(
  name: string,
  file: string,
  config: string[],
  fill: (root: string) => PromiseLike<unknown>,
): Promise<Image> {
  const archive = join(imageCache, `${file}.tar`);
  if (existsSync(archive)) return { name, archive };
  await prepareStorage();
  const root = await mkdtemp("/var/tmp/wigglenet-image-");
  try {
    await fill(root);
    const container = (await $`buildah from scratch`).stdout.trim();
    await $`buildah copy -q ${container} ${root} /`;
    await $`buildah config ${config} ${container}`;
    await $`buildah commit -q --rm --timestamp 0 ${container} ${name}`;
    await exportArchive(name, archive);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
  return { name, archive };
}
