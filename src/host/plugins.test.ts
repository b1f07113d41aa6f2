import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pino from "pino";
import { cniPlugins, compare, installPlugins, parseVersion } from "./plugins.ts";

let dir: string;
let source: string;
let target: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "wigglenet-plugins-"));
  [source, target] = [join(dir, "source"), join(dir, "target")];
  for (const folder of [source, target]) mkdirSync(folder);
  for (const name of cniPlugins) putPlugin(source, name, "v1.9.1");
});

afterEach(() => rmSync(dir, { recursive: true }));

/** As the real ones do, on stderr. */
function putPlugin(folder: string, name: string, version: string): string {
  const path = join(folder, name);
  const lines = [`CNI ${name} plugin ${version}`, "CNI protocol versions supported: 1.0.0, 1.1.0"];
  writeFileSync(path, `#!/bin/sh\n${lines.map((line) => `echo '${line}' >&2`).join("\n")}\n`);
  chmodSync(path, 0o755);
  return readFileSync(path, "utf8");
}

async function install(): Promise<Record<string, string | number>[]> {
  const lines: string[] = [];
  const log = pino({ base: null }, { write: (line) => lines.push(line) });
  await installPlugins({ source, target, dry: false }, log);
  return lines.map((line) => JSON.parse(line));
}

const texts = () =>
  Object.fromEntries(readdirSync(target).map((name) => [name, readFileSync(join(target, name), "utf8")]));

test("an empty folder gets every plugin, and the second time nothing", async () => {
  const first = await install();
  expect(first.map(({ plugin, msg, version }) => [plugin, msg, version])).toEqual(
    cniPlugins.map((name) => [name, "plugin installed", "1.9.1"]),
  );
  expect(Object.keys(texts()).sort()).toEqual(cniPlugins);
  for (const name of cniPlugins) {
    const run = Bun.spawnSync([join(target, name)]);
    expect(run.stderr.toString()).toContain(`CNI ${name} plugin v1.9.1`);
  }
  const again = await install();
  expect(again.map(({ msg, found }) => [msg, found])).toEqual(
    cniPlugins.map(() => ["plugin is there already", "1.9.1"]),
  );
});

test("of those that are there only older ones are replaced", async () => {
  putPlugin(target, "ptp", "v1.9.0");
  const newer = putPlugin(target, "portmap", "v1.10.0");
  const untold = putPlugin(target, "bandwidth", "version unknown");
  symlinkSync("/nowhere/host-local", join(target, "host-local"));
  writeFileSync(join(target, "loopback"), "not a program");
  writeFileSync(join(target, "calico"), "somebody else's");
  const lines = await install();
  expect(
    Object.fromEntries(lines.map(({ plugin, level, found, msg }) => [plugin, [level, found, msg]])),
  ).toEqual({
    ptp: [30, "1.9.0", "plugin replaced: the one that was there is older"],
    portmap: [30, "1.10.0", "plugin left as it is: it is newer"],
    ...Object.fromEntries(
      ["bandwidth", "host-local", "loopback"].map((name) => [
        name,
        [40, "unknown", "plugin left as it is: it tells no version; remove it to have this one installed"],
      ]),
    ),
  });
  rmSync(join(target, "host-local"));
  expect(texts()).toEqual({
    ptp: readFileSync(join(source, "ptp"), "utf8"),
    portmap: newer,
    bandwidth: untold,
    loopback: "not a program",
    calico: "somebody else's",
  });
});

test("a plugin that runs meanwhile goes on with its own file", async () => {
  putPlugin(target, "ptp", "v1.0.0");
  const open = Bun.file(join(target, "ptp"));
  const before = await open.stat();
  await install();
  expect((await open.stat()).ino).not.toBe(before.ino);
});

describe("what cannot be done is said", () => {
  test("no target folder", async () => {
    target = join(dir, "absent");
    await expect(install()).rejects.toThrow(
      `--target ${target}: no such folder: create it, or mount the node's /opt/cni/bin there`,
    );
  });

  test("a source without a plugin", async () => {
    rmSync(join(source, "ptp"));
    await expect(install()).rejects.toThrow(
      `--source ${source} has no plugin ptp: the image has them in /usr/lib/cni`,
    );
  });
});

test.each([
  ["CNI ptp plugin v1.9.1\nCNI protocol versions supported: 1.1.0\n", "1.9.1"],
  ["CNI host-local plugin v0.8.10\n", "0.8.10"],
  ["CNI ptp plugin version unknown\n", "unknown"],
  ["CNI ptp plugin v1.2.0-rc1\n", "unknown"],
  ["", "unknown"],
])("version in %j", (said, version) => {
  expect(parseVersion(said)).toBe(version);
});

test.each([
  ["1.9.1", undefined, "missing"],
  ["1.9.1", "1.9.0", "older"],
  ["1.10.0", "1.9.0", "older"],
  ["1.9.1", "1.9.1", "same"],
  ["1.9.1", "1.10.0", "newer"],
  ["1.9.1", "unknown", "unknown"],
  ["unknown", "1.0.0", "unknown"],
] as const)("%p offered, %p there: %s", (offered, present, verdict) => {
  expect(compare({ name: "ptp", offered, present })).toBe(verdict);
});
