/** Files of the node: the private key. */
import { createPrivateKey, createPublicKey, generateKeyPairSync } from "node:crypto";
import { chmod, mkdir, readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { parseKey } from "../plan/overlay/node.ts";
import { createExclusively, whyNot } from "./command.ts";

/** The public key of the node's private key, or undefined if there is no file; throws if the file holds no key. */
export async function observePublicKey(path: string): Promise<string | undefined> {
  const present = await readIfThere(path);
  if (present === undefined) return undefined;
  const privateKey = parseKey(present);
  if (privateKey === undefined)
    throw new Error(
      `private key ${path} is not base64 of 32 bytes: put the right key there, or remove the file to have a new key made`,
    );
  return publicKeyOf(privateKey);
}

/** Makes a private key if there is none. What is there is never overwritten. */
export async function ensurePrivateKey(path: string): Promise<{ publicKey: string; created: boolean }> {
  const present = await observePublicKey(path);
  if (present !== undefined) {
    if (((await stat(path)).mode & 0o077) !== 0) await chmod(path, 0o600);
    return { publicKey: present, created: false };
  }
  const jwk = generateKeyPairSync("x25519").privateKey.export({ format: "jwk" });
  const bytes = Buffer.from(jwk.d as string, "base64url");
  // As `wg genkey` does: the kernel would keep it so, take the file's for another key each time, and end all sessions.
  bytes[0]! &= 0b1111_1000;
  bytes[31] = (bytes[31]! & 0b0111_1111) | 0b0100_0000;
  const privateKey = bytes.toString("base64");
  try {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    await createExclusively(path, `${privateKey}\n`, 0o600);
  } catch (error) {
    throw new Error(
      `private key ${path} cannot be made: ${whyNot(error)}; or set WIGGLENET_PRIVKEY_PATH to a file that can be written and outlives a reboot, such as /var/lib/wigglenet/private.key`,
    );
  }
  return { publicKey: publicKeyOf(privateKey), created: true };
}

// PKCS#8 around a raw X25519 key (RFC 8410).
const pkcs8 = Buffer.from("302e020100300506032b656e04220420", "hex");

export function publicKeyOf(privateKey: string): string {
  const der = Buffer.concat([pkcs8, Buffer.from(privateKey, "base64")]);
  const key = createPublicKey(createPrivateKey({ key: der, format: "der", type: "pkcs8" }));
  return Buffer.from(key.export({ format: "jwk" }).x as string, "base64url").toString("base64");
}

export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    const remedy = code === "EISDIR" ? ": remove the folder" : "";
    throw new Error(`${path} cannot be read: ${message}${remedy}`);
  }
}
