import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import type { Family } from "../net/address.ts";
import type { Ipv6 } from "../plan/ipv6.ts";
import { perform } from "./command.ts";
import { nodeReader } from "./executor.ts";
import { Ipv6Sysctls } from "./ipv6.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "wigglenet-ipv6-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const pathOf = (place: string) => join(folder, "ipv6/conf", place, "disable_ipv6");
/** As where /proc/sys is mounted read-only. */
const refused = () => Promise.reject(new Error("EROFS: read-only"));
const on: Ipv6 = { present: true, newLinks: true, tunnel: true };

test.each<
  [title: string, off: Record<string, "0" | "1">, link: string | undefined, expected: Ipv6, refusing?: Ipv6]
>([
  ["on", { default: "0", wigglenet: "0" }, "wigglenet", on],
  ["on, and no link yet", { default: "0" }, "wigglenet", on],
  ["off", { all: "1", default: "1", wigglenet: "1" }, "wigglenet", { ...on, newLinks: false, tunnel: false }],
  ["off, and no link yet", { default: "1" }, "wigglenet", { ...on, newLinks: false, tunnel: false }],
  ["off for new links", { default: "1", wigglenet: "0" }, "wigglenet", { ...on, newLinks: false }],
  ["off for another link", { default: "0", wigglenet: "0", eth0: "1" }, "wigglenet", on],
  [
    "off for the tunnel's: written",
    { default: "0", wigglenet: "1" },
    "wigglenet",
    on,
    { ...on, tunnel: false },
  ],
  ["off for all that were there before, and no tunnel", { default: "0", wigglenet: "1" }, undefined, on],
  ["a kernel without", {}, "wigglenet", { present: false, newLinks: false, tunnel: false }],
])("%s", async (title, values, link, expected, refusing = expected) => {
  for (const [place, value] of Object.entries(values)) {
    mkdirSync(dirname(pathOf(place)), { recursive: true });
    writeFileSync(pathOf(place), `${value}\n`);
  }
  const families: Family[] = title.startsWith("a kernel without") ? ["ipv4"] : ["ipv4", "ipv6"];
  const look = (carryOut: typeof perform) =>
    new Ipv6Sysctls({
      reader: nodeReader,
      root: folder,
      families,
      link,
      perform: async (_, steps) => void (await carryOut(steps)),
    }).observe();
  expect(await look(refused)).toEqual(refusing);
  expect(await look(perform)).toEqual(expected);
  const written = Object.keys(values).filter((place) => readFileSync(pathOf(place), "utf8") === "0");
  expect(written).toEqual(refusing === expected ? [] : ["wigglenet"]);
});
