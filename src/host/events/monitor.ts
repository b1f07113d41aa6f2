/** What the kernel tells of changes, by `ip monitor`, and which of them are drift. */
import type { Logger } from "pino";
import type { Config } from "../../config/config.ts";
import { contains, parseAddress } from "../../net/address.ts";
import { PrefixIndex } from "../../net/lookup.ts";
import type { ReadonlyTable } from "../../net/table.ts";
import type { OwnNode } from "../../plan/desired.ts";
import type { NodeObject } from "../../plan/overlay/node.ts";
import { lastPriority, nodeTable, podTable, type Route, type Rule } from "../../plan/overlay/routes.ts";
import { matches } from "../../plan/own.ts";
import { protocol } from "../rules.ts";
import { gatewaysIn } from "../underlay.ts";
import { messages, type Netlink } from "./netlink.ts";

/**
 * What a change asks for: a look at links and addresses, which is cheap, or at everything of ours. `later`: at links, when there
 * is a pass for another reason.
 */
export type Signal = "none" | "later" | "links" | "everything";

/** What there should be, as the monitor needs it. */
export interface Expectation {
  link: string;
  /** Place of each own route: table, prefix, and whether it is unreachable. */
  places: { has(place: string): boolean };
  /** Priority and text of each own rule. */
  rules: ReadonlySet<string>;
  /** Whether it is a gateway that is not known, and that lies in a pod CIDR. */
  newGateway: (address: string) => boolean;
  /** Links whose flows are offloaded, by name or how it begins. */
  devices: readonly string[];
  /** Which addresses of other links than ours matter; undefined: all. */
  addresses?: {
    /** Those that the Node lists, or that are its own. */
    listed: ReadonlySet<string>;
    /** Those in the own pod CIDRs. */
    inside: readonly string[];
    /** Those of these links, by name or how it begins. */
    links: readonly string[];
  };
}

/**
 * @param desired of a plan; routes by their places
 * @param gateways that the plan knew
 */
export function expectation(
  link: string,
  desired: { routes: ReadonlyTable<Route>; rules: readonly Rule[] },
  gateways: readonly string[],
  devices: readonly string[] = [],
  addresses?: Expectation["addresses"],
): Expectation {
  const known = new Set(gateways);
  let podCidrs: PrefixIndex<Route> | undefined;
  const isPods = (address: string) => {
    podCidrs ??= new PrefixIndex(
      [...desired.routes.values()].filter((route) => route.type === "unreachable"),
    );
    return podCidrs.longest(address) !== undefined;
  };
  return {
    link,
    devices,
    ...(addresses && { addresses }),
    places: desired.routes,
    rules: new Set(desired.rules.map(({ priority, text }) => `${priority} ${text}`)),
    newGateway: (text) => {
      if (known.has(text)) return false;
      const address = parseAddress(text);
      if (address !== undefined && !known.has(address) && isPods(address)) return true;
      // A router that learns a full BGP table tells of the same few again and again.
      known.add(text);
      return false;
    },
  };
}

/** Reads one line of `ip -N -o monitor label link address route rule netconf`. */
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
  if (label === "RULE") return classifyRule(text, deleted !== undefined, expected);
  if (label === "ROUTE") return classifyRoute(text, deleted !== undefined, expected);
  const name = /^\d+: ([^\s@:]+)/.exec(text)?.[1] ?? "";
  // Pods' links come and go all the time, and nothing else of ours depends on them.
  if (name.startsWith("veth") || (name === "lo" && label === "LINK"))
    return label === "LINK" && expected.devices.some((device) => matches(name, device)) ? "links" : "none";
  // It has this address for as long as it has IPv6, and what is unreachable is a route of this link's.
  if (label === "ADDR" && name === "lo" && text.includes(" inet6 ::1/128 ")) return "everything";
  if (label === "ADDR" && !concerns(text, name, expected)) return "later";
  // Its routes stay whatever becomes of its addresses.
  if (name === "lo") return "links";
  const lost = deleted !== undefined || (label === "LINK" && !/<[^>]*\bUP\b[^>]*>/.test(text));
  // A link that went down, or that lost its last address, has lost its IPv4 routes without a word.
  return lost && name === expected.link ? "everything" : "links";
}

/** Whether an address is one that decides what we do. */
function concerns(text: string, name: string, { link, addresses }: Expectation): boolean {
  const [, address = ""] = / inet6? ([0-9a-f.:]+)/.exec(text) ?? [];
  // An address that it does not tell may be any.
  if (addresses === undefined || name === link || address === "") return true;
  return (
    addresses.listed.has(address) ||
    addresses.links.some((each) => matches(name, each)) ||
    addresses.inside.some((prefix) => contains(prefix, address))
  );
}

/** The addresses, of whatever link, on which it depends what this node does. @param known those that it had */
export function concerned(
  config: Pick<Config, "podCidrSource" | "nodeIpInterfaces">,
  node: NodeObject | undefined,
  own: Pick<OwnNode, "podRanges" | "endpoints">,
  known: Iterable<string>,
): Expectation["addresses"] {
  // An expression may ask for each.
  if (Object.values(config.podCidrSource).includes("expression")) return undefined;
  const listed = node?.status?.addresses?.map(({ address }) => parseAddress(address) ?? "") ?? [];
  return {
    listed: new Set([...listed, ...own.endpoints, ...known]),
    inside: own.podRanges.map((range) => range.subnet),
    links: config.nodeIpInterfaces,
  };
}

function classifyRule(text: string, deleted: boolean, expected: Expectation): Signal {
  const [, priority, rule, ofProtocol] = /^(\d+):\s+(.*?)(?: proto (\d+))?\s*$/.exec(text) ?? [];
  if (expected.rules.has(`${priority} ${rule}`)) return deleted ? "everything" : "none";
  if (ofProtocol === protocol) return deleted ? "none" : "everything";
  // A foreign rule ahead of ours may take packets from us, or has ceased to.
  return Number(priority) <= lastPriority ? "everything" : "none";
}

function classifyRoute(text: string, deleted: boolean, expected: Expectation): Signal {
  const [first = "", second = ""] = text.split(" ");
  // Of all types but the usual one its number comes first.
  const type = /^\d+$/.test(first) ? first : undefined;
  const table = / table (\d+)/.exec(text)?.[1] ?? "main";
  const destination = type === undefined ? first : second;
  const prefix = parseAddress(destination)
    ? `${destination}/${destination.includes(":") ? 128 : 32}`
    : destination;
  const wanted = expected.places.has(place(table, prefix, type === "7"));
  if (text.includes(` proto ${protocol} `)) return wanted === deleted ? "everything" : "none";
  // A foreign route in the place of one of ours has taken it.
  if (wanted && !deleted) return "everything";
  // Nobody else has anything to do in our tables.
  if (table === podTable || table === nodeTable) return "everything";
  if (table !== "main" || deleted) return "none";
  // With 2 the kernel has those of the link's addresses; no one else's lead anywhere by our link.
  if (text.includes(` dev ${expected.link} `) && !text.includes(" proto 2 ")) return "everything";
  return gatewaysIn(text).some(expected.newGateway) ? "everything" : "none";
}

function place(table: string, prefix: string, unreachable: boolean): string {
  return `${table} ${prefix} ${unreachable}`;
}

export const ipMonitor = [
  "ip",
  "-N",
  "-o",
  "monitor",
  "label",
  "link",
  "address",
  "route",
  "rule",
  "netconf",
];

/** Milliseconds that a monitor may take to show what the kernel told. */
const patience = 1_000;

/**
 * Runs `ip monitor` until `signal` aborts. It overflows, hangs, dies and starts late without a word: what the kernel
 * tells is counted by a socket of our own as well, and a monitor that has shown less, and shows nothing more, is
 * replaced.
 * @param onGap told when events may have been missed
 * @param socketOf gives the socket that hears the same, as soon as there is one
 */
export async function monitor(
  argv: string[],
  onLine: (line: string) => void,
  onGap: () => void,
  socketOf: () => Netlink | undefined,
  log: Logger,
  signal: AbortSignal,
): Promise<void> {
  for (let wait = 100; !signal.aborted; wait = Math.min(wait * 2, 60_000)) {
    const from = performance.now();
    const socket = socketOf();
    let why: string;
    try {
      why = await watch(argv, onLine, socket, signal);
    } catch (error) {
      if (!signal.aborted)
        log.warn({ argv, error: (error as Error).message }, "cannot be started: the resync alone repairs");
      return;
    }
    if (signal.aborted) return;
    // One that fails again and again cannot keep up with what others write.
    if (performance.now() - from > 60_000) wait = 100;
    log.debug({ argv, wait, why }, "a monitor has missed events, or may have; starting it again");
    await Bun.sleep(wait);
    socket?.drain(() => undefined);
    onGap();
  }
}

/** @returns why it is to be started again */
async function watch(
  argv: string[],
  onLine: (line: string) => void,
  socket: Netlink | undefined,
  signal: AbortSignal,
): Promise<string> {
  const child = Bun.spawn(argv, { stdin: "ignore", stdout: "pipe", stderr: "pipe", signal });
  let why: string | undefined;
  let [shown, told] = [0, 0];
  let before = { shown, told };
  const end = (reason: string) => {
    why ??= reason;
    child.kill("SIGKILL");
  };
  const timer = setInterval(() => {
    const whole = socket?.drain((datagram) => {
      for (const _ of messages(datagram)) told += 1;
    });
    if (whole === false) end("the kernel told more than it could keep");
    else if (shown < before.told && shown === before.shown) end(`it showed ${shown} of ${told} changes`);
    before = { shown, told };
  }, patience);
  try {
    const lines = readLines(child.stdout, (line) => {
      shown += 1;
      onLine(line);
    });
    // It has nothing to say there but that events were lost.
    const errors = readLines(child.stderr, (line) => end(line.slice(0, 200)));
    await Promise.all([lines, errors, child.exited]);
  } finally {
    clearInterval(timer);
  }
  return why ?? "it ended";
}

async function readLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const pieces = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = pieces.pop() ?? "";
    for (const piece of pieces) if (piece !== "") onLine(piece);
  }
}
