/** Resources that look at what changed alone: whatever comes and goes, and fails, the kernel has what a full look would leave. */

import { expect, test } from "bun:test";
import fc from "fast-check";
import { families } from "../net/address.ts";
import { Table } from "../net/table.ts";
import type { Peer } from "../plan/desired.ts";
import { type Route, routeKey, routePlace } from "../plan/overlay/routes.ts";
import { type Command, command } from "./command.ts";
import type { Perform, Reader } from "./executor.ts";
import { Links } from "./link.ts";
import { Peers } from "./peers.ts";
import { Routes } from "./routes.ts";
import { WireGuard } from "./wireguard.ts";

/** A reader for whom commands print what `answer` says. */
const readerOf = (answer: (argv: readonly string[]) => string) =>
  ({ $: async (pieces, ...words) => answer(command(pieces, ...words).argv) }) as Reader;

/** Carries steps out, or fails before so many commands. */
const performing =
  (run: (command: Command) => void, failing: { at: number }): Perform =>
  async (_, steps) => {
    for (const step of steps) {
      if (failing.at-- === 0) throw new Error("it failed");
      run(step as Command);
    }
  };

/** What happens in a pass. */
const trouble = fc.record({
  /** The command before which it fails, if there are as many. */
  failing: fc.option(fc.nat(3), { nil: Number.POSITIVE_INFINITY }),
  /** Whether the kernel is looked at anew. */
  resync: fc.boolean(),
});

test("peers", async () => {
  const prefixes = fc.uniqueArray(
    fc.nat(9).map((n) => `10.0.${n}.0/24`),
    { maxLength: 4 },
  );
  const peer = fc.record({ key: fc.constantFrom("A", "B", "C", "D"), prefixes, gone: fc.boolean() });
  const passes = fc.array(fc.tuple(fc.array(peer, { maxLength: 3 }), trouble), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(passes, async (passes) => {
      const kernel = new Map<string, Set<string>>();
      const run = ({ argv }: Command) => {
        expect(argv.slice(0, 3)).toEqual(["wg", "set", "wigglenet"]);
        let key = "";
        for (const [index, word] of argv.entries()) {
          const value = argv[index + 1] ?? "";
          if (word === "peer") {
            key = value;
            if (!kernel.has(key)) kernel.set(key, new Set());
          }
          if (word === "remove") kernel.delete(key);
          if (word !== "allowed-ips") continue;
          const list = value.split(",");
          for (const others of kernel.values()) for (const prefix of list) others.delete(prefix);
          kernel.set(key, new Set(list));
        }
      };
      const dump = () =>
        ["private\tpublic\t24601\toff"]
          .concat(
            [...kernel].map(([key, list]) => `${key}\t(none)\t(none)\t${[...list].join(",")}\t0\t0\t0\toff`),
          )
          .join("\n");
      const reader = readerOf((argv) =>
        argv[0] === "wg" ? dump() : '[{"ifname":"wigglenet","linkinfo":{"info_kind":"wireguard"}}]',
      );
      const failing = { at: Number.POSITIVE_INFINITY };
      const links = new Links(reader);
      const peers = new Peers(
        "wigglenet",
        new WireGuard(reader, "wigglenet", links),
        performing(run, failing),
      );
      const table = new Table<Peer>();
      const pass = async (at: number) => {
        failing.at = at;
        try {
          await peers.add({ link: {}, peers: table, leaving: families });
          await peers.remove({ link: {}, peers: table, leaving: families });
        } catch {
          return;
        }
        const wanted = [...table.values()].map((each) => [each.publicKey, [...each.allowedIps].sort()]);
        const there = [...kernel].map(([key, list]) => [key, [...list].sort()]);
        expect(Object.fromEntries(there)).toEqual(Object.fromEntries(wanted));
      };
      for (const [changes, { failing, resync }] of passes) {
        for (const { key, prefixes, gone } of changes) {
          if (gone) table.delete(key);
          else {
            // A prefix is one peer's.
            for (const other of [...table.values()]) {
              const left = other.allowedIps.filter((prefix) => !prefixes.includes(prefix));
              if (left.length < other.allowedIps.length)
                table.set(other.publicKey, { ...other, allowedIps: left });
            }
            table.set(key, { node: key, publicKey: key, endpoint: undefined, allowedIps: prefixes });
          }
        }
        if (resync) peers.invalidate("resync");
        await pass(failing);
      }
      await pass(Number.POSITIVE_INFINITY);
    }),
  );
});

test("routes", async () => {
  const route = fc.record({
    type: fc.constantFrom("tunnel" as const, "throw" as const, "unreachable" as const),
    prefix: fc.constantFrom("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"),
    table: fc.constant("24600" as const),
  });
  const change = fc.record({ route, gone: fc.boolean() });
  const passes = fc.array(fc.tuple(fc.array(change, { maxLength: 3 }), trouble), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(passes, async (passes) => {
      const kernel = new Map<string, Route>();
      const run = ({ stdin = "" }: Command) => {
        for (const line of stdin.trimEnd().split("\n")) {
          const [, verb, type = "", prefix = "", table] =
            /^route (replace|delete) (?:(unreachable|throw) )?(\S+) .*table (\S+)/.exec(line) ?? [];
          expect(table).toBe("24600");
          const route = { type: type || "tunnel", prefix, table: "24600" } as Route;
          if (verb === "replace") kernel.set(routePlace(route), route);
          else expect(kernel.delete(routePlace(route))).toBe(true);
        }
      };
      const listed = () =>
        JSON.stringify(
          [...kernel.values()].map(({ type, prefix, table }) => ({
            dst: prefix,
            table,
            ...(type === "tunnel" ? { dev: "wigglenet" } : { type: type === "throw" ? "9" : "7" }),
            ...(type === "unreachable" ? { metric: 4096 } : {}),
          })),
        );
      const reader = readerOf((argv) => (argv.includes("all") ? listed() : "[]"));
      const failing = { at: Number.POSITIVE_INFINITY };
      const perform = performing(run, failing);
      const routes = new Routes({ reader, link: "wigglenet", families: ["ipv4"], perform });
      const table = new Table<Route>((a, b) => a.type === b.type);
      const pass = async (at: number) => {
        failing.at = at;
        try {
          await routes.add({ routes: table, rules: [] });
          await routes.remove({ routes: table, rules: [] });
        } catch {
          return;
        }
        expect([...kernel.values()].map(routeKey).sort()).toEqual([...table.values()].map(routeKey).sort());
      };
      for (const [changes, { failing, resync }] of passes) {
        for (const { route, gone } of changes) {
          if (gone) table.delete(routePlace(route));
          else table.set(routePlace(route), route);
        }
        if (resync) routes.invalidate("resync");
        await pass(failing);
      }
      await pass(Number.POSITIVE_INFINITY);
    }),
  );
});
