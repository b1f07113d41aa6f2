/** The CNI plugins that the image carries, built from the module pinned in deploy/cni. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { $ } from "zx";
import { cniPlugins } from "../src/host/plugins.ts";
import { cacheDir } from "../test/lab/cache.ts";
import { findGo, goBuild } from "../test/lab/install.ts";
import type { Architecture } from "./architecture.ts";

const module = `${import.meta.dirname}/cni`;
const upstream = "github.com/containernetworking/plugins";

/** A module that programs were built from, as `go version -m` tells it; the standard library as `std`. */
export interface GoModule {
  path: string;
  version: string;
  /** Go's own checksum, base64 of SHA-256 of the module's files. */
  sum?: string;
}

/** The folder that holds the plugins for an architecture: from the cache, else built, about a minute. */
export async function builtPlugins(architecture: Architecture): Promise<string> {
  const go = await findGo();
  const goVersion = (await $({ quiet: true })`${go} version`).stdout;
  const pinned = ["go.mod", "go.sum"].map((file) => readFileSync(`${module}/${file}`, "utf8"));
  const inputs = JSON.stringify([goVersion, pinned, cniPlugins, flags()]);
  const key = createHash("sha256").update(inputs).digest("hex").slice(0, 12);
  const dir = `${cacheDir}/cni-${key}/${architecture}`;
  if (existsSync(dir)) return dir;
  const partial = `${dir}.${process.pid}`;
  // a copy, so that nothing can be written into the repository
  const copy = `${dir}.module.${process.pid}`;
  mkdirSync(partial, { recursive: true });
  cpSync(module, copy, { recursive: true });
  await goBuild([go, "build", "-v", "-mod=readonly", ...flags(), "-o", `${partial}/`, "tool"], copy, {
    GOOS: "linux",
    GOARCH: architecture,
  });
  rmSync(copy, { recursive: true });
  renameSync(partial, dir);
  return dir;
}

/** Without symbols, paths of this machine and a build id: the same bytes from the same Go, wherever built. */
function flags(): string[] {
  const version = new RegExp(`${upstream} (v\\S+)`).exec(readFileSync(`${module}/go.mod`, "utf8"))![1]!;
  const stamp = `${upstream}/pkg/utils/buildversion.BuildVersion=${version}`;
  return ["-trimpath", `-ldflags=-s -w -buildid= -X ${stamp}`];
}

/** The modules that are in a program, the main one first. */
export async function goModules(program: string): Promise<GoModule[]> {
  const { stdout } = await $({ quiet: true })`${await findGo()} version -m ${program}`;
  const lines = stdout.split("\n").map((line) => line.trim().split(/\s+/));
  const modules = lines.flatMap(([kind, path, version, sum]) =>
    kind === "mod" || kind === "dep" ? [{ path: path!, version: version!, ...(sum ? { sum } : {}) }] : [],
  );
  const toolchain = /: go(\S+)/.exec(lines[0]!.join(" "))![1]!;
  return [...modules, { path: "std", version: toolchain }];
}

/** Where Go keeps a module's files. */
export async function goModuleDirectory({ path, version }: GoModule): Promise<string> {
  const go = await findGo();
  if (path === "std") return (await $({ quiet: true })`${go} env GOROOT`).stdout.trim();
  const listed = await $({ quiet: true, cwd: module })`${go} mod download -json ${`${path}@${version}`}`;
  return (JSON.parse(listed.stdout) as { Dir: string }).Dir;
}
