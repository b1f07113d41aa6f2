/** The log: JSON lines, none of them longer than 2 kB, whatever the kernel, a program or an annotation says. */
import pino, { type DestinationStream, type Logger } from "pino";
import { longestLine, shorten, withinBytes } from "./shorten.ts";

/** Bytes for what pino adds: level, time and punctuation. */
const overhead = 100;
const longestMessage = 1_000;

/** @param destination where each line goes; default: stdout, written before the call returns */
export function createLogger(
  level: string,
  // Written when it is said: what ends the agent is its last line, and a kill loses none.
  destination: DestinationStream = pino.destination({ dest: 1, sync: true }),
): Logger {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      // Collectors of logs sort lines by the word, and do not know pino's numbers.
      formatters: { level: (label) => ({ level: label }) },
      hooks: {
        logMethod([first, ...rest], method) {
          if (typeof first === "string") return method.apply(this, [fitMessage(first)]);
          const message = fitMessage(String(rest[0] ?? ""));
          const room = longestLine - overhead - size(message);
          return method.apply(this, [fitFields(first as object, room), message]);
        },
      },
    },
    destination,
  );
}

/** How much of each text and of each list is kept, from much to little. */
const limits = [
  { characters: 1_000, entries: 20 },
  { characters: 400, entries: 12 },
  { characters: 200, entries: 6 },
  { characters: 80, entries: 4 },
  { characters: 30, entries: 3 },
];

/** Fields of at most `room` bytes of JSON. */
function fitFields(fields: object, room: number): object {
  const plain = { ...fields };
  if (size(plain) <= room && !Object.values(plain).some((value) => value instanceof Error)) return plain;
  for (const limit of limits) {
    const cut = fit(plain, limit) as object;
    if (size(cut) <= room) return cut;
  }
  return { fields: fitText(shorten(JSON.stringify(plain), 300), room - size({ fields: "" })) };
}

function fit(value: unknown, limit: (typeof limits)[number]): unknown {
  if (typeof value === "string") return shorten(value, limit.characters);
  if (value instanceof Error) return shorten(value.message, limit.characters);
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) {
    const kept = value.slice(0, limit.entries).map((entry) => fit(entry, limit));
    return value.length > kept.length ? [...kept, `and ${value.length - kept.length} more`] : kept;
  }
  const entries = Object.entries(value);
  const kept = entries
    .slice(0, limit.entries)
    .map(([key, entry]) => [shorten(key, limit.characters), fit(entry, limit)] as const);
  const more = entries.length - kept.length;
  return Object.fromEntries(more > 0 ? [...kept, ["more", more]] : kept);
}

function fitMessage(message: string): string {
  return fitText(message, longestMessage);
}

/** A text of at most `room` bytes of JSON. */
function fitText(text: string, room: number): string {
  let fitting = withinBytes(text, room);
  // What JSON escapes is longer there than it is itself.
  while (size(fitting) > room) fitting = withinBytes(fitting, Math.floor(Buffer.byteLength(fitting) / 2));
  return fitting;
}

/** Bytes of JSON. */
function size(value: unknown): number {
  return Buffer.byteLength(JSON.stringify(value) ?? "");
}
