/** A tunnel of this node under another name than it is to have. */
import type { Family } from "../net/address.ts";
import { nodeTable, podTable } from "../plan/overlay/routes.ts";
import type { Reader } from "./executor.ts";
import { familyFlag, protocol } from "./rules.ts";
import { linksIn } from "./underlay.ts";

/**
 * The link that this node's routes to the others lead into, if it is not `link`. Two links cannot share a port, and with the
 * address of the first one the second would take another, which a pod may have.
 */
export async function earlierTunnel(
  { eachLine }: Reader,
  link: string,
  families: readonly Family[],
): Promise<string | undefined> {
  const found = new Set<string>();
  for (const family of families)
    for (const table of [podTable, nodeTable])
      await eachLine(
        [
          "ip",
          familyFlag[family],
          "-N",
          "-o",
          "route",
          "show",
          "table",
          table,
          "proto",
          protocol,
          "type",
          "unicast",
        ],
        (line) => {
          for (const name of linksIn(line)) found.add(name);
        },
      ).catch(withoutTable);
  found.delete(link);
  return [...found].sort()[0];
}

// A kernel that has no such table yet.
function withoutTable(error: unknown): void {
  if (!/FIB table does not exist/.test(String(error))) throw error;
}
