/** The command blocks of the documents: indented or fenced, as they stand. */
import { readFileSync } from "node:fs";
import { repository } from "./cache.ts";

export interface Block {
  /** Such as "docs/migration.md:12". */
  at: string;
  text: string;
}

/** Every indented or fenced block of a document, without its indentation. */
export function commandBlocks(document: string): Block[] {
  const blocks: Block[] = [];
  let open: { line: number; lines: string[]; fenced: boolean } | undefined;
  const close = () => {
    if (open) blocks.push({ at: `${document}:${open.line}`, text: open.lines.join("\n").trimEnd() });
    open = undefined;
  };
  const lines = readFileSync(`${repository}/${document}`, "utf8").split("\n");
  for (const [index, line] of lines.entries()) {
    const fence = /^```/.test(line);
    if (open?.fenced) {
      if (fence) close();
      else open.lines.push(line);
    } else if (fence) {
      close();
      open = { line: index + 2, lines: [], fenced: true };
    } else if (/^ {4}/.test(line) && (open || lines[index - 1] === "")) {
      open ??= { line: index + 1, lines: [], fenced: false };
      open.lines.push(line.slice(4));
    } else if (line === "" && open) open.lines.push("");
    else close();
  }
  close();
  return blocks;
}
