/** What libcni has kept of the pods that it has added to our network, one file for each interface of a pod. */
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { readIfThere } from "./files.ts";

const folder = "/var/lib/cni/results";
export const network = "wigglenet";

export class CniResults<T> {
  readonly #parse: (content: string) => T | undefined;
  /** By file name. What is in one never changes. */
  #known = new Map<string, T | undefined>();

  /** @param parse undefined for a pod that is of no interest; throws if it is no JSON */
  constructor(parse: (content: string) => T | undefined) {
    this.#parse = parse;
  }

  async read(): Promise<T[]> {
    const names = existsSync(folder) ? await readdir(folder) : [];
    const known = new Map<string, T | undefined>();
    for (const name of names.filter((each) => each.startsWith(`${network}-`))) {
      if (this.#known.has(name)) known.set(name, this.#known.get(name));
      else {
        const content = (await readIfThere(join(folder, name))) ?? "";
        try {
          known.set(name, this.#parse(content));
        } catch {
          // It is being written, or has just gone.
        }
      }
    }
    this.#known = known;
    return [...known.values()].flatMap((each) => each ?? []);
  }
}
