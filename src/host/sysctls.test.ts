import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import pino from "pino";
import type { Family } from "../net/address.ts";
import { Findings } from "../report/findings.ts";
import { perform } from "./command.ts";
import { nodeReader } from "./executor.ts";
import { applyForwarding, applySysctls, diffSysctls } from "./sysctls.ts";

let folder: string;
let findings: Findings;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "wigglenet-sysctls-"));
  findings = new Findings(pino({ enabled: false }));
});
afterEach(() => rmSync(folder, { recursive: true }));

const at = (name: string) => join(folder, name);

function put(name: string, content: string): void {
  mkdirSync(dirname(at(name)), { recursive: true });
  writeFileSync(at(name), content);
}

/** As where /proc/sys is mounted read-only. */
const refused = () => Promise.reject(Object.assign(new Error("EROFS: read-only"), { code: "EROFS" }));

describe("of links", () => {
  const rp = "ipv4/conf/wigglenet/rp_filter";
  const dad = "ipv6/conf/default/accept_dad";
  type Options = Parameters<typeof diffSysctls>[2];
  const usual: Options = { skipDad: true, link: "wigglenet" };
  test.each<
    [title: string, present: Record<string, string>, options: Options, written: Record<string, string>]
  >([
    ["as they should be", { [rp]: "2\n", [dad]: "0\n" }, usual, {}],
    ["a machine's defaults", { [rp]: "0\n", [dad]: "1\n" }, usual, { [rp]: "2", [dad]: "0" }],
    ["strict", { [rp]: "1\n", [dad]: "0\n" }, usual, { [rp]: "2" }],
    ["POD_IPV6_DAD=1", { [rp]: "2\n", [dad]: "1\n" }, { skipDad: false, link: "wigglenet" }, {}],
    ["no tunnel", { [rp]: "0\n", [dad]: "1\n" }, { skipDad: true }, { [dad]: "0" }],
    ["a kernel without IPv6", { [rp]: "0\n" }, usual, { [rp]: "2" }],
    ["no link yet", { [dad]: "0\n" }, usual, {}],
    ["no link yet, in a dry run", { [dad]: "0\n" }, { ...usual, linkToCome: true }, { [rp]: "2" }],
  ])("%s", async (_, present, options, written) => {
    for (const [name, value] of Object.entries(present)) put(name, value);
    expect(await diffSysctls(nodeReader, folder, options)).toEqual(
      Object.entries(written).map(([name, value]) => ({ kind: "sysctl", path: at(name), value })),
    );
  });
});

test.each<[present: Record<string, string>, severity: "warning" | "unready", says: string[]]>([
  [
    { "ipv4/conf/wigglenet/rp_filter": "0\n", "ipv6/conf/default/accept_dad": "1\n" },
    "warning",
    ["net.ipv4.conf.wigglenet.rp_filter=2", "net.ipv6.conf.default.accept_dad=0", "/etc/sysctl.d"],
  ],
  [
    { "ipv4/conf/wigglenet/rp_filter": "1\n" },
    "unready",
    ["net.ipv4.conf.wigglenet.rp_filter=2", "NodePort"],
  ],
  [
    { "ipv4/conf/wigglenet/rp_filter": "0\n", "ipv4/conf/all/rp_filter": "1\n" },
    "unready",
    ["net.ipv4.conf.wigglenet.rp_filter=2"],
  ],
])("%j that cannot be written: %p, %j", async (present, severity, says) => {
  for (const [name, value] of Object.entries(present)) put(name, value);
  const options = { skipDad: true, link: "wigglenet" };
  await applySysctls(nodeReader, folder, options, findings, refused);
  const [line = ""] = findings.lines(severity);
  for (const part of says) expect(line).toContain(part);
  await applySysctls(nodeReader, folder, options, findings, perform);
  expect([findings.lines("warning"), findings.lines("unready")]).toEqual([[], []]);
});

describe("forwarding", () => {
  const all = "ipv4/ip_forward";
  const links = "ipv4/conf/default/forwarding";
  const own = "ipv4/conf/wigglenet/forwarding";
  const v6 = "ipv6/conf/all/forwarding";
  const uplink = "ipv4/conf/eth0.7/forwarding";
  const on = { [all]: "1", [links]: "1", [own]: "1", [uplink]: "1", [v6]: "1" };
  const names = ["wigglenet", "eth0.7"];
  const both: Family[] = ["ipv4", "ipv6"];
  test.each<[title: string, present: Record<string, string>, podFamilies: Family[], written: string[]]>([
    ["on", on, both, []],
    ["off", { ...on, [all]: "0" }, both, [all]],
    ["off for new links", { ...on, [links]: "0" }, both, [links]],
    ["off for the own link", { ...on, [own]: "0" }, both, [own]],
    ["off for an uplink", { ...on, [uplink]: "0" }, both, [uplink]],
    ["off for a link that is not asked for", { ...on, "ipv4/conf/mgmt/forwarding": "0" }, both, []],
    ["off for IPv6 of a link, which nobody asks", { ...on, "ipv6/conf/eth0.7/forwarding": "0" }, both, []],
    ["no own link yet", { [all]: "0", [links]: "1" }, ["ipv4"], [all]],
    ["off for pods of the other family", { ...on, [v6]: "0" }, ["ipv4"], []],
    ["off for pods of the other family", { ...on, [all]: "0", [own]: "0" }, ["ipv6"], []],
    ["a kernel without IPv6", { [all]: "0" }, both, [all]],
  ])("%s: %j, pods of %j: %j are written", async (_, present, podFamilies, written) => {
    for (const [name, value] of Object.entries(present)) put(name, `${value}\n`);
    const families = new Set(podFamilies);
    await applyForwarding(nodeReader, folder, families, names, findings, refused);
    const lines = findings.lines("unready");
    expect(lines).toHaveLength(Math.min(written.length, 1));
    for (const name of written) expect(lines[0]).toContain(`net.${name.replaceAll("/", ".")}`);
    await applyForwarding(nodeReader, folder, families, names, findings, perform);
    expect(findings.lines("unready")).toEqual([]);
    const changed = Object.keys(present).filter((name) => readFileSync(at(name), "utf8") === "1");
    expect(changed).toEqual(written);
  });
});
