import { expect, test } from "bun:test";
import { withoutKlogFlags } from "./klog.ts";

test.each<[args: string[], rest: string[], flags: string[], logLevel: string | undefined]>([
  [[], [], [], undefined],
  [["agent", "--dry-run"], ["agent", "--dry-run"], [], undefined],
  // What Go's flag package takes: one dash or two, the value after = or, but for booleans, as the next argument.
  [["-v=0"], [], ["-v=0"], "info"],
  [["--v=2"], [], ["--v=2"], "info"],
  [["-v", "4"], [], ["-v 4"], "debug"],
  [["--v", "10"], [], ["--v 10"], "trace"],
  [["-v=5", "--kubeconfig", "/k"], ["--kubeconfig", "/k"], ["-v=5"], "trace"],
  // The last one counts.
  [["-v=9", "-v=1"], [], ["-v=9", "-v=1"], "info"],
  [["-v=x"], [], ["-v=x"], undefined],
  [["-v"], [], ["-v"], undefined],
  [
    ["-logtostderr", "--alsologtostderr=false", "-stderrthreshold", "INFO", "--vmodule=a=1,b=2"],
    [],
    ["-logtostderr", "--alsologtostderr=false", "-stderrthreshold INFO", "--vmodule=a=1,b=2"],
    undefined,
  ],
  [["-add_dir_header", "agent"], ["agent"], ["-add_dir_header"], undefined],
  [["-log_dir", "/var/log", "agent"], ["agent"], ["-log_dir /var/log"], undefined],
  [["-log-file=/x"], ["-log-file=/x"], [], undefined],
  [["--verbose"], ["--verbose"], [], undefined],
  // What comes after -- is no flag.
  [["--", "-v=4"], ["--", "-v=4"], [], undefined],
])("%j", (args, rest, flags, logLevel) => {
  expect(withoutKlogFlags(args)).toEqual({ args: rest, flags, logLevel });
});
