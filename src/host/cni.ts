/** The CNI file, which the container runtime reads, and the gate that pods wait at until the agent is in sync. */
import { basename, join } from "node:path";
import { type CniList, gatePath, isGated, mergeCniList, parseCniList } from "../plan/cni.ts";
import { type Step, whyNot } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import type { Resource } from "./resource.ts";

export interface ObservedCni {
  /** Where it is a symbolic link: what that names. */
  target: string | undefined;
  content: string | undefined;
  /** What the gate holds; it is open if that is empty. */
  gate: string | undefined;
  /** Whether version 1.0.0 left its copy. */
  stale: boolean;
}

/** Version 1.0.0 had the content here, and a symbolic link to it in the folder that the runtime reads. */
function stalePath(path: string): string {
  return join("/run/wigglenet", basename(path));
}

/** @param path of the CNI file */
export async function observeCni(reader: Reader, path: string): Promise<ObservedCni> {
  const [target, content, gate, stale] = await Promise.all([
    reader.readLink(path),
    reader.readFile(path),
    reader.readFile(gatePath),
    reader.readFile(stalePath(path)),
  ]);
  return { target, content, gate, stale: stale !== undefined };
}

/**
 * Writes the file if it says anything else than it should, in whatever order and spacing, and opens the gate. Plugins of
 * others in it are kept.
 * @param desired undefined: pods are not ours to connect; a file that is not ours stays where it is
 */
export function diffCni(path: string, desired: CniList | undefined, observed: ObservedCni): Step[] {
  const present = parseCniList(observed.content);
  const stale: Step[] = observed.stale ? [{ kind: "remove", path: stalePath(path) }] : [];
  if (desired === undefined) {
    const ours = observed.target === stalePath(path) || isGated(present);
    return [
      ...(ours ? [{ kind: "remove" as const, path }] : []),
      ...(observed.gate === undefined ? [] : [{ kind: "remove" as const, path: gatePath }]),
      ...stale,
    ];
  }
  const merged = mergeCniList(desired, present);
  const right = observed.target === undefined && Bun.deepEquals(present, merged);
  const write: Step[] = right
    ? []
    : [{ kind: "write", path, content: `${JSON.stringify(merged, null, 2)}\n`, mode: 0o644 }];
  const open: Step[] =
    observed.gate === "" ? [] : [{ kind: "write", path: gatePath, content: "", mode: 0o644 }];
  // A file that pods do not wait at lets them start until it is replaced, and its successor has to as well. Behind a closed
  // gate lies what an earlier boot wrote, with the pod CIDRs of then.
  return [...(isGated(present) ? [...write, ...open] : [...open, ...write]), ...stale];
}

/** The types of the plugins that others have chained to ours. */
export function chainedBy(desired: CniList, observed: ObservedCni): string[] {
  const own = desired.plugins.map(({ type }) => type);
  const { plugins } = mergeCniList(desired, parseCniList(observed.content));
  return plugins.map(({ type }) => type).filter((type) => !own.includes(type));
}

/**
 * Brings the file up to date and opens the gate, by `perform`, which gets what to log with it too.
 * @param mayStart whether pods may; a gate that is open stays open
 */
async function applyCni(
  reader: Reader,
  path: string,
  desired: CniList,
  mayStart: boolean,
  perform: (steps: Step[], details: object) => Promise<void>,
): Promise<void> {
  const observed = await observeCni(reader, path);
  const chained = chainedBy(desired, observed);
  try {
    const steps = diffCni(path, desired, observed).filter(
      (step) => mayStart || !(step.kind === "write" && step.path === gatePath),
    );
    await perform(steps, chained.length > 0 ? { chained } : {});
  } catch (error) {
    throw new Error(
      `${path} or ${gatePath} cannot be written: ${whyNot(error)}; or set CNI_CONFIG_PATH to where the container runtime reads`,
    );
  }
}

/** What a desired state says of pods: undefined if they are not ours to connect, or if there are no pod CIDRs yet. */
interface DesiredCni {
  cni: CniList | undefined;
}

export class CniFile implements Resource<DesiredCni> {
  readonly #reader: Reader;
  readonly #path: string;
  readonly #mayStart: () => boolean;
  readonly #perform: Perform;

  /** @param mayStart whether pods may start */
  constructor(reader: Reader, path: string, mayStart: () => boolean, perform: Perform) {
    this.#reader = reader;
    this.#path = path;
    this.#mayStart = mayStart;
    this.#perform = perform;
  }

  /** Nothing is kept here: to read it costs next to nothing. */
  invalidate(): void {}

  async add({ cni }: DesiredCni): Promise<void> {
    if (cni === undefined) return;
    const perform = (steps: Step[], details: object) => this.#perform("CNI file", steps, details);
    await applyCni(this.#reader, this.#path, cni, this.#mayStart(), perform);
  }

  /** Of an earlier configuration, in which this plugin connected the node's pods. */
  async remove(): Promise<void> {
    const steps = diffCni(this.#path, undefined, await observeCni(this.#reader, this.#path));
    await this.#perform("CNI file removed", steps);
  }
}
