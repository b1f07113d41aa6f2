/** Lines of the agent's log by how grave they are. */

const levels = ["trace", "debug", "info", "warn", "error", "fatal"];

type Level = "debug" | "info" | "warn" | "error";

/** The lines of this level and worse ones; what is no JSON has none. Throws for a level that is no word of the log's. */
export function atLeast<Line extends { level?: unknown }>(level: Level, lines: readonly Line[]): Line[] {
  return lines.filter((line) => {
    if (line.level === undefined) return false;
    const index = levels.indexOf(String(line.level));
    if (index < 0) throw new Error(`the log knows no level ${JSON.stringify(line.level)}`);
    return index >= levels.indexOf(level);
  });
}
