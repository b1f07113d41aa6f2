/** What is foreign or wrong on this node for as long as it lasts: said once in the log, and shown by `/readyz`. */
import type { Logger } from "pino";
import { shorten } from "./shorten.ts";

export interface Finding {
  /** `unready`: the node is not as it should be. `warning`: it works, and something may break it. */
  severity: "warning" | "unready";
  /** What was seen, why it matters, and the remedy. */
  message: string;
  /** What else to log with it; a change of these alone is not said again. */
  context?: object;
  /** The values that it is about; a finding with others is another one. */
  [detail: string]: unknown;
}

/** A finding in `/readyz` has no more characters than this. */
const longest = 1_000;

export class Findings {
  readonly #log: Logger;
  readonly #current = new Map<string, Finding>();

  constructor(log: Logger) {
    this.#log = log;
  }

  /**
   * Says what is wrong when it begins or changes, and once when it is over.
   * @param topic what was looked at; a later report of the same topic replaces this one
   * @param finding undefined: nothing is wrong
   */
  report(topic: string, finding: Finding | undefined): void {
    const before = this.#current.get(topic);
    if (finding === undefined) {
      if (this.#current.delete(topic)) this.#log.info({ topic }, "a finding is over");
      return;
    }
    this.#current.set(topic, finding);
    const { context: _, ...current } = finding;
    if (before !== undefined) {
      const { context: _, ...earlier } = before;
      if (Bun.deepEquals(current, earlier)) return;
    }
    const { severity, message, context, ...details } = finding;
    this.#log[severity === "unready" ? "error" : "warn"]({ topic, ...details, ...context }, message);
  }

  /** The current findings of a severity, one line each, in the order in which they began. */
  lines(severity: Finding["severity"]): string[] {
    return [...this.#current.values()].filter((finding) => finding.severity === severity).map(line);
  }
}

function line({ severity: _, message, context: __, ...details }: Finding): string {
  const values = Object.entries(details).map(
    ([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  const text = values.length > 0 ? `${message} (${values.join(", ")})` : message;
  return shorten(text, longest);
}
