/** The folder that the container runtime reads: whether it takes our CNI file or another's, and when that changes. */
import { type FSWatcher, statSync, watch } from "node:fs";
import { lstat, readdir, readFile, readlink, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { type CniList, type CniPlugin, isGated } from "../plan/cni.ts";
import type { Finding, Findings } from "../report/findings.ts";
import type { Resource } from "./resource.ts";

/** A file that the runtime reads before ours. */
export interface EarlierCniFile {
  name: string;
  /** Of its network. */
  network: string;
  plugins: CniPlugin[];
  /** Why no runtime can use it; containerd then starts no pod at all. */
  broken?: string;
  /** Why this agent cannot tell what is in it. */
  unreadable?: string;
}

/** What libcni takes for configuration: a list of plugins in the second, one plugin in the others. */
const extensions = [".conf", ".conflist", ".json"];
/** Bytes. Nothing that size is a CNI file. */
const largest = 1_000_000;

/** As Go has it: all from the last dot on, also where that is the whole name. */
function isCniFile(name: string): boolean {
  return extensions.includes(name.slice(name.lastIndexOf(".")));
}

/** The files that come before ours, in the runtime's order: that of the bytes of their names. */
export async function observeEarlier(path: string): Promise<EarlierCniFile[]> {
  const [folder, own] = [dirname(path), Buffer.from(basename(path))];
  const entries = await readdir(folder, { encoding: "buffer" }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new Error(`CNI folder ${folder} cannot be read: ${error.message}`);
  });
  const names = entries
    .filter((name) => isCniFile(name.toString("latin1")) && name.compare(own) < 0)
    .sort(Buffer.compare);
  const files = await Promise.all(names.map((name) => readEarlier(folder, name)));
  return files.flatMap((file) => file ?? []);
}

/** @returns undefined if it is a folder, or has gone meanwhile */
async function readEarlier(folder: string, bytes: Buffer): Promise<EarlierCniFile | undefined> {
  const path = Buffer.concat([Buffer.from(`${folder}/`), bytes]);
  const name = bytes.toString();
  try {
    if ((await lstat(path)).isDirectory()) return undefined;
    const content = await readSmall(path);
    return { name, ...(name.endsWith(".conflist") ? await parseList(content, folder) : parseOne(content)) };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const nothing = { name, network: "", plugins: [] };
    // The runtime is root with all rights; the agent need not have them.
    if (code === "EACCES" || code === "EPERM") return { ...nothing, unreadable: code };
    const dangling = code === "ENOENT" && (await readlink(path).catch(() => undefined));
    if (code === "ENOENT" && !dangling) return undefined;
    return { ...nothing, broken: dangling ? `${dangling} is not there` : message };
  }
}

async function readSmall(path: string | Buffer): Promise<string> {
  const found = await stat(path);
  // A pipe would have us wait for whoever writes into it.
  if (!found.isFile()) throw new Error("it is no file");
  if (found.size > largest) throw new Error(`it has more than ${largest / 1e6} MB`);
  return await readFile(path, "utf8");
}

type Network = Pick<EarlierCniFile, "network" | "plugins">;

function parseOne(content: string): Network {
  const plugin = parseObject(content) as CniPlugin;
  return { network: String(plugin.name ?? ""), plugins: typed([plugin]) };
}

async function parseList(content: string, folder: string): Promise<Network> {
  const { name, plugins, loadOnlyInlinedPlugins } = parseObject(content);
  if (plugins !== undefined && (!Array.isArray(plugins) || plugins.length === 0))
    throw new Error("it has no plugins");
  const inlined = typed(plugins ?? []);
  if (typeof name !== "string") throw new Error("it has no name");
  const more = [true, "true"].includes(loadOnlyInlinedPlugins as boolean) ? [] : await inFolder(folder, name);
  if (inlined.length + more.length === 0) throw new Error("it has no plugins");
  return { network: name, plugins: [...inlined, ...more] };
}

/** Runtimes with libcni 1.3 or later append what is in a folder of the network's name. */
async function inFolder(folder: string, network: string): Promise<CniPlugin[]> {
  const names = network.includes("/") ? [] : await readdir(join(folder, network)).catch(() => []);
  const found = names.filter((name) => name.endsWith(".conf")).sort();
  const contents = found.map((name) => readSmall(join(folder, network, name)));
  return (await Promise.all(contents)).flatMap((content) => parseOne(content).plugins);
}

function parseObject(content: string): Record<string, unknown> {
  const parsed: unknown = JSON.parse(content);
  if (typeof parsed !== "object" || parsed === null) throw new Error("it holds no object");
  return parsed as Record<string, unknown>;
}

function typed(plugins: CniPlugin[]): CniPlugin[] {
  if (!plugins.every((plugin) => typeof plugin?.type === "string" && plugin.type !== ""))
    throw new Error("a plugin in it has no type");
  return plugins;
}

/** Multus calls the plugins of another file, by default of the first after its own. Its thick kind is the second. */
const delegating = ["multus", "multus-shim"];

/** What the files that come before ours mean for this node; undefined if nothing. */
export function judgeEarlier(
  path: string,
  own: CniList,
  files: readonly EarlierCniFile[],
): Finding | undefined {
  const [folder, ownName] = [dirname(path), basename(path)];
  let warning: Finding | undefined;
  for (const file of files) {
    const before = `CNI file ${file.name} comes before ${ownName} in ${folder}`;
    const plugins = file.plugins.map(({ type }) => type);
    const details = { network: file.network, plugins };
    if (file.broken !== undefined)
      return {
        severity: "unready",
        message: `${before} and cannot be used (${file.broken}): the container runtime may start no pod. Repair or remove it`,
      };
    if (file.unreadable !== undefined)
      return {
        severity: "unready",
        message: `${before} and cannot be read by this agent (${file.unreadable}): if the container runtime can, new pods are in another network. Remove it, or make it root's with mode 0644`,
      };
    if (own.plugins.every((wanted) => file.plugins.some((plugin) => Bun.deepEquals(plugin, wanted))))
      return {
        severity: "warning",
        message: `${before} with a copy of our plugins, and more: new pods are as good as its copy is`,
        ...details,
      };
    if (isGated({ ...own, plugins: file.plugins }))
      return {
        severity: "unready",
        message: `${before} with a copy of our plugins that is out of date: restart the program that wrote it, or remove it`,
        ...details,
      };
    if (!plugins.some((type) => delegating.includes(type)))
      return {
        severity: "unready",
        message: `${before}: the container runtime takes the first, so that new pods are in another network. Remove it, or set CNI_CONFIG_PATH to a name that comes before it`,
        ...details,
      };
    warning ??= {
      severity: "warning",
      message: `${before}: new pods are in this network only if multus delegates to it`,
      ...details,
    };
  }
  return warning;
}

/** Names what comes before our file. Nothing in the folder but that file is ours to change. */
export class CniFolder implements Resource<{ cni: CniList | undefined }> {
  readonly #path: string;
  readonly #findings: Findings;

  /** @param path of our CNI file */
  constructor(path: string, findings: Findings) {
    this.#path = path;
    this.#findings = findings;
  }

  /** Nothing is kept here: to read it costs next to nothing. */
  invalidate(): void {}

  async add({ cni }: { cni: CniList | undefined }): Promise<void> {
    if (cni === undefined) return;
    const finding = judgeEarlier(this.#path, cni, await observeEarlier(this.#path));
    this.#findings.report("CNI folder", finding);
  }
}

/** Milliseconds between two looks whether the folder is still the one that is watched. */
const lookAgain = 2_000;

/**
 * Tells of each change of a file that a runtime reads. Where the folder cannot be watched (the kernel limits how many
 * watches a user has), the resync alone sees it.
 */
export function watchCniFolder(path: string, changed: () => void, signal: AbortSignal): void {
  const folder = dirname(path);
  let watcher: FSWatcher | undefined;
  /** Null before the first look. */
  let watched: string | undefined | null = null;
  const look = () => {
    // One that is made anew at once may have the number of the one before.
    const found = statSync(folder, { throwIfNoEntry: false, bigint: true });
    const identity = found && `${found.ino} ${found.birthtimeNs}`;
    if (identity === watched) return;
    watcher?.close();
    watcher = undefined;
    try {
      if (identity !== undefined) watcher = watch(folder, told).on("error", () => undefined);
    } catch {
      // As long as this folder is there it would fail again.
    }
    if (watched !== null) changed();
    watched = identity;
  };
  const told = (_: string, name: string | null) => {
    if (name === null || isCniFile(name)) changed();
  };
  look();
  const timer = setInterval(look, lookAgain);
  timer.unref();
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    watcher?.close();
  });
}
