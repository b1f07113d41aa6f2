import { describe, expect, test } from "bun:test";
import pino from "pino";
import type { Resource } from "../host/resource.ts";
import { Failures } from "./failures.ts";
import { noObserver } from "./observer.ts";
import { apply, phases } from "./phases.ts";
import type { Resources, Target } from "./resources.ts";

/** What a pass does with the resources, in order, and what it says of failures, if these parts fail. */
async function run(failing: readonly string[] = [], pods = true) {
  const did: string[] = [];
  const part = (name: string) => async () => {
    did.push(name);
    if (failing.includes(name)) throw new Error("no");
  };
  const resources = new Proxy({} as Resources, {
    get: (_, name: string): Resource<Target> => ({
      invalidate: () => undefined,
      guard: part(`guard ${name}`),
      add: part(`add ${name}`),
      remove: part(`remove ${name}`),
    }),
  });
  const failures = new Failures(pino({ enabled: false }), noObserver, () => undefined);
  await apply(resources, {} as Target, pods, failures);
  return { did, reasons: failures.reasons };
}

const all = [
  "add tunnelLink",
  "add identity",
  "add sysctls",
  "add linkSettings",
  "guard firewall",
  "add foreignRules",
  "add foreignLinks",
  "add foreignRoutes",
  "add peers",
  "add routes",
  "add firewall",
  "add flowTable",
  "remove routes",
  "remove peers",
  "remove tunnelLink",
  "add greeter",
  "add forwarding",
  "add podLinks",
  "add cniFolder",
  "add hostPorts",
  "add annotations",
  "add cniFile",
];

test("all in order: added before anything is removed, others told once it is there, pods last", async () => {
  expect(await run()).toEqual({ did: all, reasons: [] });
});

test("without pods of its own: masquerade and filter, and what an earlier configuration left is removed", async () => {
  expect((await run([], false)).did).toEqual([
    "add firewall",
    "add flowTable",
    "remove cniFile",
    "remove routes",
    "remove peers",
    "remove tunnelLink",
    "add annotations",
  ]);
});

describe("what fails stops only what comes after it", () => {
  /** What is not done any more, and what is done instead. */
  async function changes(failing: string) {
    const { did, reasons } = await run([failing]);
    return {
      left: all.filter((each) => !did.includes(each)),
      instead: did.filter((each) => !all.includes(each)),
      reasons,
    };
  }
  const removed = ["remove routes", "remove peers", "remove tunnelLink"];
  const behindRoutes = ["add firewall", "add flowTable", ...removed, "add greeter"];
  test.each<[failing: string, phase: string, left: string[], instead: string[]]>([
    // Nobody is told of a tunnel that is not there, and no route leads into it.
    [
      "add tunnelLink",
      "tunnel",
      ["add identity", "add peers", "add routes", ...behindRoutes, "add annotations", "add cniFile"],
      ["guard routes"],
    ],
    [
      "add identity",
      "tunnel",
      ["add peers", "add routes", ...behindRoutes, "add annotations", "add cniFile"],
      ["guard routes"],
    ],
    ["add linkSettings", "link", ["add cniFile"], []],
    ["guard firewall", "guard", ["add cniFile"], []],
    ["add peers", "peers to add", ["add routes", ...behindRoutes, "add cniFile"], ["guard routes"]],
    // Nothing is removed before all is there that takes its place.
    ["add routes", "routes to add", [...behindRoutes, "add cniFile"], []],
    ["add firewall", "firewall", ["add flowTable", "add cniFile"], []],
    ["add flowTable", "flow table", [], []],
    // A peer stays for as long as something is routed to it.
    ["remove routes", "routes to remove", ["remove peers", "remove tunnelLink", "add cniFile"], []],
    ["remove peers", "peers to remove", [], []],
    ["add forwarding", "forwarding", [], []],
    ["add annotations", "annotations", [], []],
    ["add cniFile", "CNI file", [], []],
  ])("%s", async (failing, phase, left, instead) => {
    expect(await changes(failing)).toEqual({ left, instead, reasons: [`${phase}: no`] });
  });
});

test("each phase names phases that come before it", () => {
  const names = phases.map(({ name }) => name);
  for (const [index, { after = [], unless }] of phases.entries())
    for (const each of [...after, ...(unless === undefined ? [] : [unless])])
      expect(names.slice(0, index)).toContain(each);
});
