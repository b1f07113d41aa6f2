import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { type Family, families } from "../../net/address.ts";
import { chainsOf, type Settings } from "./chains.ts";
import { flowCosts } from "./fixtures/flows.ts";
import { specification } from "./fixtures/specification.ts";
import { type Packet, type Walk, walk } from "./fixtures/walk.ts";
import { type SetName, setNames } from "./model.ts";

const link = "wigglenet";
const some = <T>(...values: T[]) => fc.constantFrom(...values);
const perFamily = fc.record({ ipv4: fc.boolean(), ipv6: fc.boolean() });
const settings: fc.Arbitrary<Settings> = fc.record({
  link: fc.constant(link),
  tunnelled: some<Family[]>([], ["ipv4"], ["ipv6"], ["ipv4", "ipv6"]),
  masquerade: perFamily,
  masqueradeRandomFully: fc.boolean(),
  filter: perFamily,
  packetsOver: some(undefined, 10),
});

const sets = fc.subarray([...setNames]) as fc.Arbitrary<SetName[]>;
const packets: fc.Arbitrary<Packet> = fc
  .record({
    family: some(...families),
    in: some("veth1", link, "eth0", "lo"),
    out: some("veth2", link, "eth0", undefined),
    from: sets,
    to: sets,
    repliesTo: sets,
    state: some<Packet["state"]>("new", "established", "established", "related", "invalid", "untracked"),
    direction: some("original" as const, "reply" as const),
    sourceTranslated: fc.boolean(),
    destinationTranslated: fc.boolean(),
    marked: fc.boolean(),
    packets: some(1, 11),
    icmpv6: some(undefined, 2, 135, 128, 5),
    linkLocal: fc.boolean(),
    spoofed: fc.boolean(),
  })
  .map(possible);

/** What there can be of it. */
function possible(packet: Packet): Packet {
  // Of a connection that was in the tunnel: WireGuard takes from a peer what is in its AllowedIPs, and no own pod CIDR is.
  const byTunnel = packet.in === link && packet.marked && packet.state === "established";
  const from = packet.linkLocal ? [] : packet.from.filter((set) => !(byTunnel && set === "own"));
  const own = from.includes("own");
  const both = (names: readonly SetName[]) => names.includes("own") && names.includes("remote");
  return {
    ...packet,
    // The own pod CIDRs are nobody else's.
    from: both(from) ? from.filter((set) => set !== "remote") : from,
    // What leaves by a pod's link to an own pod's address reaches that pod, whoever else claims the address.
    to: packet.to.filter((set) => {
      const reaches = packet.to.includes("own") && packet.out?.startsWith("veth");
      return !(set === "remote" && both(packet.to)) && !(reaches && (set === "nodes" || set === "hosts"));
    }),
    linkLocal: packet.linkLocal && packet.family === "ipv6",
    icmpv6: packet.family === "ipv6" ? packet.icmpv6 : undefined,
    // The first packet comes the original way, and its source is not translated yet when it is looked at. Without that
    // replies go to the source.
    ...(packet.state === "new" && { direction: "original", sourceTranslated: false, repliesTo: from }),
    ...(packet.direction === "original" && !packet.sourceTranslated && { repliesTo: from }),
    // Table 24600 has a route to each remote prefix, or makes it unreachable: none leads back by a pod's link.
    spoofed: packet.spoofed || (packet.in.startsWith("veth") && from.includes("remote") && !own),
  };
}

/** What becomes of it, without what it costs. */
function outcome({ dropped, rules, searches, searchesOfOthers, ...done }: Walk, packet: Packet): object {
  // What is dropped in the end is dropped, wherever; and has no other effect than that.
  if (dropped) return { dropped: true };
  const { from } = packet;
  return {
    ...done,
    // A source that is no pod's, but leads back by a pod's link, is another's affair.
    offloaded: done.offloaded && from.includes("own"),
  };
}

test("the chains do what the plain list of rules says, to every packet there can be", () => {
  fc.assert(
    fc.property(settings, packets, (settings, packet) => {
      // From elsewhere an own address is that of a router inside the own pod CIDR, or goes no further than this node.
      const elsewhere = !packet.in.startsWith("veth");
      const [wanted, done] = [specification(settings), chainsOf(settings)].map((chains) => {
        const result = outcome(walk(chains, packet), packet);
        return elsewhere ? { ...result, marked: "either" } : result;
      });
      if (!Bun.deepEquals(done, wanted)) expect(done).toEqual(wanted!);
    }),
    { numRuns: 2_000 },
  );
});

test("what a packet of an established flow passes: rules, searches in sets, and of those in sets of other nodes", () => {
  const lines = flowCosts().map(({ title, family, verdict, rules, searches, searchesOfOthers, plain }) => {
    const before = `${plain.rules}, ${plain.searches}, ${plain.searchesOfOthers}`;
    return `${family} ${title}: ${verdict}, ${rules}, ${searches}, ${searchesOfOthers} (as a plain list ${before})`;
  });
  expect(lines.join("\n")).toMatchInlineSnapshot(`
    "ipv4 pod → pod of another node: pass, 8, 1, 0 (as a plain list 24, 7, 1)
    ipv4 its answer: pass, 6, 2, 0 (as a plain list 20, 6, 1)
    ipv4 pod → Service → pod of another node: pass, 8, 1, 0 (as a plain list 24, 8, 1)
    ipv4 pod → node: pass, 8, 1, 0 (as a plain list 24, 7, 1)
    ipv4 pod → pod of its own node: pass, 13, 3, 0 (as a plain list 20, 16, 7)
    ipv4 pod → outside: pass, 17, 4, 2 (as a plain list 24, 13, 5)
    ipv4 its answer from outside: pass, 10, 3, 1 (as a plain list 20, 6, 2)
    ipv4 outside → node: pass, 7, 3, 2 (as a plain list 7, 4, 2)
    ipv6 pod → pod of another node: pass, 8, 1, 0 (as a plain list 27, 8, 1)
    ipv6 its answer: pass, 6, 2, 0 (as a plain list 22, 6, 1)
    ipv6 pod → Service → pod of another node: pass, 8, 1, 0 (as a plain list 27, 9, 1)
    ipv6 pod → node: pass, 8, 1, 0 (as a plain list 27, 8, 1)
    ipv6 pod → pod of its own node: pass, 13, 3, 0 (as a plain list 22, 16, 7)
    ipv6 pod → outside: pass, 17, 4, 2 (as a plain list 27, 14, 5)
    ipv6 its answer from outside: pass, 10, 3, 1 (as a plain list 22, 6, 2)
    ipv6 outside → node: pass, 8, 3, 2 (as a plain list 10, 4, 2)"
  `);
});

test("docs/performance.md has these figures", () => {
  const text = readFileSync(join(import.meta.dirname, "../../../docs/performance.md"), "utf8");
  const rows = flowCosts().flatMap(({ title, family, verdict, rules, searches, searchesOfOthers, plain }) =>
    family === "ipv4"
      ? `| ${title} | ${verdict} | ${rules} | ${searches} | ${searchesOfOthers} | ${plain.rules} | ${plain.searches} | ${plain.searchesOfOthers} |`
      : [],
  );
  expect(text).toContain(rows.join("\n"));
});
