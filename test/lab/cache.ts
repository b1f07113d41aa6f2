/** Where the lab's programs are: built once, outside the repository, by install.ts. */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { homedir } from "node:os";

export const kubernetesVersion = "1.34.10";
export const cacheDir = `${process.env.XDG_CACHE_HOME || `${homedir()}/.cache`}/wigglenet`;
export const kubernetesDir = `${cacheDir}/kubernetes-${kubernetesVersion}`;
/** Built from its own module, whose dependencies are not those of Kubernetes. */
export const helmVersion = "3.22.0";
export const helm = `${cacheDir}/helm-${helmVersion}/helm`;
/** Debian 12's, of 2022, leaves its sockets 208 kB to receive into, which a busy machine overflows; this one takes 7 MB. */
export const wireguardGoVersion = "0.0.0-20260522210424-ecfc5a8d5446";
export const wireguardGo = `${cacheDir}/wireguard-go-${wireguardGoVersion}/wireguard-go`;
/** Reads a bill of materials and says what is wrong with it. */
export const spdxTools = `${cacheDir}/spdx-tools-0.8.3/bin/pyspdxtools`;
export const repository = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");

/** A program of Kubernetes, etcd or cnitool. */
export function kubernetes(program: string): string {
  return `${kubernetesDir}/bin/${program}`;
}

const toolsDir = `${import.meta.dirname}/tools`;
const sources = { enter: ["enter.c"], forbid: ["forbid.c"], place: ["place.c", "echo.c"] };

/** The lab's own small C programs, compiled when they are first needed and whenever they changed. */
export function tool(program: keyof typeof sources): string {
  compiled[program] ??= compile(program);
  return compiled[program];
}

const compiled: Partial<Record<keyof typeof sources, string>> = {};

function compile(program: keyof typeof sources): string {
  const hash = createHash("sha256");
  for (const file of readdirSync(toolsDir).sort()) hash.update(readFileSync(`${toolsDir}/${file}`));
  const path = `${cacheDir}/tools/${program}-${hash.digest("hex").slice(0, 12)}`;
  if (!existsSync(path)) {
    mkdirSync(`${cacheDir}/tools`, { recursive: true });
    const made = `${path}.${process.pid}`;
    const flags = ["-O2", "-fno-strict-aliasing", "-Wall", "-static", "-s", "-o", made];
    const { exitCode, stderr } = Bun.spawnSync(["cc", ...flags, ...sources[program]], {
      cwd: toolsDir,
      stderr: "pipe",
    });
    if (exitCode !== 0) throw new Error(`cannot compile test/lab/tools/${program}.c: ${stderr}`);
    renameSync(made, path);
  }
  return path;
}
