/** A directory for everything that one lab writes, removed with it. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";

const prefix = "wigglenet-lab-";
const overlayfs = 0x794c7630;

/** Nodes' disks are overlays, whose upper half cannot lie on another overlay (as in the virtual machine). */
function root(): string {
  const fit = [tmpdir(), "/run", "/dev/shm"].find(
    (dir) => existsSync(dir) && statfsSync(dir).type !== overlayfs,
  );
  if (!fit)
    throw new Error("no directory for the lab: set TMPDIR to one that is not on an overlay filesystem");
  return fit;
}

/** Whoever was killed leaves its directory, though no process and no namespace: remove those. */
function sweep(parent: string): void {
  for (const name of readdirSync(parent).filter((name) => name.startsWith(prefix))) {
    const owner = `${parent}/${name}/owner`;
    if (!existsSync(owner)) continue;
    const [pid = "", started = ""] = readFileSync(owner, "utf8").split(" ");
    if (startOf(pid) !== started) rmSync(`${parent}/${name}`, { recursive: true, force: true });
  }
}

/** When a process started, so that a pid that is used again is not taken for the old process. */
function startOf(pid: string): string | undefined {
  if (!existsSync(`/proc/${pid}/stat`)) return undefined;
  return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ")[19];
}

export function makeScratch(): string {
  const parent = root();
  sweep(parent);
  const dir = mkdtempSync(`${parent}/${prefix}`);
  writeFileSync(`${dir}/owner`, `${process.pid} ${startOf(String(process.pid))}`);
  mkdirSync(`${dir}/log`);
  return dir;
}

export function removeScratch(dir: string): void {
  if (process.env.LAB_KEEP) console.error(`LAB_KEEP is set: the lab's files stay in ${dir}`);
  else rmSync(dir, { recursive: true, force: true });
}
