/** The command line of the Go implementation, which has the flags of klog and no others. */

/** Those that take a value; the next argument may be it. */
const withValue = new Set([
  "v",
  "vmodule",
  "stderrthreshold",
  "log_backtrace_at",
  "log_dir",
  "log_file",
  "log_file_max_size",
]);
const booleans = new Set([
  "logtostderr",
  "alsologtostderr",
  "legacy_stderr_threshold_behavior",
  "one_output",
  "add_dir_header",
  "skip_headers",
  "skip_log_headers",
]);

export interface KlogFlags {
  /** What is left of the arguments. */
  args: string[];
  /** The flags that were taken out, each with its value. */
  flags: string[];
  /** What `-v` comes to as a LOG_LEVEL; undefined without one that is a number. */
  logLevel: string | undefined;
}

/** Takes klog's flags out of a command line, in any form that Go's flag package knows. */
export function withoutKlogFlags(argv: readonly string[]): KlogFlags {
  const end = argv.includes("--") ? argv.indexOf("--") : argv.length;
  const args: string[] = [];
  const flags: string[] = [];
  let verbosity: string | undefined;
  for (let index = 0; index < end; index += 1) {
    const argument = argv[index]!;
    const [, name = "", equals, given] = /^--?(\w+)(=(.*))?$/s.exec(argument) ?? [];
    if (!withValue.has(name) && !booleans.has(name)) {
      args.push(argument);
      continue;
    }
    const next = withValue.has(name) && equals === undefined && index + 1 < end ? argv[++index] : undefined;
    flags.push(next === undefined ? argument : `${argument} ${next}`);
    if (name === "v") verbosity = given ?? next;
  }
  return { args: [...args, ...argv.slice(end)], flags, logLevel: levelOf(verbosity) };
}

/** By the conventions of Kubernetes: up to 3 is for operators, 4 for debugging, 5 and more traces. */
function levelOf(verbosity: string | undefined): string | undefined {
  if (!/^\d+$/.test(verbosity ?? "")) return undefined;
  const number = Number(verbosity);
  return number <= 3 ? "info" : number === 4 ? "debug" : "trace";
}
