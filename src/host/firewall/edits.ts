/**
 * How a chain's rules become others. Both programs can delete a rule and add one at either end of a chain; to put one
 * between two others, or in the place of one, nft reads all rules of the host first.
 */
export interface Edits {
  /** Indexes of what stays, in what is there; they follow one another in what is wanted. */
  kept: number[];
  /** What stays is this part of what is wanted: before it comes what is added in front, after it what is added behind. */
  from: number;
  to: number;
}

/** @returns undefined if nothing is to be done */
export function editsOf(present: readonly string[], wanted: readonly string[]): Edits | undefined {
  let best: Edits = { kept: [], from: 0, to: 0 };
  for (let from = 0; from < wanted.length - best.kept.length; from += 1) {
    const kept: number[] = [];
    for (let index = 0; index < present.length && from + kept.length < wanted.length; index += 1)
      if (present[index] === wanted[from + kept.length]) kept.push(index);
    if (kept.length > best.kept.length) best = { kept, from, to: from + kept.length };
  }
  const nothing = best.kept.length === present.length && best.kept.length === wanted.length;
  return nothing ? undefined : best;
}
