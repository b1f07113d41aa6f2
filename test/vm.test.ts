/**
 * The overlay's tests once more with kernel WireGuard, and the agent as a service of systemd: light nodes in virtual
 * machines with a stock Debian kernel, the control plane outside. Every test of a guest is a test here, by the same name.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository } from "./lab/cache.ts";
import { ControlPlane } from "./lab/cluster/controlplane.ts";
import { nextBuild } from "./lab/cluster/nextbuild.ts";
import { Vm } from "./lab/kernel/vm.ts";

/** Of the rest of the tests, those that ask for the kernel's WireGuard or rp_filter, its flow tables, IPVS, or systemd. */
const guests: Guest[][] = [
  [
    {
      runs: [
        { files: [...new Bun.Glob("test/overlay*.test.ts").scanSync(repository)].sort(), only: "" },
        { files: ["test/upgrade.test.ts"], only: "to the next version and back" },
        { files: ["test/churn.test.ts"], only: "killed twenty times" },
        { files: ["test/edges.test.ts"], only: "behind a port of the node" },
      ],
    },
  ],
  [
    {
      runs: [
        { files: ["test/flowtable.test.ts"], only: "" },
        { files: ["test/vm-ipvs.test.ts"], only: "" },
        { files: ["test/vm-systemd.test.ts"], only: "" },
      ],
    },
    { kernelArguments: ["ipv6.disable=1"], runs: [{ files: ["test/vm-ipv4.test.ts"], only: "" }] },
  ],
];

interface Guest {
  kernelArguments?: string[];
  /** One after the other. */
  runs: Run[];
}

interface Run {
  files: string[];
  /** Words of the names of the tests that are meant; empty: all. */
  only: string;
}

interface GuestTest {
  name: string;
  seconds: number;
  failed: boolean;
}

/** Runs test files in a guest; what they say goes to the console as it comes. */
async function runInGuest({ runs, ...options }: Guest): Promise<{ codes: number[]; tests: GuestTest[] }> {
  await using stack = new AsyncDisposableStack();
  const [vm, controlPlane] = await Promise.all([
    Vm.start({ log: console.log, ...options }).then((vm) => stack.use(vm)),
    ControlPlane.start().then((controlPlane) => stack.use(controlPlane)),
  ]);
  const access = join(vm.dir, "control-plane.json");
  await Bun.write(access, JSON.stringify(controlPlane.access));
  const codes: number[] = [];
  const tests: GuestTest[] = [];
  for (const [index, { files, only }] of runs.entries()) {
    const report = join(vm.dir, `junit-${index}.xml`);
    const flags = ["--reporter=junit", `--reporter-outfile=${report}`, ...(only ? ["-t", only] : [])];
    // Of tests that name no limit of their own
    const { code } = await vm.exec(
      [process.execPath, "test", "--timeout=180000", ...flags, ...files.map((file) => `./${file}`)],
      {
        cwd: repository,
        env: { LAB_CONTROL_PLANE: access, LAB_PATIENCE: "5" },
        timeout: 1200,
        onOutput: (text) => process.stdout.write(text),
      },
    );
    codes.push(code);
    tests.push(...parseReport(readFileSync(report, "utf8"), only !== ""));
  }
  return { codes, tests };
}

/** bun's JUnit report. A test that was skipped has shown nothing, so it failed, unless it was not asked for. */
function parseReport(xml: string, chosen: boolean): GuestTest[] {
  return [...xml.matchAll(/<testcase ([^>]*?)(\/>|>(.*?)<\/testcase>)/gs)].flatMap(
    ([, attributes = "", , body = ""]) => {
      if (chosen && body.includes("<skipped")) return [];
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

// What a guest would take minutes for.
await nextBuild();
// Two at a time, as each fills one processor.
const results = (
  await Promise.all(
    guests.map(async (row) => {
      const done = [];
      for (const guest of row) done.push(await runInGuest(guest));
      return done;
    }),
  )
).flat();
const codes = results.flatMap((result) => result.codes);
const tests = results.flatMap((result) => result.tests);

describe("kernel WireGuard", () => {
  test(`${tests.length} tests in virtual machines`, () => {
    expect(tests.length).toBeGreaterThan(codes.length);
    expect({ codes, failed: tests.filter((each) => each.failed).length }).toEqual({
      codes: guests.flat().flatMap(({ runs }) => runs.map(() => 0)),
      failed: 0,
    });
  });
  for (const { name, seconds, failed } of tests)
    test(`${name} (${seconds.toFixed(1)} s)`, () => {
      if (failed) throw new Error("failed in the virtual machine; see above");
    });
});
