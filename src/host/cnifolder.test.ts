import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type CniPlugin, cniList } from "../plan/cni.ts";
import { podRange } from "../plan/podcidr/ranges.ts";
import { type EarlierCniFile, judgeEarlier, observeEarlier, watchCniFolder } from "./cnifolder.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "wigglenet-cnifolder-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);

describe("files that come before ours", () => {
  const list = JSON.stringify({ name: "n", plugins: [{ type: "t" }] });
  const one = JSON.stringify({ name: "n", type: "t" });
  const good = { network: "n" };
  const made = (name: string) => {
    writeFileSync(at(name), "");
    return at(name);
  };
  const inFolder = (content: object) => {
    writeFileSync(at("05-x.conflist"), JSON.stringify(content));
    mkdirSync(at("n"));
    writeFileSync(at("n/1.conf"), '{ "type": "t" }');
    writeFileSync(at("n/2.conflist"), "");
  };
  test.each<[name: string, content: string | (() => void), found: object | undefined]>([
    ["10-containerd-net.conflist", list, good],
    ["10-wigglenet.conf", one, good],
    ["05-x.json", one, good],
    [".x.conf", one, good],
    // In Go all from the last dot on is the extension, also where that is all of the name.
    [".conflist", list, good],
    [".conf", one, good],
    ["..json", one, good],
    ["05-x.conf.conflist", list, good],
    ["05-x.CONFLIST", list, undefined],
    ["05-x.conflist ", list, undefined],
    // By bytes, as Go sorts: a capital letter comes before a small one, and a digit after a hyphen.
    ["10-Z.conflist", list, good],
    ["100-crio-bridge.conflist", list, undefined],
    ["10-wigglenet.conflist", list, undefined],
    ["10-wigglenet.conflist.bak", list, undefined],
    ["10-ä.conflist", list, undefined],
    ["87-podman.conflist", list, undefined],
    ["05-x.conflist.tmp", list, undefined],
    ["05-x", list, undefined],
    ["05-folder.conf", () => mkdirSync(at("05-folder.conf")), undefined],
    ["05-x.conflist", "", { broken: expect.stringContaining("JSON") }],
    ["05-x.conf", "null", { broken: "it holds no object" }],
    ["05-x.conf", '"x"', { broken: "it holds no object" }],
    ["05-x.conf", list, { broken: "a plugin in it has no type" }],
    ["05-x.json", '{ "type": "" }', { broken: "a plugin in it has no type" }],
    ["05-x.conflist", one, { broken: "it has no plugins" }],
    ["05-x.conflist", '{ "plugins": [] }', { broken: "it has no plugins" }],
    ["05-x.conflist", '{ "plugins": {} }', { broken: "it has no plugins" }],
    ["05-x.conflist", '{ "plugins": [null] }', { broken: "a plugin in it has no type" }],
    ["05-x.conflist", `\uFEFF${list}`, { broken: expect.stringContaining("JSON") }],
    ["05-x.conflist", `${list} x`, { broken: expect.stringContaining("JSON") }],
    ["05-x.conflist", '{ "plugins": [{ "type": "t" }] }', { broken: "it has no name" }],
    ["05-x.conflist", '{ "name": 5, "plugins": [{ "type": "t" }] }', { broken: "it has no name" }],
    ["05-x.conf", '{ "type": "t" }', { network: "", plugins: [{ type: "t" }] }],
    ["05-x.conflist", " ".repeat(1_000_001), { broken: "it has more than 1 MB" }],
    [
      "05-x.conflist",
      () => truncateSync(made("05-x.conflist"), 2 ** 42),
      { broken: "it has more than 1 MB" },
    ],
    [
      "05-x.conf",
      () => symlinkSync("05-x.conf", at("05-x.conf")),
      { broken: expect.stringContaining("ELOOP") },
    ],
    ["05-x.conf", () => symlinkSync("/dev/zero", at("05-x.conf")), { broken: "it is no file" }],
    // What not even root may read.
    [
      "05-x.conf",
      () => symlinkSync("/proc/sys/net/ipv4/route/flush", at("05-x.conf")),
      { unreadable: "EACCES" },
    ],
    // Since libcni 1.3 the plugins of a network may be in a folder of its name.
    ["05-x.conflist", '{ "name": "n" }', { broken: "it has no plugins" }],
    ["05-x.conflist", () => inFolder({ name: "n" }), { network: "n", plugins: [{ type: "t" }] }],
    [
      "05-x.conflist",
      () => inFolder({ name: "n", plugins: [{ type: "s" }] }),
      { network: "n", plugins: [{ type: "s" }, { type: "t" }] },
    ],
    [
      "05-x.conflist",
      () => inFolder({ name: "n", plugins: [{ type: "s" }], loadOnlyInlinedPlugins: true }),
      { network: "n", plugins: [{ type: "s" }] },
    ],
    ["05-x.conflist", () => inFolder({ name: "../n" }), { broken: "it has no plugins" }],
    ["05-x.conf", () => symlinkSync("/nowhere", at("05-x.conf")), { broken: "/nowhere is not there" }],
    ["05-x.conf", () => symlinkSync("/tmp", at("05-x.conf")), { broken: "it is no file" }],
  ])("%s: %j", async (name, content, found) => {
    if (typeof content === "string") writeFileSync(at(name), content);
    else content();
    const files = await observeEarlier(at("10-wigglenet.conflist"));
    expect(files).toEqual(found === undefined ? [] : [expect.objectContaining({ name, ...found })]);
  });

  test("a name that is not UTF-8", async () => {
    writeFileSync(Buffer.concat([Buffer.from(at("05-")), Buffer.from([0xe9]), Buffer.from(".conf")]), one);
    const files = await observeEarlier(at("10-wigglenet.conflist"));
    expect(files).toEqual([{ name: "05-\ufffd.conf", network: "n", plugins: [expect.anything()] }]);
  });

  test("in the runtime's order", async () => {
    for (const name of ["10-b.conf", "10-a.conflist", "00-c.json", "10-B.conf"])
      writeFileSync(at(name), name.endsWith("list") ? list : one);
    const files = await observeEarlier(at("10-wigglenet.conflist"));
    expect(files.map(({ name }) => name)).toEqual(["00-c.json", "10-B.conf", "10-a.conflist", "10-b.conf"]);
  });

  test("none in a folder that is not there; one that cannot be listed is an error that names it", async () => {
    expect(await observeEarlier(at("none/x"))).toEqual([]);
    writeFileSync(at("file"), "");
    await expect(observeEarlier(at("file/x"))).rejects.toThrow(
      `CNI folder ${at("file")} cannot be read: ENOTDIR`,
    );
  });
});

describe("what they mean", () => {
  const own = cniList([podRange("10.1.0.0/24", [])], 1420);
  const [ptp, portmap] = own.plugins as [CniPlugin, CniPlugin];
  const file = (name: string, ...plugins: unknown[]): EarlierCniFile => ({
    name,
    network: "another",
    plugins: plugins as CniPlugin[],
  });
  const multus = file("00-multus.conf", { type: "multus" });
  const copy = file("02-istio-cni.conflist", ptp, portmap, { type: "istio-cni" });
  const bridge = file("10-containerd-net.conflist", { type: "bridge" }, { type: "portmap" });
  const broken = { ...file("05-x.conf"), broken: "it is no file" };
  test.each<[files: EarlierCniFile[], severity: "warning" | "unready" | undefined, message: string]>([
    [[], undefined, ""],
    [[bridge], "unready", bridge.name],
    [[multus], "warning", multus.name],
    [[file("00-multus.conf", { type: "multus-shim" })], "warning", multus.name],
    [[multus, bridge], "unready", bridge.name],
    [[multus, copy], "warning", copy.name],
    [[copy], "warning", copy.name],
    // The runtime takes the first alone.
    [[copy, bridge], "warning", copy.name],
    [[bridge, multus], "unready", bridge.name],
    [[file("02-istio-cni.conflist", { ...ptp, mtu: 1 }, portmap)], "unready", "out of date"],
    [[broken], "unready", "it is no file"],
    [[multus, broken], "unready", "it is no file"],
    [[{ ...file("05-x.conf"), unreadable: "EACCES" }], "unready", "cannot be read by this agent (EACCES)"],
  ])("%j: %p, %p", (files, severity, message) => {
    const finding = judgeEarlier("/etc/cni/net.d/10-wigglenet.conflist", own, files);
    expect(finding?.severity).toBe(severity);
    if (severity !== undefined) {
      expect(finding?.message).toContain(message);
      expect(finding?.message).toContain("10-wigglenet.conflist");
    }
  });
});

test("changes are told, of what a runtime reads, also in a folder that is made anew", async () => {
  const net = at("net.d");
  mkdirSync(net);
  let changes = 0;
  const stop = new AbortController();
  watchCniFolder(join(net, "10-wigglenet.conflist"), () => changes++, stop.signal);
  const told = async (change: () => void) => {
    const before = changes;
    change();
    for (let waited = 0; changes === before && waited < 5_000; waited += 10) await Bun.sleep(10);
    expect(changes).toBeGreaterThan(before);
  };
  await told(() => writeFileSync(join(net, "a.conf"), ""));
  await told(() => rmSync(join(net, "a.conf")));
  await told(() => writeFileSync(join(net, ".conflist"), ""));
  await told(() => rmSync(net, { recursive: true }));
  mkdirSync(net);
  await told(() => undefined);
  await told(() => writeFileSync(join(net, "b.conflist"), ""));
  stop.abort();
}, 20_000);
