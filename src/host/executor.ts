/** The one seam to the node: who reads from it and who changes it is a parameter. Real, a dry run, or recorded in a test. */
import { readlink } from "node:fs/promises";
import type { Config } from "../config/config.ts";
import { $, type Command, eachLine, execute, type Step } from "./command.ts";
import { generation, listChains, type NftChain } from "./events/nfnetlink.ts";
import { readIfThere } from "./files.ts";

/** What is read of the node. Nothing of it changes anything. */
export interface Reader {
  /** The stdout of a command from a template. @throws CommandError */
  readonly $: typeof $;
  /** The stdout of a command. @throws CommandError */
  execute(command: Command): Promise<string>;
  /** Hands on a command's stdout line by line. @throws CommandError */
  readonly eachLine: typeof eachLine;
  /** A file's content; undefined if there is none. */
  readFile(path: string): Promise<string | undefined>;
  /** The chains of nf_tables; undefined where the kernel has none. */
  chains(): Promise<NftChain[] | undefined>;
  /** The number of nf_tables' generation, which every change of it makes another; undefined where it cannot be told. */
  generation(): number | undefined;
  /** What a symbolic link names; undefined if there is none. */
  readLink(path: string): Promise<string | undefined>;
}

/** Reads what is really there. */
export const nodeReader: Reader = {
  $,
  execute: (command) => execute(command),
  eachLine,
  chains: listChains,
  generation,
  readFile: readIfThere,
  readLink: (path) => readlink(path).catch(() => undefined),
};

export interface Executor extends Reader {
  /** Carries steps out in order; the first that fails ends it. */
  perform(steps: readonly Step[]): Promise<void>;
  createLink(name: string, mode: Config["wireguard"]): Promise<void>;
  /** Annotates the own Node; null takes an annotation away. */
  annotate(annotations: Record<string, string | null>): Promise<void>;
  /** Whether nothing is really done, so that a link that was created is not there to be seen. */
  readonly dry: boolean;
}

/**
 * Carries out one resource's steps, if there are any, and has them logged and counted.
 * @param what they do, as the log and the metrics name it
 * @param details for the log
 */
export type Perform = (what: string, steps: readonly Step[], details?: object) => Promise<void>;
