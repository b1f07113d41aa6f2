/** Nodes whose claims do not hold, in the log. */
import type { Logger } from "pino";
import type { Mark, ReadonlyTable } from "../net/table.ts";

export class NodeProblems {
  readonly #log: Logger;
  /** By node name, what was said. */
  readonly #said = new Map<string, string>();
  #mark: Mark | undefined;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** One line for each node whose problems changed, once. */
  report(problems: ReadonlyTable<readonly string[]>): void {
    const changed = problems.changedSince(this.#mark);
    this.#mark = problems.mark();
    for (const node of changed === "all" ? new Set([...problems.keys(), ...this.#said.keys()]) : changed) {
      const text = problems.get(node)?.join("; ");
      if (text === this.#said.get(node)) continue;
      if (text === undefined) {
        this.#said.delete(node);
        this.#log.info({ node }, "a node's claims hold again");
      } else {
        this.#said.set(node, text);
        this.#log.warn({ node, problems: text }, "a node's claims do not hold: they are left out");
      }
    }
  }
}
