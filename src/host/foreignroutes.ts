/** Routes of others in the tables of this plugin, where nobody else should write: one that is longer takes packets from it. */
import type { Family } from "../net/address.ts";
import { nodeTable, podTable } from "../plan/overlay/routes.ts";
import type { Findings } from "../report/findings.ts";
import type { Reader } from "./executor.ts";
import type { Reason, Resource } from "./resource.ts";
import { familyFlag, protocol } from "./rules.ts";

/** Named at most. */
const most = 10;

export class ForeignRoutes implements Resource<unknown> {
  readonly #reader: Reader;
  readonly #families: readonly Family[];
  readonly #findings: Findings;
  #looked = false;

  /** @param families that the kernel has */
  constructor(reader: Reader, families: readonly Family[], findings: Findings) {
    this.#reader = reader;
    this.#families = families;
    this.#findings = findings;
  }

  invalidate(reason: Reason): void {
    if (reason === "drift" || reason === "resync") this.#looked = false;
  }

  /** They are none of ours to change: they are named. */
  async add(): Promise<void> {
    if (this.#looked) return;
    this.#looked = true;
    const found: string[] = [];
    for (const family of this.#families)
      for (const table of [podTable, nodeTable])
        await this.#reader
          .eachLine(["ip", familyFlag[family], "-N", "-o", "route", "show", "table", table], (line) => {
            if (!line.includes(` proto ${protocol} `)) found.push(`${line.trim()} table ${table}`);
          })
          .catch(withoutTable);
    const more = found.length - most;
    this.#findings.report(
      "foreign routes",
      found.length === 0
        ? undefined
        : {
            severity: "warning",
            message: `routes of others are in the tables ${podTable} and ${nodeTable}, which are this plugin's, and may take pods' packets from the tunnel: have whoever made them take another table`,
            routes: [...found.slice(0, most), ...(more > 0 ? [`and ${more} more`] : [])],
          },
    );
  }
}

function withoutTable(error: unknown): void {
  if (!/FIB table does not exist/.test(String(error))) throw error;
}
