/**
 * The overlay's tests once more with kernel WireGuard: light nodes in a virtual machine with a stock Debian kernel, the control
 * plane outside. Every test of the guest is a test here, by the same name.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "./lab/cache.ts";
import { ControlPlane } from "./lab/controlplane.ts";
import { Vm } from "./lab/vm.ts";

const files = [...new Bun.Glob("test/overlay*.test.ts").scanSync(repository)].sort();

interface GuestTest {
  name: string;
  seconds: number;
  failed: boolean;
}

/** Runs test files in the guest; what they say goes to the console as it comes. */
async function runInGuest(files: string[]): Promise<{ code: number; tests: GuestTest[] }> {
  await using stack = new AsyncDisposableStack();
  const [vm, controlPlane] = await Promise.all([
    Vm.start({ log: console.log }).then((vm) => stack.use(vm)),
    ControlPlane.start().then((controlPlane) => stack.use(controlPlane)),
  ]);
  const access = join(vm.dir, "control-plane.json");
  const report = join(vm.dir, "junit.xml");
  await Bun.write(access, JSON.stringify(controlPlane.access));
  const { code } = await vm.exec(
    // A failure that takes long must not take all the time
    [
      process.execPath,
      "test",
      "--timeout=180000",
      "--reporter=junit",
      `--reporter-outfile=${report}`,
      ...files,
    ],
    {
      cwd: repository,
      env: { LAB_CONTROL_PLANE: access },
      timeout: 1500,
      onOutput: (text) => process.stdout.write(text),
    },
  );
  return { code, tests: parseReport(readFileSync(report, "utf8")) };
}

/** bun's JUnit report; a test that was skipped has shown nothing, so it counts as failed. */
function parseReport(xml: string): GuestTest[] {
  return [...xml.matchAll(/<testcase ([^>]*?)(\/>|>(.*?)<\/testcase>)/gs)].map(
    ([, attributes = "", , body = ""]) => {
      const attribute = (name: string) => new RegExp(`\\b${name}="([^"]*)"`).exec(attributes)?.[1] ?? "";
      return {
        name: unescapeXml(attribute("name")),
        seconds: Number(attribute("time")),
        failed: /<(failure|error|skipped)/.test(body),
      };
    },
  );
}

const unescapeXml = (text: string) =>
  text.replace(
    /&(lt|gt|quot|apos|amp);/g,
    (_, name: string) => ({ lt: "<", gt: ">", quot: '"', apos: "'" })[name] ?? "&",
  );

const { code, tests } = await runInGuest(files);

describe("kernel WireGuard", () => {
  test(`${tests.length} tests of ${files.length} files in the virtual machine`, () => {
    expect(tests.length).toBeGreaterThan(0);
    expect({ code, failed: tests.filter((each) => each.failed).length }).toEqual({ code: 0, failed: 0 });
  });
  for (const { name, seconds, failed } of tests)
    test(`${name} (${seconds.toFixed(1)} s)`, () => {
      if (failed) throw new Error("failed in the virtual machine; see above");
    });
});
