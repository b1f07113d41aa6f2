/** Echo requests as they arrive in a place: their answers do not tell what source address was seen there. */
import { readFileSync } from "node:fs";
import type { Host } from "../kernel/namespace.ts";
import { Service, until } from "../process.ts";

export class Arrivals implements AsyncDisposable {
  readonly #tcpdump: Service;
  #begin = 0;

  private constructor(tcpdump: Service) {
    this.#tcpdump = tcpdump;
  }

  /** @param dir for its log */
  static async start({ name, addresses, place }: Host, dir: string): Promise<Arrivals> {
    const { ipv4, ipv6 } = addresses;
    const filters = [
      ...(ipv4 ? [`icmp[icmptype] = icmp-echo and dst host ${ipv4}`] : []),
      ...(ipv6 ? [`icmp6 and ip6[40] = 128 and dst host ${ipv6}`] : []),
    ];
    const filter = filters.map((each) => `(${each})`).join(" or ");
    const log = `${dir}/log/arrivals-${name.replace("/", "-")}.log`;
    // Each packet in the buffer takes as much as it may have: with tcpdump's own sizes a burst of nine overflows it.
    const buffer = ["-s", "128", "-B", "8192"];
    const argv = ["tcpdump", "-n", "-l", "--immediate-mode", ...buffer, "-Q", "in", "-i", "any", filter];
    const tcpdump = Service.start(`tcpdump in ${name}`, argv, { log, within: place.pid });
    await until("tcpdump to listen", () => readFileSync(log, "utf8").includes("listening on"), {
      every: 10,
      why: () => tcpdump.tail(),
    });
    return new Arrivals(tcpdump);
  }

  /** Forgets what came so far. */
  clear(): void {
    this.#begin = readFileSync(this.#tcpdump.log, "utf8").length;
  }

  /** The source of the echo request of so many bytes of IP, once it is there. */
  async source(family: "ipv4" | "ipv6", size: number): Promise<string> {
    const header = family === "ipv4" ? 20 : 40;
    const word = family === "ipv4" ? "IP" : "IP6";
    const line = new RegExp(` ${word} (\\S+) > .* echo request, .* length ${size - header}$`, "m");
    return await until(
      `an echo request of ${size} bytes`,
      () => line.exec(readFileSync(this.#tcpdump.log, "utf8").slice(this.#begin))?.[1],
      { every: 10, why: () => this.#tcpdump.tail() },
    );
  }

  /** Of all that came so far. */
  sources(): string[] {
    const text = readFileSync(this.#tcpdump.log, "utf8").slice(this.#begin);
    return [...text.matchAll(/ IP6? (\S+) > .* echo request/g)].map(([, source]) => source!);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tcpdump.stop("SIGKILL");
  }
}
