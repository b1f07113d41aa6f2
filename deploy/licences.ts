/** The licences of what is compiled into the image's own executables. Debian's packages bring theirs with them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import lock from "../package-lock.json" with { type: "json" };
import { cniPlugins } from "../src/host/plugins.ts";
import { repository } from "../test/lab/cache.ts";
import { type GoModule, goModuleDirectory, goModules } from "./plugins.ts";

/** A package of npm that is compiled into the agent. */
export interface NpmPackage {
  name: string;
  version: string;
  license: string;
  /** As in the lock file: `sha512-` and base64. */
  integrity: string;
  /** Its folder, relative to the repository. */
  directory: string;
}

export const bunVersion = packageJson.devDependencies.bun;

/** What the lock file has besides what only development needs. */
export function npmPackages(): NpmPackage[] {
  const entries = Object.entries(lock.packages) as [string, Partial<NpmPackage> & { dev?: boolean }][];
  return entries
    .filter(([directory, { dev }]) => directory !== "" && !dev)
    .map(([directory, { version = "", license = "", integrity = "" }]) => ({
      name: directory.replace(/^.*node_modules\//, ""),
      version,
      license,
      integrity,
      directory,
    }));
}

/** The modules of all plugins, each once, by path. */
export async function pluginModules(folder: string): Promise<GoModule[]> {
  const modules = await Promise.all(cniPlugins.map((plugin) => goModules(join(folder, plugin))));
  const byPath = new Map(modules.flat().map((module) => [module.path, module]));
  return [...byPath.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
}

export function agentLicences(): string {
  const own = readFileSync(join(repository, "LICENSE"), "utf8");
  const terms = own.slice(own.indexOf("Permission is hereby granted"));
  const parts = npmPackages().map(({ name, version, license, directory }) =>
    part(`${name} ${version} (${license})`, texts(join(repository, directory))),
  );
  // its npm package has no file with its licence
  const bun = `Copyright (c) the authors of Bun, https://bun.com\n\n${terms}
Bun includes JavaScriptCore and other parts of WebKit under the GNU Library General Public License, version 2
(/usr/share/common-licenses/LGPL-2); their source is at https://github.com/oven-sh/WebKit, and all that Bun includes is
listed at https://bun.com/docs/project/license.\n`;
  return [part(`wigglenet ${packageJson.version}`, [own]), part(`Bun ${bunVersion}`, [bun]), ...parts].join(
    "",
  );
}

export async function pluginLicences(folder: string): Promise<string> {
  const parts = (await pluginModules(folder)).map(async (module) =>
    part(`${module.path} ${module.version}`, texts(await goModuleDirectory(module))),
  );
  return (await Promise.all(parts)).join("");
}

function texts(directory: string): string[] {
  return readdirSync(directory)
    .filter((file) => /^(licen[cs]e|copying|copyright|notice)/i.test(file))
    .sort()
    .map((file) => readFileSync(join(directory, file), "utf8"));
}

function part(title: string, texts: string[]): string {
  const line = "=".repeat(title.length);
  return `${title}\n${line}\n\n${texts.map((text) => `${text.trimEnd()}\n\n`).join("")}`;
}
