import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { Family } from "../plan/address.ts";
import { diffSysctls, ensurePrivateKey, forwardingOff, observePublicKey, publicKeyOf } from "./files.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "wigglenet-files-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const at = (name: string) => join(folder, name);

function put(name: string, content: string, mode = 0o644): void {
  mkdirSync(dirname(at(name)), { recursive: true });
  writeFileSync(at(name), content);
  chmodSync(at(name), mode);
}

test.each<[privateKey: string, publicKey: string]>([
  // What `wg pubkey` gives.
  [Buffer.alloc(32, 0x48).toString("base64"), "kXeyMnjL8PPRfDbyrMm1XpyF+HsiClOG7DcNZj4g4zc="],
  ["//////////////////////////////////////////8=", "hHwNLDdSNPNl5mCVUYejc1oPdhPRYJ06ak2MU66qWiI="],
])("the public key of %s", (privateKey, publicKey) => {
  expect(publicKeyOf(privateKey)).toBe(publicKey);
});

describe("the private key", () => {
  test("is made once, readable to its owner alone", async () => {
    const made = await ensurePrivateKey(at("wigglenet/private.key"));
    expect(made.created).toBe(true);
    const content = readFileSync(at("wigglenet/private.key"), "utf8");
    expect(content).toMatch(/^[A-Za-z0-9+/]{43}=\n$/);
    expect(publicKeyOf(content.trim())).toBe(made.publicKey);
    const bytes = Buffer.from(content, "base64");
    expect([bytes[0]! & 0b111, bytes[31]! >> 6]).toEqual([0, 1]);
    expect([
      statSync(at("wigglenet/private.key")).mode & 0o777,
      statSync(at("wigglenet")).mode & 0o777,
    ]).toEqual([0o600, 0o700]);
    expect(await ensurePrivateKey(at("wigglenet/private.key"))).toEqual({
      publicKey: made.publicKey,
      created: false,
    });
    expect(readFileSync(at("wigglenet/private.key"), "utf8")).toBe(content);
    const other = await ensurePrivateKey(at("other.key"));
    expect(other.publicKey).not.toBe(made.publicKey);
  });

  const key = Buffer.alloc(32, 0x48).toString("base64");
  // cilium#35644: another key at a restart costs every peer its session. The Go implementation writes no newline.
  test.each<[title: string, content: string]>([
    ["a trailing newline", `${key}\n`],
    ["none", key],
    ["white space around it", `  ${key}\r\n\n`],
  ])("that is there is used as it is, with %s", async (_, content) => {
    put("private.key", content, 0o600);
    const before = statSync(at("private.key")).mtimeMs;
    expect(await ensurePrivateKey(at("private.key"))).toEqual({
      publicKey: publicKeyOf(key),
      created: false,
    });
    expect([readFileSync(at("private.key"), "utf8"), statSync(at("private.key")).mtimeMs]).toEqual([
      content,
      before,
    ]);
  });

  test("that others may read is closed to them", async () => {
    put("private.key", key, 0o644);
    await ensurePrivateKey(at("private.key"));
    expect(statSync(at("private.key")).mode & 0o777).toBe(0o600);
  });

  test.each<[title: string, content: string]>([
    ["empty", ""],
    ["too short", key.slice(4)],
    ["of zeros", Buffer.alloc(32).toString("base64")],
    ["in PEM", "-----BEGIN PRIVATE KEY-----\n"],
    ["two of them", `${key}\n${key}\n`],
  ])("that is malformed stops the start and stays as it is: %s", async (_, content) => {
    put("private.key", content);
    await expect(ensurePrivateKey(at("private.key"))).rejects.toThrow(
      `private key ${at("private.key")} is not base64 of 32 bytes: put the right key there, or remove the file`,
    );
    expect(readFileSync(at("private.key"), "utf8")).toBe(content);
  });

  test("that is not there is not made by looking", async () => {
    expect(await observePublicKey(at("a/private.key"))).toBeUndefined();
    expect(existsSync(at("a"))).toBe(false);
  });
});

describe("sysctls", () => {
  const rp = "ipv4/conf/wigglenet/rp_filter";
  const dad = "ipv6/conf/default/accept_dad";
  type Options = Parameters<typeof diffSysctls>[1];
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
    ["no link yet, on paper", { [dad]: "0\n" }, { ...usual, linkToCome: true }, { [rp]: "2" }],
  ])("%s", async (_, present, options, written) => {
    for (const [name, value] of Object.entries(present)) put(name, value);
    expect(await diffSysctls(folder, options)).toEqual(
      Object.entries(written).map(([name, value]) => ({ kind: "sysctl", path: at(name), value })),
    );
  });

  const v4 = "net.ipv4.ip_forward";
  const v6 = "net.ipv6.conf.all.forwarding";
  test.each<[present: Record<string, string>, podFamilies: Family[], off: string[]]>([
    [{ "ipv4/ip_forward": "1\n", "ipv6/conf/all/forwarding": "1\n" }, ["ipv4", "ipv6"], []],
    [{ "ipv4/ip_forward": "0\n", "ipv6/conf/all/forwarding": "0\n" }, ["ipv4", "ipv6"], [v4, v6]],
    [{ "ipv4/ip_forward": "0\n", "ipv6/conf/all/forwarding": "0\n" }, ["ipv6"], [v6]],
    [{ "ipv4/ip_forward": "1\n", "ipv6/conf/all/forwarding": "0\n" }, ["ipv4"], []],
    [{ "ipv4/ip_forward": "0\n" }, ["ipv4", "ipv6"], [v4]],
  ])("forwarding %j, pods of %j: off are %j", async (present, podFamilies, off) => {
    for (const [name, value] of Object.entries(present)) put(name, value);
    expect(await forwardingOff(folder, new Set(podFamilies))).toEqual(off);
  });
});
