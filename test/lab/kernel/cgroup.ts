/** The cgroup of a whole node, in the one hierarchy of version 2 or in every one of version 1. */
import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { until } from "../process.ts";

const root = "/sys/fs/cgroup";
const isVersion2 = existsSync(`${root}/cgroup.controllers`);

/** The directories that are cgroup hierarchies with controllers. */
async function hierarchies(): Promise<string[]> {
  if (isVersion2) return [root];
  const lines = (await readFile("/proc/self/cgroup", "utf8")).trim().split("\n");
  const names = lines.map((line) => line.split(":")[1]!.replace("name=", ""));
  return names.filter((name) => name !== "").map((name) => join(root, name));
}

/**
 * A lab's share of the processor: of four programs of this machine, for three nodes. With the share of one, a node's
 * wireguard-go waited for 0.8 s beside other tests and dropped packets; with more, those of light nodes may wait.
 */
const [shareFile, share] = isVersion2 ? ["cpu.weight", "400"] : ["cpu.shares", "4096"];

export async function makeCgroup(path: string): Promise<void> {
  for (const hierarchy of await hierarchies()) {
    let at = hierarchy;
    for (const part of path.split("/")) {
      const parent = at;
      at = join(at, part);
      await mkdir(at, { recursive: true });
      if (parent === hierarchy && existsSync(join(at, shareFile)))
        await writeFile(join(at, shareFile), share);
      if (isVersion2) await delegate(parent);
      // a new cpuset is empty, and nothing can run in an empty one
      else for (const file of ["cpuset.cpus", "cpuset.mems"]) await inherit(parent, at, file);
    }
  }
}

/** Hands the controllers that a cgroup has to its children. */
async function delegate(parent: string): Promise<void> {
  const controllers = (await readFile(join(parent, "cgroup.controllers"), "utf8")).trim().split(" ");
  for (const name of controllers.filter(Boolean))
    await writeFile(join(parent, "cgroup.subtree_control"), `+${name}`);
}

async function inherit(parent: string, child: string, file: string): Promise<void> {
  if (existsSync(join(child, file))) await writeFile(join(child, file), await readFile(join(parent, file)));
}

/** Removes a cgroup and those below it as soon as the processes in them are gone, and the one above if it is empty. */
export async function removeCgroup(path: string): Promise<void> {
  for (const hierarchy of await hierarchies()) {
    await until(`no process in the cgroup ${hierarchy}/${path}`, () => removeTree(join(hierarchy, path)));
    if (path.includes("/")) await rmdir(join(hierarchy, dirname(path))).catch(() => {});
  }
}

/** Removes what labs left that were killed: their cgroups are named after directories that are gone. */
export async function sweepCgroups(labs: string): Promise<void> {
  for (const hierarchy of await hierarchies()) {
    for (const name of await readdir(hierarchy)) {
      if (!name.startsWith("wigglenet-lab-") || existsSync(join(labs, name))) continue;
      await removeTree(join(hierarchy, name));
    }
  }
}

async function removeTree(dir: string): Promise<boolean> {
  try {
    for (const entry of await readdir(dir, { withFileTypes: true }))
      if (entry.isDirectory() && !(await removeTree(join(dir, entry.name)))) return false;
    await rmdir(dir);
    return true;
  } catch (error) {
    const { code = "" } = error as NodeJS.ErrnoException;
    // a process is there
    if (["EBUSY", "ENOTEMPTY"].includes(code)) return false;
    // another run is faster, or another node of this one
    if (code === "ENOENT") return true;
    throw error;
  }
}
