/** `npm test`: everything, on real parts, as root. Ends with the plain total. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Tests that run in one process, one file after the other. */
interface Group {
  name: string;
  files: string[];
  /** Whether it gets root's rights. */
  root?: boolean;
}

interface Result {
  name: string;
  passed: number;
  failed: number;
  seconds: number;
}

const begin = performance.now();
const elapsed = () => `${((performance.now() - begin) / 1000).toFixed(0).padStart(4)} s`;
const reports = mkdtempSync(join(tmpdir(), "wigglenet-test-"));

await step("tools and control plane", ["bun", "test/lab/install.ts"]);
await step("build", ["bun", "run", "build"]);
await step("check", ["bun", "run", "check"]);
await step("image", ["bun", "run", "image"]);

// All that has no other group, so that no new file is forgotten.
const lightNodes = [...new Bun.Glob("test/**/*.test.ts").scanSync()]
  .filter((file) => !/^test\/(vm|wholenode|demo|release|scale|churn)/.test(file))
  .sort();

// Side by side only where one waits most of its time: each of the others fills the machine's two cores by itself.
const results: Result[] = [];
for (const sideBySide of [
  [{ name: "unit", files: ["src"], root: false }],
  [
    { name: "light nodes", files: lightNodes },
    { name: "churn", files: ["test/churn.test.ts"] },
  ],
  [{ name: "whole nodes", files: ["test/wholenode", "test/demo"] }],
  [{ name: "release, scale", files: ["test/release.test.ts", "test/scale.test.ts"] }],
  [{ name: "virtual machines", files: ["test/vm.test.ts"] }],
])
  results.push(...(await Promise.all(sideBySide.map(group))));
rmSync(reports, { recursive: true });
for (const { name, passed, failed, seconds } of results)
  console.log(
    `${name.padEnd(16)} ${String(passed).padStart(5)} passed ${String(failed).padStart(4)} failed  ${seconds.toFixed(0)} s`,
  );
const sum = (key: "passed" | "failed") => results.reduce((total, result) => total + result[key], 0);
console.log(`${sum("passed")} passed, ${sum("failed")} failed`);
process.exit(sum("failed") === 0 ? 0 : 1);

async function step(name: string, argv: string[]): Promise<void> {
  console.log(`${elapsed()}  ${name}`);
  if ((await Bun.spawn(argv, { stdin: "ignore", stdout: "inherit", stderr: "inherit" }).exited) === 0) return;
  console.log(`${name} failed: ${argv.join(" ")}\n0 passed, 1 failed`);
  process.exit(1);
}

async function group({ name, files, root = true }: Group): Promise<Result> {
  const from = performance.now();
  const report = join(reports, `${name}.xml`);
  const argv = [
    ...(root ? [] : ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]),
    "bun",
    "test",
    "--timeout",
    "120000",
    "--reporter=junit",
    `--reporter-outfile=${report}`,
    ...files,
  ];
  const child = Bun.spawn(argv, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  await Promise.all([child.stdout, child.stderr].map((stream) => forward(stream, name)));
  const code = await child.exited;
  const { tests, failures } = totals(report);
  // A run that ended badly without a failed test has failed all the same.
  const failed = failures === 0 && (code !== 0 || tests === 0) ? 1 : failures;
  return { name, passed: tests - failures, failed, seconds: (performance.now() - from) / 1000 };
}

async function forward(stream: ReadableStream<Uint8Array>, name: string): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.trim() !== "") console.log(`${elapsed()}  ${name}: ${line}`);
  }
}

function totals(report: string): { tests: number; failures: number } {
  try {
    const [, tests = "0", failures = "0", skipped = "0"] =
      /<testsuites[^>]* tests="(\d+)"[^>]* failures="(\d+)" skipped="(\d+)"/.exec(
        readFileSync(report, "utf8"),
      ) ?? [];
    // A test that was skipped has shown nothing.
    return { tests: Number(tests), failures: Number(failures) + Number(skipped) };
  } catch {
    return { tests: 0, failures: 0 };
  }
}
