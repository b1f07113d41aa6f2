/** The standard CNI plugins, which the image carries: those that a node lacks are put into its folder. */
import { lstat, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Logger } from "pino";
import { perform, printStep, type Step, stderrOf, whyNot } from "./command.ts";

/**
 * What the CNI file names, `bandwidth` for whoever adds it, and `loopback`, without which containerd makes no pod.
 */
export const cniPlugins = ["bandwidth", "host-local", "loopback", "portmap", "ptp"];

/** A plugin's own version, as numbers; "unknown" where it says none that can be compared. */
export type PluginVersion = string | "unknown";

export interface Plugin {
  name: string;
  /** Of the one that is to be installed. */
  offered: PluginVersion;
  /** Of the one in the target folder, undefined if there is none. */
  present: PluginVersion | undefined;
}

/** Both folders' plugins. Throws where `source` lacks one, or `target` is no folder. */
export async function observePlugins(source: string, target: string): Promise<Plugin[]> {
  const folder = await stat(target).catch(() => undefined);
  if (!folder?.isDirectory())
    throw new Error(`--target ${target}: no such folder: create it, or mount the node's /opt/cni/bin there`);
  return await Promise.all(
    cniPlugins.map(async (name) => {
      const offered = await versionOf(join(source, name));
      if (offered === undefined)
        throw new Error(`--source ${source} has no plugin ${name}: the image has them in /usr/lib/cni`);
      return { name, offered, present: await versionOf(join(target, name)) };
    }),
  );
}

/**
 * What a plugin that is asked nothing says of itself: "CNI ptp plugin v1.9.1". Undefined where there is nothing at the
 * path. A link that leads nowhere from here is something: the node sees other folders than a container does.
 */
async function versionOf(path: string): Promise<PluginVersion | undefined> {
  if (!(await lstat(path).catch(() => undefined))) return undefined;
  try {
    return parseVersion(await stderrOf({ kind: "run", argv: [path] }));
  } catch {
    return "unknown";
  }
}

export function parseVersion(said: string): PluginVersion {
  return /^CNI \S+ plugin v(\d+\.\d+\.\d+)$/m.exec(said)?.[1] ?? "unknown";
}

export type Verdict = "missing" | "older" | "same" | "newer" | "unknown";

/** What the one in the target folder is, beside the one that is offered. */
export function compare({ offered, present }: Plugin): Verdict {
  if (present === undefined) return "missing";
  if (present === "unknown" || offered === "unknown") return "unknown";
  return ({ "-1": "older", "0": "same", "1": "newer" } as const)[Bun.semver.order(present, offered)];
}

/** Copies what is missing, or older by its own word. Whatever else is there was put there by somebody: it stays. */
export function diffPlugin(plugin: Plugin, source: string, target: string): Step[] {
  if (!["missing", "older"].includes(compare(plugin))) return [];
  return [{ kind: "copy", path: join(target, plugin.name), from: join(source, plugin.name), mode: 0o755 }];
}

const said: Record<Verdict, string> = {
  missing: "plugin installed",
  older: "plugin replaced: the one that was there is older",
  same: "plugin is there already",
  newer: "plugin left as it is: it is newer",
  unknown: "plugin left as it is: it tells no version; remove it to have this one installed",
};

/** `wigglenet install-cni`: one log line for each plugin, or in a dry run a command for each that would be copied. */
export async function installPlugins(
  { source, target, dry }: { source: string; target: string; dry: boolean },
  log: Logger,
): Promise<void> {
  for (const plugin of await observePlugins(source, target)) {
    const steps = diffPlugin(plugin, source, target);
    if (dry) {
      for (const step of steps) console.log(printStep(step));
      continue;
    }
    const { name, offered, present } = plugin;
    try {
      await perform(steps);
    } catch (error) {
      const message = `cannot install ${name} into ${target}: ${whyNot(error)}`;
      if (present === undefined) throw new Error(message);
      // An older one has done so far.
      log.warn({ plugin: name, target, version: offered, found: present }, message);
      continue;
    }
    const verdict = compare(plugin);
    const facts = { plugin: name, target, version: offered, ...(present ? { found: present } : {}) };
    log[verdict === "unknown" ? "warn" : "info"](facts, said[verdict]);
  }
}
