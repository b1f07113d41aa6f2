/** The small process (tools/place.c) that sends and answers packets in one place of the lab. */
import { childOf, patience, until } from "../process.ts";

export type Protocol = "tcp" | "udp" | "icmp";

export interface PacketOptions {
  protocol: Protocol;
  address: string;
  /** Default 7, where every place answers. */
  port?: number;
  /** Bytes of the whole IP packet (udp, icmp) or of the message (tcp). Default 100. */
  size?: number;
  /** Send with "don't fragment". */
  dontFragment?: boolean;
  /** Source address. */
  source?: string;
}

export interface TalkOptions {
  protocol: "tcp" | "udp";
  address: string;
  /** Default 7, where every place answers. */
  port?: number;
  messages: number;
  /** Between two messages, ms. */
  interval: number;
  /** For the last answer, ms after the last message. */
  timeout?: number;
  /** UDP alone: several sockets may send from the same. */
  sourcePort?: number;
}

/** `seen` is the source address that an echo server saw (tcp and udp). */
export type Reached = { ok: true; ms: number; seen: string } | { ok: false; reason: string };

export interface Count {
  sent: number;
  received: number;
  lost: number;
  /** The longest time without anything received, ms. */
  longestGap: number;
  /** The longest round trip, ms. */
  slowest: number;
  /** Segments that TCP had to send again. */
  retransmitted: number;
  /** The last error of the socket; for tcp, why the connection ended. */
  error?: string;
}

/** A steady stream of numbered packets. */
export class Stream implements AsyncDisposable {
  readonly #place: Place;
  readonly #id: string;
  #last: Count | undefined;

  constructor(place: Place, id: string) {
    this.#place = place;
    this.#id = id;
  }

  /** What was sent and received so far; a packet under way counts as lost. */
  async count(): Promise<Count> {
    return this.#last ?? parseCount(await this.#place.ask("count", this.#id));
  }

  /** Waits until `packets` more have come back. */
  async flowing(packets = 3, timeout = 5000): Promise<void> {
    const from = (await this.count()).received;
    await until(
      `${packets} packets from ${this.#place.name} to come back`,
      async () => {
        return (await this.count()).received >= from + packets;
      },
      { timeout, why: async () => JSON.stringify(await this.count()) },
    );
  }

  /** Ends it, waiting `grace` ms at most for what is still under way. */
  async stop(grace = 1000 * patience): Promise<Count> {
    this.#last ??= parseCount(await this.#place.ask("stop", this.#id, grace));
    return this.#last;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#place.running) await this.stop(0);
  }
}

export class Place {
  readonly name: string;
  /** Its process, as this process sees it. */
  readonly pid: number;
  /** Its process in its own PID namespace. */
  readonly innerPid: number;
  readonly #child: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #waiting: Map<string, (answer: string) => void>;
  #next = 0;

  private constructor(
    name: string,
    child: Bun.Subprocess<"pipe", "pipe", "inherit">,
    pid: number,
    innerPid: number,
    waiting: Map<string, (answer: string) => void>,
  ) {
    this.name = name;
    this.#child = child;
    this.pid = pid;
    this.innerPid = innerPid;
    this.#waiting = waiting;
  }

  /** @param argv what becomes the place, by `exec` or, with `forks`, as an only child. */
  static async start(name: string, argv: string[], { forks = false } = {}): Promise<Place> {
    const child = Bun.spawn(argv, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    const waiting = new Map<string, (answer: string) => void>();
    const innerPid = Number(
      await new Promise<string>((resolve, reject) => {
        waiting.set("ready", resolve);
        void readLines(child.stdout, waiting).then(() => {
          reject(new Error(`the place ${name} did not start`));
          for (const answer of waiting.values()) answer("failed the place is gone");
        });
      }),
    );
    waiting.delete("ready");
    return new Place(name, child, forks ? childOf(child.pid)! : child.pid, innerPid, waiting);
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** One command of tools/place.c; the answer after its id. */
  ask(verb: string, ...words: (string | number)[]): Promise<string> {
    const id = String(this.#next++);
    return new Promise((resolve) => {
      if (!this.running) return resolve("failed the place is gone");
      this.#waiting.set(id, (answer) => {
        this.#waiting.delete(id);
        resolve(answer);
      });
      this.#child.stdin.write(`${[verb, id, ...words].join(" ")}\n`);
      this.#child.stdin.flush();
    });
  }

  /** Sends one packet (tcp: connects and sends one message) and waits for it to come back. */
  async reach(options: PacketOptions & { timeout?: number }): Promise<Reached> {
    return parseReached(await this.ask("reach", ...packet(options, options.timeout ?? 2000 * patience)));
  }

  /** Sends several messages by one connection or socket, with pauses between them, and waits for all to come back. */
  async talk(options: TalkOptions): Promise<Reached> {
    const {
      protocol,
      address,
      port = 7,
      messages,
      interval,
      timeout = 2000 * patience,
      sourcePort,
    } = options;
    const answer = await this.ask(
      "talk",
      ...[protocol, address, port, 100, messages, interval, timeout + messages * interval],
      sourcePort === undefined ? "-" : `:${sourcePort}`,
    );
    return parseReached(answer);
  }

  /** Starts a steady stream, `rate` packets a second. */
  async stream(options: PacketOptions & { rate?: number }): Promise<Stream> {
    const id = String(this.#next);
    const answer = await this.ask("start", ...packet(options, options.rate ?? 50));
    if (answer !== "ok") throw new Error(`${this.name} cannot send to ${options.address}: ${answer}`);
    return new Stream(this, id);
  }

  /**
   * Echo on one more port.
   * @param at where UDP is served: "any" as by a server on all addresses that leaves it to the kernel from which it
   * answers, or one address. Default: all, and each answer comes from the address that was asked.
   */
  async listen(port: number, at = ""): Promise<void> {
    const answer = await this.ask("listen", port, at);
    if (answer !== "ok") throw new Error(`${this.name} cannot listen on port ${port}: ${answer}`);
  }

  /** Sends an ICMP message as it is, but for the checksum of ICMPv6, which the kernel fills in. */
  async raw(address: string, message: Uint8Array): Promise<void> {
    const answer = await this.ask("raw", address, Buffer.from(message).toString("hex"));
    if (answer !== "ok") throw new Error(`${this.name} cannot send to ${address}: ${answer}`);
  }

  async close(): Promise<void> {
    if (this.running) process.kill(this.pid, "SIGKILL");
    await this.#child.exited;
  }
}

function packet(o: PacketOptions, last: number): (string | number)[] {
  const port = o.protocol === "icmp" ? 0 : (o.port ?? 7);
  return [o.protocol, o.address, port, o.size ?? 100, o.dontFragment ? 1 : 0, last, o.source ?? "-"];
}

function parseReached(answer: string): Reached {
  const [status, microseconds, seen = "-"] = answer.split(" ");
  if (status === "ok") return { ok: true, ms: Number(microseconds) / 1000, seen };
  return { ok: false, reason: answer.slice("failed ".length) };
}

function parseCount(answer: string): Count {
  const [status, sent, received, longestGap, slowest, retransmitted, error = "-"] = answer.split(" ");
  if (status !== "ok") throw new Error(`no count of a stream: ${answer}`);
  return {
    sent: Number(sent),
    received: Number(received),
    lost: Number(sent) - Number(received),
    longestGap: Number(longestGap),
    slowest: Number(slowest),
    retransmitted: Number(retransmitted),
    ...(error !== "-" && { error: error.replaceAll("_", " ") }),
  };
}

async function readLines(from: ReadableStream<Uint8Array>, waiting: Map<string, (answer: string) => void>) {
  let rest = "";
  const decoder = new TextDecoder();
  for await (const bytes of from) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      const [id = ""] = line.split(" ", 1);
      waiting.get(id)?.(line.slice(id.length + 1));
    }
  }
}
