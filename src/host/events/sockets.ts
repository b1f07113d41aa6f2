/** The netlink sockets that the agent listens to, and what it says as long as one cannot be opened. */
import type { Finding } from "../../report/findings.ts";
import { Netlink, NetlinkError, protocol } from "./netlink.ts";

export type SocketName = "firewall" | "routes";

interface Wanted {
  protocol: number;
  /** Of multicast. */
  groups: readonly number[];
  /** What the agent does without it. */
  instead: string;
}

const NFNLGRP_NFTABLES = 7;

/** Milliseconds between two attempts to open what could not be opened. */
const retry = 5_000;

const wanted: Record<SocketName, Wanted> = {
  firewall: {
    protocol: protocol.netfilter,
    groups: [NFNLGRP_NFTABLES],
    instead:
      "changes of the firewall's chains are looked for every 5 s with nft, all else of it at the resync alone",
  },
  // Links 1, addresses 5 and 9, routes 7 and 11, rules 8 and 19, netconf 24 and 25: what `ip monitor` is asked for.
  routes: {
    protocol: protocol.route,
    groups: [1, 5, 9, 7, 11, 8, 19, 24, 25],
    instead: "an ip monitor that hangs is not noticed: what it misses is repaired at the resync",
  },
};

type Open = (protocol: number, groups: readonly number[]) => Netlink;

export class Sockets {
  readonly #open: Partial<Record<SocketName, Netlink>> = {};
  readonly #opener: Open;

  constructor(opener: Open = Netlink.open) {
    this.#opener = opener;
  }

  /** Undefined as long as it cannot be opened. */
  get(name: SocketName): Netlink | undefined {
    return this.#open[name];
  }

  /** Opens both, now or as soon as it can be done. @param report told when it is known, and when it changes */
  start(report: (finding: Finding | undefined) => void): void {
    if (this.open(report)) return;
    const timer = setInterval(() => {
      if (this.open(report)) clearInterval(timer);
    }, retry);
    timer.unref();
  }

  /** @returns whether both are open */
  open(report: (finding: Finding | undefined) => void): boolean {
    const failed = (Object.keys(wanted) as SocketName[]).flatMap((name) => {
      try {
        const { protocol, groups } = wanted[name];
        this.#open[name] ??= this.#opener(protocol, groups);
        return [];
      } catch (error) {
        return [{ name, error: error as Error }];
      }
    });
    report(unheard(failed));
    return failed.length === 0;
  }
}

/** What to say of sockets that cannot be opened. */
export function unheard(failed: readonly { name: SocketName; error: Error }[]): Finding | undefined {
  if (failed.length === 0) return undefined;
  const reasons = [...new Set(failed.map(({ error }) => `${error.message}: ${remedy(error)}`))];
  const instead = failed.map(({ name }) => wanted[name].instead);
  return {
    severity: "warning",
    message: `the kernel cannot be listened to by netlink: ${instead.join("; ")}. ${reasons.join("; ")}`,
  };
}

function remedy(error: Error): string {
  if (!(error instanceof NetlinkError))
    // What bun:ffi throws where it may not make machine code.
    return "start the agent without BUN_JSC_useJIT=0, and allow it executable memory (SELinux: execmem; systemd: MemoryDenyWriteExecute=no)";
  switch (error.code) {
    case "EPERM":
    case "EACCES":
      return "give the agent the capability NET_ADMIN, and let seccomp and SELinux allow it netlink sockets";
    case "EPROTONOSUPPORT":
    case "EAFNOSUPPORT":
      return "modprobe nf_tables, or install a kernel that has it";
    default:
      return "it is tried again every 5 s";
  }
}
