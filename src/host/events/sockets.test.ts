import { expect, test } from "bun:test";
import type { Finding } from "../../report/findings.ts";
import { type Netlink, NetlinkError, protocol } from "./netlink.ts";
import { Sockets, unheard } from "./sockets.ts";

const withoutJit = new TypeError("bun:ffi requires the JIT");

test("all can be opened: nothing to say", () => {
  expect(unheard([])).toBeUndefined();
});

test.each<[reason: Error, remedy: string]>([
  [withoutJit, "BUN_JSC_useJIT"],
  [new NetlinkError("socket of protocol 12", 1), "EPERM: give the agent the capability NET_ADMIN"],
  [new NetlinkError("to listen to group 7", 13), "EACCES: give the agent the capability NET_ADMIN"],
  [new NetlinkError("socket of protocol 12", 93), "EPROTONOSUPPORT: modprobe nf_tables"],
  [new NetlinkError("bind", 105), "ENOBUFS: it is tried again"],
  [new NetlinkError("bind", 24), "error 24: it is tried again"],
])("%s: %s", (error, remedy) => {
  expect(unheard([{ name: "firewall", error }])).toEqual({
    severity: "warning",
    message: expect.stringContaining(remedy),
  });
});

test("the same reason for both is said once", () => {
  const { message = "" } =
    unheard([
      { name: "firewall", error: withoutJit },
      { name: "routes", error: withoutJit },
    ]) ?? {};
  expect(message.split("bun:ffi requires the JIT")).toHaveLength(2);
  expect(message).toContain("looked for every 5 s");
  expect(message).toContain("ip monitor");
});

test("what cannot be opened is tried again, what is open stays, and the finding is over with the last", () => {
  const refused = new Set<number>([protocol.netfilter, protocol.route]);
  const opened: number[] = [];
  const sockets = new Sockets((which) => {
    if (refused.has(which)) throw new NetlinkError("socket", 105);
    opened.push(which);
    return {} as Netlink;
  });
  const findings: (Finding | undefined)[] = [];
  const open = () => sockets.open((finding) => findings.push(finding));
  expect(open()).toBe(false);
  expect(sockets.get("routes")).toBeUndefined();
  refused.delete(protocol.route);
  expect(open()).toBe(false);
  expect(sockets.get("routes")).toBeDefined();
  refused.clear();
  expect(open()).toBe(true);
  expect(opened).toEqual([protocol.route, protocol.netfilter]);
  expect(findings.map((finding) => finding?.message.includes("ip monitor"))).toEqual([
    true,
    false,
    undefined,
  ]);
});
