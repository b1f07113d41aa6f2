/** Where the lab's programs are: built once, outside the repository, by install.ts. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { homedir } from "node:os";

export const kubernetesVersion = "1.34.10";
export const cacheDir = `${process.env.XDG_CACHE_HOME || `${homedir()}/.cache`}/wigglenet`;
export const kubernetesDir = `${cacheDir}/kubernetes-${kubernetesVersion}`;
export const repository = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

/** A program of Kubernetes, etcd or cnitool. */
export function kubernetes(program: string): string {
  return `${kubernetesDir}/bin/${program}`;
}

const sources = ["enter", "place"] as const;

/** The lab's own two small C programs, compiled when they are first needed and whenever they changed. */
export function tool(program: (typeof sources)[number]): string {
  const text = readFileSync(`${import.meta.dirname}/tools/${program}.c`);
  const path = `${cacheDir}/tools/${program}-${createHash("sha256").update(text).digest("hex").slice(0, 12)}`;
  if (!existsSync(path)) {
    mkdirSync(`${cacheDir}/tools`, { recursive: true });
    const made = `${path}.${process.pid}`;
    const cc = ["cc", "-O2", "-fno-strict-aliasing", "-Wall", "-static", "-s", "-o", made, "-x", "c", "-"];
    const { exitCode, stderr } = Bun.spawnSync(cc, { stdin: text, stderr: "pipe" });
    if (exitCode !== 0) throw new Error(`cannot compile test/lab/tools/${program}.c: ${stderr}`);
    renameSync(made, path);
  }
  return path;
}
