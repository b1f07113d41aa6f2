/** `npm test`: everything, on real parts, as root. Ends with the plain total. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ControlPlane } from "./lab/cluster/controlplane.ts";

/** Tests that run in one process, one file after the other. */
interface Group {
  name: string;
  files: string[];
  /** Whether it gets root's rights. */
  root?: boolean;
  /** One that its labs use one after the other; default: each its own. */
  controlPlane?: ControlPlane;
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
const others =
  /^test\/(lab|vm|wholenode|demo|release|scale|sizes|churn|claims-generated|manifests-server|restore)/;
const lightNodes = glob("test/**/*.test.ts").filter((file) => !others.test(file));

const results = [
  await group({ name: "unit", files: ["src"], root: false }),
  // What else the machine does would be in its figures.
  await group({ name: "scale", files: ["test/scale.test.ts", "test/sizes.test.ts"] }),
];
{
  await using stack = new AsyncDisposableStack();
  const [one, other] = await Promise.all([startControlPlane(stack), startControlPlane(stack)]);
  const half = Math.ceil(lightNodes.length / 2);
  results.push(
    ...(await sideBySide(
      [
        { name: "release", files: ["test/release.test.ts"] },
        // What needs more of a control plane than its address.
        { name: "control plane", files: ["test/lab"] },
        { name: "light nodes 1", files: lightNodes.slice(0, half), controlPlane: one },
      ],
      [
        { name: "whole nodes", files: [...glob("test/wholenode*.test.ts"), "test/demo.test.ts"] },
        { name: "manifests", files: ["test/manifests-server.test.ts"] },
      ],
      [
        // Which wait most of their time.
        {
          name: "churn",
          files: ["test/churn.test.ts", "test/claims-generated.test.ts", "test/restore.test.ts"],
        },
        { name: "light nodes 2", files: lightNodes.slice(half), controlPlane: other },
      ],
    )),
  );
}
// Two machines at a time, which fill both cores.
results.push(await group({ name: "virtual machines", files: ["test/vm.test.ts"] }));
rmSync(reports, { recursive: true });
for (const { name, passed, failed, seconds } of results)
  console.log(
    `${name.padEnd(16)} ${String(passed).padStart(5)} passed ${String(failed).padStart(4)} failed  ${seconds.toFixed(0)} s`,
  );
const sum = (key: "passed" | "failed") => results.reduce((total, result) => total + result[key], 0);
console.log(`${sum("passed")} passed, ${sum("failed")} failed`);
process.exit(sum("failed") === 0 ? 0 : 1);

function glob(pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync()].sort();
}

/** Each row's groups one after the other. */
async function sideBySide(...rows: Group[][]): Promise<Result[]> {
  const results: Result[] = [];
  await Promise.all(
    rows.map(async (row) => {
      for (const each of row) results.push(await group(each));
    }),
  );
  return results;
}

async function step(name: string, argv: string[]): Promise<void> {
  console.log(`${elapsed()}  ${name}`);
  if ((await Bun.spawn(argv, { stdin: "ignore", stdout: "inherit", stderr: "inherit" }).exited) === 0) return;
  fail(`${name} failed: ${argv.join(" ")}`);
}

async function startControlPlane(stack: AsyncDisposableStack): Promise<ControlPlane> {
  return stack.use(
    await ControlPlane.start().catch((error) => fail(`the light nodes' control plane: ${error.message}`)),
  );
}

/** Without which no test can tell anything. */
function fail(why: string): never {
  console.log(`${why}\n0 passed, 1 failed`);
  process.exit(1);
}

async function group({ name, files, root = true, controlPlane }: Group): Promise<Result> {
  const from = performance.now();
  const report = join(reports, `${name}.xml`);
  const access = join(reports, `${name}.json`);
  if (controlPlane) await Bun.write(access, JSON.stringify({ ...controlPlane.access, host: "127.0.0.1" }));
  const argv = [
    ...(root ? [] : ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]),
    "bun",
    "test",
    "--timeout",
    "120000",
    "--reporter=junit",
    `--reporter-outfile=${report}`,
    // Without the ./ it would be looked for among those of a plain `bun test`, which are in src alone.
    ...files.map((file) => `./${file}`),
  ];
  // Kubernetes' programs take a fifth less of the processor when they may take more memory.
  const env = { ...process.env, GOGC: "400", ...(controlPlane && { LAB_CONTROL_PLANE: access }) };
  const child = Bun.spawn(argv, { env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const output = Promise.all([child.stdout, child.stderr].map((stream) => forward(stream, name)));
  const code = await child.exited;
  // What a test has left behind, its fault, may hold the other end for good.
  await Promise.race([output, Bun.sleep(5_000)]);
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
