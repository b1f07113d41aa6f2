/** The folder that the container runtime reads: whether it takes our CNI file or another's, and when that changes. */
import { type FSWatcher, statSync, watch } from "node:fs";
import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";
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
}

/** What libcni takes for configuration: a list of plugins in the second, one plugin in the others. */
const extensions = [".conf", ".conflist", ".json"];
/** Bytes. Nothing that size is a CNI file. */
const largest = 1_000_000;

/** The files that come before ours, in the runtime's order: that of the bytes of their names. */
export async function observeEarlier(path: string): Promise<EarlierCniFile[]> {
  const [folder, own] = [dirname(path), Buffer.from(basename(path))];
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new Error(`CNI folder ${folder} cannot be read: ${error.message}`);
  });
  const names = entries
    .filter((entry) => !entry.isDirectory() && extensions.includes(extname(entry.name)))
    .map(({ name }) => Buffer.from(name))
    .filter((name) => name.compare(own) < 0)
    .sort(Buffer.compare);
  const files = await Promise.all(names.map((name) => readEarlier(folder, name.toString())));
  return files.flatMap((file) => file ?? []);
}

/** @returns undefined if it has gone meanwhile */
async function readEarlier(folder: string, name: string): Promise<EarlierCniFile | undefined> {
  const path = join(folder, name);
  try {
    const found = await stat(path);
    // A pipe would have us wait for whoever writes into it.
    if (!found.isFile()) throw new Error("it is no file");
    if (found.size > largest) throw new Error(`it has more than ${largest / 1e6} MB`);
    return { name, ...parse(await readFile(path, "utf8"), extname(name) === ".conflist") };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const dangling = code === "ENOENT" && (await readlink(path).catch(() => undefined));
    if (code === "ENOENT" && !dangling) return undefined;
    return { name, network: "", plugins: [], broken: dangling ? `${dangling} is not there` : message };
  }
}

function parse(content: string, isList: boolean): { network: string; plugins: CniPlugin[] } {
  const config = JSON.parse(content) as Partial<CniList & CniPlugin> | null;
  if (typeof config !== "object" || config === null) throw new Error("it holds no object");
  const plugins = isList ? config.plugins : [config as CniPlugin];
  if (!Array.isArray(plugins) || plugins.length === 0) throw new Error("it has no plugins");
  if (!plugins.every((plugin) => typeof plugin?.type === "string" && plugin.type !== ""))
    throw new Error("a plugin in it has no type");
  return { network: String(config.name ?? ""), plugins };
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
  let watched: number | undefined | null = null;
  const look = () => {
    const inode = statSync(folder, { throwIfNoEntry: false })?.ino;
    if (inode === watched) return;
    watcher?.close();
    watcher = undefined;
    try {
      if (inode !== undefined) watcher = watch(folder, told).on("error", () => undefined);
    } catch {
      // As long as this folder is there it would fail again.
    }
    if (watched !== null) changed();
    watched = inode;
  };
  const told = (_: string, name: string | null) => {
    if (name === null || extensions.includes(extname(name))) changed();
  };
  look();
  const timer = setInterval(look, lookAgain);
  timer.unref();
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    watcher?.close();
  });
}
