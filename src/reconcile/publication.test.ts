import { expect, test } from "bun:test";
import { annotation } from "../plan/overlay/node.ts";
import { Publication } from "./publication.ts";

const never = Number.POSITIVE_INFINITY;
const wanted = { [annotation.podCidrs]: '["10.1.0.0/24"]' };
type Look = [before: string | undefined, published: boolean, now: number, may: boolean, dueAt: number];
test.each<[title: string, looks: Look[]]>([
  ["a restart: known already", [['["10.1.0.0/24"]', true, 0, true, never]]],
  ["known, and the API server is away", [['["10.1.0.0/24"]', false, 0, true, never]]],
  [
    "new, then as the watch tells",
    [
      [undefined, true, 500, false, 1_500],
      ['["10.1.0.0/24"]', true, 600, false, 1_500],
      ['["10.1.0.0/24"]', true, 1_500, true, never],
    ],
  ],
  ["others than before", [['["10.9.0.0/24"]', true, 500, false, 1_500]]],
  ["not to be published: the failure has its own retry", [[undefined, false, 5_000, false, never]]],
])("%s", (_, looks) => {
  const publication = new Publication();
  for (const [before, published, now, may, dueAt] of looks) {
    const annotations: Record<string, string> = before === undefined ? {} : { [annotation.podCidrs]: before };
    expect([publication.mayStart(annotations, wanted, published, now), publication.dueAt]).toEqual([
      may,
      dueAt,
    ]);
  }
});
