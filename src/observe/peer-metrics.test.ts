import { expect, test } from "bun:test";
import { PeerTraffic, parsePeerTraffic } from "./peer-metrics.ts";

const now = 1_700_000_000;

/** A line of `wg show LINK dump`. */
const line = (
  index: number,
  { handshake = 0, received = 0, sent = 0, endpoint = `192.0.2.${index % 250}:24601` } = {},
) => [`key${index}`, "(none)", endpoint, "10.0.0.0/24", handshake, received, sent, "off"].join("\t");
const dump = (lines: string[]) => ["private\tpublic\t24601\toff", ...lines, ""].join("\n");
const nodes = (count: number) =>
  new Map(Array.from({ length: count }, (_, index) => [`key${index}`, `n${index}`]));

test("what wg shows of each peer, with its node", () => {
  const output = dump([
    line(1, { handshake: now - 5, received: 10, sent: 20 }),
    line(2, { endpoint: "[2001:db8::2]:24601" }),
    line(3, { endpoint: "(none)", sent: 148 }),
  ]);
  const peer = { received: 0, sent: 0, handshake: 0 };
  expect(parsePeerTraffic(output, nodes(3))).toEqual([
    {
      ...peer,
      publicKey: "key1",
      node: "n1",
      endpoint: "192.0.2.1:24601",
      handshake: now - 5,
      received: 10,
      sent: 20,
    },
    { ...peer, publicKey: "key2", node: "n2", endpoint: "[2001:db8::2]:24601" },
    // One that somebody else has put there.
    { ...peer, publicKey: "key3", node: "", endpoint: "", sent: 148 },
  ]);
});

const look = (traffic: PeerTraffic, lines: string[], at = now) =>
  traffic.look(parsePeerTraffic(dump(lines), nodes(1_000)), at);

test("up to 200 peers are all shown", () => {
  const lines = Array.from({ length: 200 }, (_, index) => line(index));
  const { shown, silent } = look(new PeerTraffic(), lines);
  expect([shown.length, silent]).toEqual([200, 0]);
});

test("of more those that do not answer", () => {
  const idle = Array.from({ length: 190 }, (_, index) => line(index, { handshake: now - 5_000, sent: 9 }));
  const never = Array.from({ length: 20 }, (_, index) => line(200 + index));
  // Greeted, and never heard of.
  const deaf = line(300, { sent: 148 });
  const well = (at: number, sent = 1_000) => line(301, { handshake: at - 20, sent });
  const lost = (sent: number) => line(302, { handshake: now - 170, sent });
  const traffic = new PeerTraffic();
  const names = (lines: string[], at: number) => look(traffic, lines, at).shown.map(({ node }) => node);
  expect(names([...idle, ...never, deaf, well(now), lost(5_000)], now)).toEqual(["n300"]);
  // What is sent to it is not answered any more.
  const later = now + 30;
  expect(names([...idle, ...never, deaf, well(later, 2_000), lost(5_148)], later)).toEqual(["n300", "n302"]);
  // Three minutes after the last attempt nobody wants anything of it.
  const muchLater = later + 181;
  expect(names([...idle, ...never, deaf, well(muchLater), lost(5_148)], muchLater)).toEqual([]);
  expect(look(traffic, [...idle, ...never, deaf, well(muchLater), lost(9_000)], muchLater).silent).toBe(1);
});

test("never more than 200, those that are silent for the longest first", () => {
  const lines = Array.from({ length: 500 }, (_, index) => line(index, { sent: 148, handshake: index }));
  const traffic = new PeerTraffic();
  look(traffic, lines);
  const again = lines.map((_, index) => line(index, { sent: 296, handshake: index }));
  const { shown, silent } = look(traffic, again, now + 15);
  expect([shown.length, silent, shown[0]?.node, shown.at(-1)?.node]).toEqual([200, 500, "n0", "n199"]);
});
