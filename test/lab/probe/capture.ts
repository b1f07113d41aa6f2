/** What crosses the underlay, as tcpdump sees it on the bridge. */
import { readFileSync } from "node:fs";
import { podRanges } from "../cluster/controlplane.ts";
import { routerAddresses, type Underlay } from "../kernel/underlay.ts";
import { type Service, until } from "../process.ts";

export const wireguardPort = 24601;

/** Packets that have a pod's address on them. */
export const clearPodTraffic = Object.values(podRanges)
  .map((range) => `net ${range}`)
  .join(" or ");

/** Everything but WireGuard, ARP, neighbour discovery, what hosts tell of multicast groups, and the API server. */
export const anythingClear = [
  `not udp port ${wireguardPort}`,
  "not arp",
  "not igmp",
  "not (icmp6 and (ip6[40] >= 130 and ip6[40] <= 137 or ip6[40] == 143))",
  "not (ip6 proto 0)",
  ...Object.values(routerAddresses).map((address) => `not (host ${address} and tcp port 6443)`),
].join(" and ");

const markPort = 24699;
let captures = 0;

export class Capture implements AsyncDisposable {
  readonly #underlay: Underlay;
  readonly #tcpdump: Service;

  private constructor(underlay: Underlay, tcpdump: Service) {
    this.#underlay = underlay;
    this.#tcpdump = tcpdump;
  }

  /** @param filter of tcpdump; it surely listens when this returns. */
  static async start(underlay: Underlay, filter = clearPodTraffic): Promise<Capture> {
    const flags = ["-n", "-l", "-q", "--immediate-mode", "-s", "128", "-B", "8192", "-i", "br0"];
    const expression = `(${filter}) or (udp dst port ${markPort} and src host ${routerAddresses.ipv4})`;
    const log = `${underlay.dir}/log/capture-${++captures}.log`;
    const tcpdump = underlay.router.start("tcpdump", ["tcpdump", ...flags, expression], log);
    const capture = new Capture(underlay, tcpdump);
    await until(
      "tcpdump to listen",
      () => {
        if (!tcpdump.running) throw new Error(`tcpdump has ended: ${tcpdump.tail()}`);
        return readFileSync(log, "utf8").includes("listening on");
      },
      { every: 10 },
    );
    return capture;
  }

  /** The packets so far, one line each: everything that crossed before this call is there. */
  async packets(): Promise<string[]> {
    // A packet of our own, sent now: when tcpdump has written it, it has written all that came before.
    const before = this.#marks();
    await until("tcpdump to write what it saw", async () => {
      await this.#underlay.router.place.reach({
        protocol: "udp",
        address: markAddress,
        port: markPort,
        timeout: 1,
      });
      return this.#marks() > before;
    });
    return this.#lines().filter((line) => !line.includes(`.${markPort}:`));
  }

  /** The packets, at the end. */
  async stop(): Promise<string[]> {
    const packets = await this.packets();
    await this.#tcpdump.stop();
    return packets;
  }

  #lines(): string[] {
    return readFileSync(this.#tcpdump.log, "utf8")
      .split("\n")
      .filter((line) => /^\d\d:\d\d:\d\d\.\d+ IP/.test(line));
  }

  #marks(): number {
    return this.#lines().filter((line) => line.includes(`.${markPort}:`)).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tcpdump.stop("SIGKILL");
  }
}

/** Multicast, so that nobody needs to be there to be asked for. */
const markAddress = "224.0.0.251";
