/** What the kernel tells of changes, by `ip monitor`, and which of them are drift. */
import type { Logger } from "pino";
import { parseAddress } from "../plan/address.ts";
import { type Route, tunnelTable } from "../plan/desired.ts";
import { markBit } from "../plan/firewall.ts";
import { matches } from "../plan/own.ts";
import { protocol } from "./routes.ts";

/** What a change asks for: a look at links and addresses, which is cheap, or at everything of ours. */
export type Signal = "none" | "links" | "everything";

/** What there should be, as the monitor needs it. */
export interface Expectation {
  link: string;
  /** Place of each own route: table, prefix, and whether it is unreachable. */
  places: ReadonlySet<string>;
  /** Whether routes of the underlay matter, as copies of them are among ours. */
  followsUnderlay: boolean;
  /** Links whose flows are offloaded, by name or how it begins. */
  devices: readonly string[];
}

export function expectation(
  link: string,
  routes: readonly Route[],
  devices: readonly string[] = [],
): Expectation {
  return {
    link,
    devices,
    places: new Set(
      routes.map((route) =>
        place(route.type === "tunnel" ? route.table : "main", route.prefix, route.type === "unreachable"),
      ),
    ),
    followsUnderlay: routes.some((route) => route.type === "underlay"),
  };
}

const ownRule = new RegExp(
  `^${tunnelTable}:\\s+from all fwmark ${markBit}/${markBit} lookup ${tunnelTable}\\b`,
);

/** Reads one line of `ip -o monitor label link address route rule netconf`. */
export function classify(line: string, expected: Expectation): Signal {
  const match = /^\[(LINK|ADDR|ROUTE|RULE|NETCONF)\](Deleted )?(.*)$/.exec(line);
  if (match === null) return "none";
  const [, label, deleted, text = ""] = match;
  if (label === "NETCONF") {
    const [, place = ""] = / (\S+) .*\bforwarding off\b/.exec(text) ?? [];
    // What comes by a link has to be forwarded too; a link that is new says more than this.
    const ofLink = /^inet \S+ forwarding off $/.test(text);
    return ofLink || ["all", "default", expected.link].includes(place) ? "links" : "none";
  }
  if (label === "RULE") {
    if (ownRule.test(text)) return deleted ? "everything" : "none";
    return text.includes(`proto ${protocol}`) && !deleted ? "everything" : "none";
  }
  if (label === "ROUTE") return classifyRoute(text, deleted !== undefined, expected);
  const name = /^\d+: ([^\s@:]+)/.exec(text)?.[1] ?? "";
  // Its routes stay whatever becomes of its addresses.
  if (name === "lo" && label === "ADDR") return "links";
  // Pods' links come and go all the time, and nothing else of ours depends on them.
  if (name.startsWith("veth") || name === "lo")
    return label === "LINK" && expected.devices.some((device) => matches(name, device)) ? "links" : "none";
  const lost = deleted !== undefined || (label === "LINK" && !/<[^>]*\bUP\b[^>]*>/.test(text));
  // A link that went down, or that lost its last address, has lost its IPv4 routes without a word.
  return lost && (name === expected.link || expected.followsUnderlay) ? "everything" : "links";
}

function classifyRoute(text: string, deleted: boolean, expected: Expectation): Signal {
  const [first = "", second = ""] = text.split(" ");
  const unreachable = first === "unreachable";
  const table = / table (\S+)/.exec(text)?.[1] ?? "main";
  const destination = /^\w+$/.test(first) ? second : first;
  const prefix = parseAddress(destination)
    ? `${destination}/${destination.includes(":") ? 128 : 32}`
    : destination;
  const wanted = expected.places.has(place(table, prefix, unreachable));
  if (text.includes(` proto ${protocol} `)) return wanted === deleted ? "everything" : "none";
  // A foreign route in the place of one of ours has taken it.
  if (wanted && !deleted) return "everything";
  const underlay = table === "main" && !/ dev (veth|lo )/.test(text);
  return expected.followsUnderlay && underlay ? "everything" : "none";
}

function place(table: string, prefix: string, unreachable: boolean): string {
  return `${table} ${prefix} ${unreachable}`;
}

export const ipMonitor = ["ip", "-o", "monitor", "label", "link", "address", "route", "rule", "netconf"];

/** Runs until `signal` aborts; a monitor that ends is started again, and what it missed is made up for. */
export async function monitor(
  argv: string[],
  onLine: (line: string) => void,
  onGap: () => void,
  log: Logger,
  signal: AbortSignal,
): Promise<void> {
  for (let wait = 1_000; !signal.aborted; wait = Math.min(wait * 2, 60_000)) {
    const from = performance.now();
    try {
      await watch(argv, onLine, signal);
    } catch (error) {
      if (!signal.aborted)
        log.warn({ argv, error: (error as Error).message }, "cannot be started: the resync alone repairs");
      return;
    }
    if (signal.aborted) return;
    // Its socket overflowed in a burst, most likely; one that ends again and again cannot read what others wrote.
    if (performance.now() - from > 60_000) wait = 1_000;
    log.debug({ argv, wait }, "a monitor ended; starting it again");
    await Bun.sleep(wait);
    onGap();
  }
}

async function watch(argv: string[], onLine: (line: string) => void, signal: AbortSignal): Promise<void> {
  const child = Bun.spawn(argv, { stdin: "ignore", stdout: "pipe", stderr: "pipe", signal });
  await Promise.all([readLines(child.stdout, onLine), readLines(child.stderr, onLine), child.exited]);
}

async function readLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const pieces = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = pieces.pop() ?? "";
    for (const piece of pieces) onLine(piece);
  }
}
