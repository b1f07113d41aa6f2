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
import { ensurePrivateKey, observePublicKey, publicKeyOf } from "./files.ts";

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
