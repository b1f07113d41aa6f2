/** Texts of any length made fit for one line of the log, or for an answer of `/readyz`. */

/** Bytes that neither a line of the log nor `/readyz` exceeds. */
export const longestLine = 2_000;

/** The first `most` characters of a text, and how many it has if that is more. */
export function shorten(text: string, most: number): string {
  return text.length <= most ? text : `${beginning(text, most)}… (${text.length} characters)`;
}

/** As many of the lines as `most` bytes hold, each shortened, and the number of the others; each ends with a newline. */
export function joinLines(lines: readonly string[], most: number): string {
  // A line of many 4-byte characters must leave room for others too.
  const shortened = lines.map((line) => shorten(line, 900)).map((line) => withinBytes(line, 1_100));
  let text = "";
  for (const [index, line] of shortened.entries()) {
    const next = `${text}${line}\n`;
    const rest = `and ${lines.length - index} more\n`;
    const reserve = index === lines.length - 1 ? 0 : rest.length;
    if (Buffer.byteLength(next) + reserve > most) return text + rest;
    text = next;
  }
  return text;
}

/** The beginning of a text that has no more than `most` bytes in UTF-8. */
export function withinBytes(text: string, most: number): string {
  if (Buffer.byteLength(text) <= most) return text;
  const room = most - Buffer.byteLength("…");
  // A character of UTF-16 has three bytes at most, a pair of them four.
  let kept = beginning(text, room);
  while (Buffer.byteLength(kept) > room) {
    const excess = Buffer.byteLength(kept) - room;
    kept = beginning(kept, kept.length - Math.ceil(excess / 3));
  }
  return `${kept}…`;
}

/** Does not cut a pair of surrogates in two. */
function beginning(text: string, length: number): string {
  const last = text.charCodeAt(length - 1);
  return text.slice(0, last >= 0xd800 && last < 0xdc00 ? length - 1 : length);
}
