/**
 * The one place that spawns processes and writes files. What is to be done is plain data (`Step`) before it is
 * done, so that the same list can be run, printed (`--dry-run`) or compared in a test.
 */
import { copyFile, link, mkdir, open, rename, unlink, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { shorten } from "../report/shorten.ts";

/** A process to run: argv, and what it reads on stdin. */
export interface Command {
  kind: "run";
  argv: string[];
  stdin?: string;
}

export type Step =
  | Command
  /** Written to a temporary file, synced, and renamed over `path`; `mode` as for chmod. */
  | { kind: "write"; path: string; content: string; mode: number }
  /** A copy of the file `from`, as `write` writes; the folder of `path` is there. */
  | { kind: "copy"; path: string; from: string; mode: number }
  /** A file, or a symbolic link itself, taken away. */
  | { kind: "remove"; path: string }
  /** A value written to an existing file under /proc/sys, in place. */
  | { kind: "sysctl"; path: string; value: string };

type Word = string | number | readonly string[];

/** How a process ended: with a code, by a signal, or by ours because it took too long (milliseconds). */
type Ending = { exitCode: number } | { signal: string } | { timeLimit: number };

/**
 * A failed command. Its message is one line of at most some 1,200 characters, whatever was run and said: the beginning of
 * argv, how it ended, and the first lines of stderr.
 */
export class CommandError extends Error {
  /** All of it. */
  readonly stderr: string;
  constructor(argv: string[], output: Ending & { stderr: string }) {
    const said = firstLines(output.stderr);
    const ended =
      "timeLimit" in output
        ? `timed out after ${output.timeLimit / 1_000} s`
        : "signal" in output
          ? `ended by ${output.signal}`
          : `exit code ${output.exitCode}`;
    const nothing = "exitCode" in output ? ": it said nothing" : "";
    super(`${shorten(printable(argv), 200)}: ${ended}${said ? `: ${said}` : nothing}`);
    this.stderr = output.stderr;
  }
}

const mostLines = 4;

function firstLines(text: string): string {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    // nft underlines what it does not understand, in lines of their own.
    .filter((line) => /[^\s^~]/.test(line));
  const said = lines.slice(0, mostLines).map((line) => shorten(line, 200));
  const more = lines.length - said.length;
  return `${said.join("; ")}${more > 0 ? ` (and ${more} more line${more > 1 ? "s" : ""})` : ""}`;
}

/** A command from a template: split at white space; an interpolated value is one argument, an array that many. */
export function command(pieces: TemplateStringsArray, ...words: Word[]): Command {
  return { kind: "run", argv: argvOf(pieces, words) };
}

/** Runs a command from a template and gives its stdout. */
export function $(pieces: TemplateStringsArray, ...words: Word[]): Promise<string> {
  return execute({ kind: "run", argv: argvOf(pieces, words) });
}

/** A command that reads `lines` from stdin, one a line, or none at all for no lines. */
export function batch(argv: string[], lines: readonly string[]): Command[] {
  return lines.length === 0 ? [] : [{ kind: "run", argv, stdin: `${lines.join("\n")}\n` }];
}

const timeLimit = 60_000;

/**
 * Runs one command, without a shell; throws `CommandError` if it does not exit with 0. What it reads on stdin is a file in
 * memory: nft before 1.0 and wg open /dev/stdin, which a pipe that is a socket does not allow, and one that ends
 * without having read it all does no harm.
 * @param limit milliseconds after which it is killed
 */
export async function execute(command: Command, limit = timeLimit): Promise<string> {
  return (await run(command, limit)).stdout;
}

/** Runs one command and gives its stderr, where it may speak though it ends well. Throws as `execute` does. */
export async function stderrOf(command: Command): Promise<string> {
  return (await run(command, timeLimit)).stderr;
}

async function run({ argv, stdin }: Command, limit: number) {
  const begin = performance.now();
  const child = start(argv, stdin, limit);
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  throwIfFailed(child, { argv, stderr, begin, limit });
  return { pid: child.pid, stdout, stderr };
}

/** Runs one command and hands on its stdout line by line, without ever holding the whole of it. */
export async function eachLine(
  argv: string[],
  onLine: (line: string) => void,
  stdin?: string,
): Promise<void> {
  const begin = performance.now();
  const child = start(argv, stdin, timeLimit);
  const decoder = new TextDecoder();
  let rest = "";
  const read = async () => {
    for await (const chunk of child.stdout) {
      const pieces = (rest + decoder.decode(chunk, { stream: true })).split("\n");
      rest = pieces.pop() ?? "";
      for (const piece of pieces) onLine(piece);
    }
  };
  const [stderr] = await Promise.all([child.stderr.text(), read(), child.exited]);
  if (rest !== "") onLine(rest);
  throwIfFailed(child, { argv, stderr, begin, limit: timeLimit });
}

function throwIfFailed(
  { exitCode, signalCode }: Bun.Subprocess,
  { argv, stderr, begin, limit }: { argv: string[]; stderr: string; begin: number; limit: number },
): void {
  if (exitCode === 0) return;
  if (performance.now() - begin >= limit) throw new CommandError(argv, { timeLimit: limit, stderr });
  if (exitCode === null) throw new CommandError(argv, { signal: String(signalCode), stderr });
  throw new CommandError(argv, { exitCode, stderr });
}

function start(argv: string[], stdin: string | undefined, limit: number) {
  try {
    return Bun.spawn(argv, {
      // One that is left open makes a program that reads it wait.
      stdin: stdin === undefined ? "ignore" : Buffer.from(stdin),
      stdout: "pipe",
      stderr: "pipe",
      timeout: limit,
      // One that hangs may not listen to anything less.
      killSignal: "SIGKILL",
      env: process.env,
    });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    throw new CommandError(argv, { exitCode: 127, stderr: `cannot start ${argv[0]}` });
  }
}

/**
 * Carries steps out in order and stops at the first that fails.
 * @returns the process IDs of the programs that were run
 */
export async function perform(steps: readonly Step[]): Promise<number[]> {
  const pids: number[] = [];
  for (const step of steps) {
    switch (step.kind) {
      case "run":
        pids.push((await run(step, timeLimit)).pid);
        break;
      case "write":
        await put(step.path, step.mode, holding(step.content, step.mode));
        break;
      case "copy":
        await put(step.path, step.mode, (draft) => copyFile(step.from, draft));
        break;
      case "remove":
        await unlink(step.path);
        break;
      case "sysctl":
        await Bun.write(step.path, step.value);
        break;
    }
  }
  return pids;
}

/** Creates a file with its content on disk, atomically; a file that is already there is left and is an error. */
export async function createExclusively(path: string, content: string, mode: number): Promise<void> {
  await put(path, mode, holding(content, mode), link);
}

/** Why a file could not be written, and what would help, for the end of a message. */
export function whyNot(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
      return "no space is left there: free some";
    case "EROFS":
      return "it is mounted read-only: mount it writable";
    case "EACCES":
    case "EPERM":
      return `no right to write there (${code}): run as its owner, with the folder mounted writable`;
    default:
      return message;
  }
}

/** A step as one could paste it into a shell. */
export function printStep(step: Step): string {
  switch (step.kind) {
    case "run":
      return step.stdin === undefined
        ? printable(step.argv)
        : `${printable(step.argv)} <<'END'\n${step.stdin.trimEnd()}\nEND`;
    case "write":
      if (step.content === "")
        return `install -D -m ${step.mode.toString(8).padStart(4, "0")} /dev/null ${quoted(step.path)}`;
      return `install -D -m ${step.mode.toString(8).padStart(4, "0")} /dev/stdin ${quoted(step.path)} <<'END'\n${step.content.trimEnd()}\nEND`;
    case "copy":
      return `install -m ${step.mode.toString(8).padStart(4, "0")} ${quoted(step.from)} ${quoted(step.path)}`;
    case "remove":
      return `rm ${quoted(step.path)}`;
    case "sysctl":
      return `echo ${quoted(step.value)} > ${quoted(step.path)}`;
  }
}

/** A step in one line of the log. */
export function summary(step: Step): string {
  const text =
    step.kind === "run"
      ? [
          ...step.argv,
          ...(step.stdin === undefined ? [] : ["<<", step.stdin.trim().replaceAll("\n", "; ")]),
        ].join(" ")
      : `${step.kind} ${step.path}`;
  return shorten(text, 300);
}

function argvOf(pieces: TemplateStringsArray, words: readonly Word[]): string[] {
  const argv: string[] = [];
  pieces.forEach((piece, index) => {
    argv.push(...piece.split(/\s+/).filter((word) => word !== ""));
    const word = words[index];
    if (Array.isArray(word)) argv.push(...word);
    else if (word !== undefined) argv.push(String(word));
  });
  return argv;
}

/**
 * Makes a file beside `path`, on disk, and then puts it there: by rename, or by link where nothing is to be replaced. None is
 * left if that fails: on a disk that is full it would be in the way.
 */
async function put(
  path: string,
  mode: number,
  fill: (draft: string) => Promise<void>,
  by = rename,
): Promise<void> {
  const draft = temporary(path);
  const remove = () => unlink(draft).catch(() => undefined);
  await remove();
  try {
    await fill(draft);
    const file = await open(draft, "r");
    try {
      await file.chmod(mode);
      await file.sync();
    } finally {
      await file.close();
    }
    await by(draft, path);
  } finally {
    await remove();
  }
  await syncDirectory(path);
}

/** Fills a draft, in a folder that is made if there is none. No one else can read a key, not even while it is written. */
const holding = (content: string, mode: number) => async (draft: string) => {
  await mkdir(dirname(draft), { recursive: true });
  await writeFile(draft, content, { mode, flag: "wx" });
};

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(dirname(path), "r");
  await directory.sync().finally(() => directory.close());
}

// CNI runtimes read every *.conf, *.conflist and *.json: a draft must not look like one.
function temporary(path: string): string {
  return `${path}.wigglenet-tmp`;
}

function printable(argv: readonly string[]): string {
  return argv.map(quoted).join(" ");
}

function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
