/** Nodes whose claims do not hold, in the log. */
import type { Logger } from "pino";

export class NodeProblems {
  readonly #log: Logger;
  /** By node name, what was said. */
  #said = new Map<string, string>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /** One line for each node whose problems changed, once. */
  report(problems: ReadonlyMap<string, readonly string[]>): void {
    const reported = new Map([...problems].map(([node, list]) => [node, list.join("; ")]));
    for (const [node, text] of reported)
      if (this.#said.get(node) !== text)
        this.#log.warn({ node, problems: text }, "a node's claims do not hold: they are left out");
    for (const node of this.#said.keys())
      if (!reported.has(node)) this.#log.info({ node }, "a node's claims hold again");
    this.#said = reported;
  }
}
