/** The guest's kernel: Debian's own, unpacked into the cache (never installed), with an initrd that holds guest.sh. */

import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { $ } from "zx";
import { cacheDir } from "../cache.ts";

export interface Kernel {
  /** As `uname -r` prints it. */
  release: string;
  image: string;
  initrd: string;
  /** Holds a directory for each release. */
  modules: string;
}

/** What the guest loads at once, with what these depend on. Anything else is loaded when the kernel asks for it. */
const MODULES = [
  "virtio_pci 9p 9pnet_virtio overlay virtio_net virtio_console af_packet",
  "wireguard veth bridge tun sch_netem",
  "nf_tables nft_ct nft_nat nft_masq nft_chain_nat nft_fib_inet nft_reject_inet nft_compat nft_numgen nft_limit nft_log",
  "nft_flow_offload nf_flow_table_inet nf_conntrack_netlink",
  "xt_MASQUERADE xt_nat xt_mark xt_comment xt_conntrack xt_addrtype xt_multiport xt_tcpudp xt_set",
].flatMap((line) => line.split(" "));

/** Not one driver of these is in the guest; they are three quarters of the package. */
const UNWANTED = [
  "sound",
  ..."gpu media infiniband iio staging scsi usb hid net/ethernet net/wireless"
    .split(" ")
    .map((d) => `drivers/${d}`),
];

const busyboxNames = ["sh", "mount", "insmod", "mkdir", "ln", "cp", "sed", "hostname", "ip", "switch_root"];

/** Fetches what is missing. Needs apt's package lists, cpio, kmod, xz-utils and busybox-static. */
export async function debianKernel(log: (line: string) => void = () => {}): Promise<Kernel> {
  const current = join(cacheDir, "kernel");
  if (!existsSync(join(current, "release"))) await unpack(current, log);
  const release = (await readFile(join(current, "release"), "utf8")).trim();
  const kernel = { release, image: join(current, "boot/vmlinux"), modules: join(current, "lib/modules") };
  return { ...kernel, initrd: await initrd(kernel) };
}

async function unpack(target: string, log: (line: string) => void): Promise<void> {
  await mkdir(cacheDir, { recursive: true });
  const dir = await mkdtemp(`${target}-`);
  try {
    log("kernel for the virtual machine: fetching and unpacking Debian's own");
    const release = await download(dir).catch(async () => {
      log("apt's package lists are old or missing: apt-get update");
      await $`apt-get -q update`;
      return await download(dir);
    });
    const tree = join(dir, "lib/modules", release, "kernel");
    for (const unwanted of UNWANTED) await rm(join(tree, unwanted), { recursive: true, force: true });
    await $`depmod -b ${dir} ${release}`;
    await decompress(join(dir, "boot", `vmlinuz-${release}`), join(dir, "boot/vmlinux"));
    await writeFile(join(dir, "release"), release);
    await rename(dir, target);
  } catch (error) {
    await rm(dir, { recursive: true });
    // Another process may have been faster
    if (!existsSync(join(target, "release"))) throw error;
  }
}

/** Downloads and unpacks the current kernel; its release. */
async function download(dir: string): Promise<string> {
  const depends = await $`apt-cache depends linux-image-amd64`.text();
  const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
  if (!name)
    throw new Error(`apt-cache depends linux-image-amd64 names no kernel: ${JSON.stringify(depends)}`);
  // As root outright: the sandbox user cannot write here, and apt would only complain about it
  await $({ cwd: dir })`apt-get -q -o APT::Sandbox::User=root download ${name}`;
  await $({ cwd: dir })`sh -c ${`dpkg-deb -x ${name}_*.deb . && rm ${name}_*.deb`}`;
  return name.slice("linux-image-".length);
}

/** The guest would take 3 s to decompress itself. Header: Documentation/arch/x86/boot.rst, `payload_offset` and on. */
async function decompress(bzImage: string, vmlinux: string): Promise<void> {
  const image = await readFile(bzImage);
  const start = (image.readUInt8(0x1f1) + 1) * 512 + image.readUInt32LE(0x248);
  // The last four bytes are the length of what comes out
  const payload = image.subarray(start, start + image.readUInt32LE(0x24c) - 4);
  await writeFile(`${vmlinux}.xz`, payload);
  await $`xz --decompress ${`${vmlinux}.xz`}`;
}

async function initrd({ release, modules }: Omit<Kernel, "initrd">): Promise<string> {
  const init = await readFile(join(import.meta.dirname, "guest.sh"));
  const hash = createHash("sha256")
    .update(init)
    .update(JSON.stringify([release, MODULES, busyboxNames]));
  const target = join(cacheDir, "kernel", `initrd-${hash.digest("hex").slice(0, 12)}`);
  if (existsSync(target)) return target;

  const dir = await mkdtemp(join(tmpdir(), "wigglenet-initrd-"));
  for (const name of "bin modules proc sys dev lower upper root".split(" ")) await mkdir(join(dir, name));
  await writeFile(join(dir, "init"), init, { mode: 0o755 });
  await cp("/bin/busybox", join(dir, "bin/busybox"));
  for (const name of busyboxNames) await symlink("busybox", join(dir, "bin", name));

  const base = join(modules, "../..");
  const depends = await Promise.all(
    MODULES.map((m) => $`modprobe -d ${base} -S ${release} --show-depends ${m}`.lines()),
  );
  const files = depends.flat().flatMap((line) => /^insmod (\S+)/.exec(line)?.[1] ?? []);
  for (const [i, file] of [...new Set(files)].entries()) {
    await cp(file, join(dir, "modules", `${String(i).padStart(3, "0")}-${basename(file)}`));
  }
  await $({
    cwd: dir,
  })`sh -c ${`find . | cpio --quiet -o -H newc > ${target}.$$ && mv ${target}.$$ ${target}`}`;
  await rm(dir, { recursive: true });
  return target;
}
