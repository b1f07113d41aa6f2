import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cniList, gatePath } from "../plan/cni.ts";
import { podRange } from "../plan/podcidr/ranges.ts";
import { chainedBy, diffCni, type ObservedCni, observeCni } from "./cni.ts";
import type { Step } from "./command.ts";
import { nodeReader } from "./executor.ts";

const path = "/etc/cni/net.d/10-wigglenet.conflist";
/** Where version 1.0.0 had the content. */
const linked = "/run/wigglenet/10-wigglenet.conflist";
const own = cniList([podRange("10.1.0.0/24", [])], 1420);
const [ptp, portmap] = own.plugins;
const text = (list: object) => `${JSON.stringify(list, null, 2)}\n`;
const write: Step = { kind: "write", path, content: text(own), mode: 0o644 };
const open: Step = { kind: "write", path: gatePath, content: "", mode: 0o644 };
const remove = (path: string): Step => ({ kind: "remove", path });

const nothing: ObservedCni = { target: undefined, content: undefined, gate: undefined, stale: false };
const right: ObservedCni = { ...nothing, content: text(own), gate: "" };
const ungated = text({
  ...own,
  cniVersion: "0.3.1",
  plugins: [{ type: "ptp", ipam: { resolvConf: "" } }, portmap],
});

test.each<[title: string, observed: ObservedCni, steps: Step[]]>([
  ["as it should be", right, []],
  [
    "in another order and spacing",
    { ...right, content: JSON.stringify(Object.fromEntries(Object.entries(own).reverse())) },
    [],
  ],
  ["nothing there", nothing, [open, write]],
  ["another content", { ...right, content: text({ ...own, name: "other" }) }, [write]],
  // openshift-ansible#11409: what an earlier boot wrote must not let pods in before it is right.
  ["after a reboot", { ...right, gate: undefined }, [open]],
  [
    "after a reboot, with other pod CIDRs",
    { ...right, content: text({ ...own, plugins: [{ ...ptp, mtu: 1 }, portmap] }), gate: undefined },
    [write, open],
  ],
  // And pods do not wait at one that replaces a file at which they did not.
  ["0.7's", { ...nothing, content: ungated }, [open, write]],
  ["1.0.0's", { ...nothing, target: linked, content: ungated, stale: true }, [open, write, remove(linked)]],
  ["1.0.0's, after a reboot", { ...nothing, target: linked }, [open, write]],
  ["1.0.0's, replaced when something was chained", { ...right, stale: true }, [remove(linked)]],
  ["a link to the right content", { ...right, target: "/elsewhere" }, [write]],
  ["a gate with something in it", { ...right, gate: "nameserver 192.0.2.1\n" }, [open]],
  ["broken", { ...right, content: "{" }, [write]],
])("%s", (_, observed, steps) => {
  expect(diffCni(path, own, observed)).toEqual(steps);
});

test.each<[title: string, observed: ObservedCni, steps: Step[]]>([
  ["nothing there", nothing, []],
  ["ours", right, [remove(path), remove(gatePath)]],
  ["ours, from before a reboot", { ...right, gate: undefined }, [remove(path)]],
  ["1.0.0's", { ...nothing, target: linked, content: ungated, stale: true }, [remove(path), remove(linked)]],
  ["1.0.0's, from before a reboot", { ...nothing, target: linked }, [remove(path)]],
  ["another's", { ...nothing, content: ungated }, []],
  ["another's link", { ...nothing, target: "/elsewhere", content: "x" }, []],
  ["another's, where ours was", { ...nothing, content: "x", gate: "" }, [remove(gatePath)]],
])("none wanted: %s", (_, observed, steps) => {
  expect(diffCni(path, undefined, observed)).toEqual(steps);
});

test("what others have chained", () => {
  const content = text({ ...own, plugins: [ptp, { type: "tuning" }, portmap, { type: "istio-cni" }] });
  expect(chainedBy(own, { ...right, content })).toEqual(["tuning", "istio-cni"]);
  expect(chainedBy(own, nothing)).toEqual([]);
});

describe("observed", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "wigglenet-cni-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));
  const at = (name: string) => join(folder, name);

  test.each<[title: string, prepare: () => void, target: string | undefined, content: string | undefined]>([
    ["nothing", () => undefined, undefined, undefined],
    ["a file", () => writeFileSync(at("cni"), "x"), undefined, "x"],
    ["a link that leads nowhere", () => symlinkSync("/nowhere/cni", at("cni")), "/nowhere/cni", undefined],
    [
      "a link to a file",
      () => {
        writeFileSync(at("there"), "x");
        symlinkSync("there", at("cni"));
      },
      "there",
      "x",
    ],
  ])("%s", async (_, prepare, target, content) => {
    prepare();
    expect(await observeCni(nodeReader, at("cni"))).toMatchObject({ target, content });
  });

  test("a folder in its place is an error that names it", async () => {
    await expect(observeCni(nodeReader, folder)).rejects.toThrow(`${folder} cannot be read: EISDIR`);
  });
});
