/** A rule in the words of nft: as it is written, and as `nft -j list` shows it. */
import type { Family } from "../../net/address.ts";
import {
  type Conditions,
  connectionMarkBit,
  markBit,
  type Rule,
  type Transfer,
  type Verdict,
} from "../../plan/firewall/model.ts";
import * as flowtable from "./flowtable.ts";

export interface NftRule {
  text: string;
  /** What it is, by which it is compared with one that was listed: see `listedForm`. */
  form: string;
}

/** A statement as text, and as nft lists it in JSON. */
type Statement = readonly [text: string, listed: unknown];

const keyword: Record<Family, string> = { ipv4: "ip", ipv6: "ip6" };

/** nft lists names for these numbers. */
const icmpv6Names: Record<number, string> = {
  1: "destination-unreachable",
  2: "packet-too-big",
  3: "time-exceeded",
  4: "parameter-problem",
  128: "echo-request",
  129: "echo-reply",
  133: "nd-router-solicit",
  134: "nd-router-advert",
  135: "nd-neighbor-solicit",
  136: "nd-neighbor-advert",
  137: "nd-redirect",
};

const states = {
  ongoing: ["established"],
  established: ["established", "related"],
  direct: ["established", "new"],
  invalid: ["invalid", "untracked"],
};

/** @param family of the packets that come to it; undefined for a rule of both, which matches no address */
export function nftRule({ match, verdict }: Rule, family: Family | undefined): NftRule {
  return statements([...conditions(match, family), ...verdictOf(verdict, family)]);
}

/** Sends the packets of one family on to a chain. */
export function familyRule(family: Family, chain: string): NftRule {
  const ofFamily = is(["meta nfproto", { meta: { key: "nfproto" } }], "==", [family, family]);
  return statements([ofFamily, transfer({ goto: chain })]);
}

/**
 * What a listed rule is, without what it has counted.
 * @param expressions the value of `expr` in the listing
 * @param family of the chain; a match of this family, which nft adds to a match of its addresses, says nothing more there
 */
export function listedForm(expressions: readonly object[], family: Family | undefined): string {
  const said = expressions.filter(
    (each) =>
      JSON.stringify(each) !==
      JSON.stringify({ match: { op: "==", left: { meta: { key: "nfproto" } }, right: family } }),
  );
  return JSON.stringify(said.map((each) => ("counter" in each ? { counter: null } : plain(each))));
}

function statements(all: readonly Statement[]): NftRule {
  return {
    text: all.map(([text]) => text).join(" "),
    form: JSON.stringify(all.map(([, listed]) => plain(listed))),
  };
}

/** Versions differ in whether a list of one is a list, and in its order where that says nothing. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) {
    const items = value.map(plain);
    if (items.length === 1) return items[0];
    return items.every((item) => typeof item === "string") ? items.sort() : items;
  }
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

function is(
  [text, left]: Statement,
  op: "==" | "!=" | "in" | "!" | ">",
  [value, right]: Statement,
): Statement {
  const sign = op === "==" || op === "in" ? "" : `${op} `;
  return [`${text} ${sign}${value}`, { match: { op, left, right } }];
}

function conditions(match: Conditions, family: Family | undefined): Statement[] {
  const ip = family && keyword[family];
  if (ip === undefined && /from|to|repl/i.test(Object.keys(match).join()))
    throw new Error(`a rule of both families matches addresses: ${JSON.stringify(match)}`);
  const meta = (key: string): Statement => [key, { meta: { key } }];
  const ct = (key: string): Statement => [`ct ${key}`, { ct: { key } }];
  const link = (name: string): Statement => [`"${nftLink(name)}"`, nftLink(name)];
  const word = (value: string | number): Statement => [String(value), value];
  const field = (name: "saddr" | "daddr"): Statement => [
    `${ip} ${name}`,
    { payload: { protocol: ip, field: name } },
  ];
  const replies: Statement = [`ct reply ${ip} daddr`, { ct: { key: `${ip} daddr`, dir: "reply" } }];
  const address = (value: string): Statement => {
    if (value.startsWith("@")) return word(`${value}-${family}`);
    const [addr = "", length] = value.split("/");
    const whole = length === (family === "ipv4" ? "32" : "128");
    return [value, whole ? addr : { prefix: { addr, len: Number(length) } }];
  };
  const { connectionMarked, destinationTranslated, state } = match;
  return [
    ...(match.in ? [is(meta("iifname"), "==", link(match.in))] : []),
    ...(match.notIn ? [is(meta("iifname"), "!=", link(match.notIn))] : []),
    ...(match.out ? [is(meta("oifname"), "==", link(match.out))] : []),
    ...(match.notOut ? [is(meta("oifname"), "!=", link(match.notOut))] : []),
    // First what says no at the least cost: each set is a search.
    ...(connectionMarked === undefined ? [] : [marked(connectionMarked)]),
    ...(match.direction ? [is(ct("direction"), "==", word(match.direction))] : []),
    ...(destinationTranslated === undefined ? [] : [status("dnat", destinationTranslated)]),
    ...(match.sourceTranslated === undefined ? [] : [status("snat", match.sourceTranslated)]),
    ...(match.untranslated ? [untranslated] : []),
    ...(state ? [is(ct("state"), "in", [states[state].join(","), states[state]])] : []),
    ...(match.repliesTo ? [is(replies, "==", address(match.repliesTo))] : []),
    ...(match.repliesNotTo ?? []).map((value) => is(replies, "!=", address(value))),
    ...(match.from ? [is(field("saddr"), "==", address(match.from))] : []),
    ...(match.notFrom ?? []).map((value) => is(field("saddr"), "!=", address(value))),
    ...(match.to ? [is(field("daddr"), "==", address(match.to))] : []),
    ...(match.notTo ?? []).map((value) => is(field("daddr"), "!=", address(value))),
    ...(match.packetsOver === undefined ? [] : [is(ct("packets"), ">", word(match.packetsOver))]),
    ...(match.icmpv6 === undefined ? [] : [icmpv6(match.icmpv6)]),
    ...(match.spoofed ? [spoofed] : []),
  ];
}

/** As nft writes the name of a link, and of all that begin so. */
function nftLink(name: string): string {
  return name.replace(/\+$/, "*");
}

const spoofed: Statement = [
  "fib saddr . iif oif missing",
  { match: { op: "==", left: { fib: { result: "oif", flags: ["saddr", "iif"] } }, right: false } },
];

function marked(isSo: boolean): Statement {
  const [op, left] = [isSo ? "!=" : "==", { "&": [{ ct: { key: "mark" } }, Number(connectionMarkBit)] }];
  return [`ct mark & ${connectionMarkBit} ${op} 0`, { match: { op, left, right: 0 } }];
}

function status(bit: "dnat" | "snat", set: boolean): Statement {
  const listed = { match: { op: set ? "in" : "!", left: { ct: { key: "status" } }, right: bit } };
  return [`ct status & ${bit} ${set ? "!=" : "=="} 0`, listed];
}

/** IPS_CONFIRMED, and not IPS_SRC_NAT. */
const untranslated: Statement = [
  "ct status & 0x18 == 0x8",
  {
    match: {
      op: "==",
      left: { "&": [{ ct: { key: "status" } }, ["confirmed", "snat"]] },
      right: "confirmed",
    },
  },
];

function icmpv6(types: readonly number[]): Statement {
  const left = { payload: { protocol: "icmpv6", field: "type" } };
  const names = types.map((type) => icmpv6Names[type] ?? type);
  return [`icmpv6 type { ${types.join(", ")} }`, { match: { op: "==", left, right: { set: names } } }];
}

const counter: Statement = ["counter", { counter: null }];
const accept: Statement = ["accept", { accept: null }];

/** Sets a bit of a packet's or a connection's mark. */
function setting(of: "meta" | "ct", bit: string): Statement {
  const mark = { [of]: { key: "mark" } };
  return [
    `${of} mark set ${of} mark or ${bit}`,
    { mangle: { key: mark, value: { "|": [mark, Number(bit)] } } },
  ];
}

const verdicts: Record<Extract<Verdict, string>, readonly Statement[]> = {
  pass: [accept],
  count: [counter, accept],
  drop: [counter, ["drop", { drop: null }]],
  return: [["return", { return: null }]],
  mark: [setting("meta", markBit)],
  "mark-connection": [setting("ct", connectionMarkBit)],
  masquerade: [["masquerade", { masquerade: null }]],
  "masquerade-random": [["masquerade fully-random", { masquerade: { flags: "fully-random" } }]],
  offload: [[`flow add @${flowtable.name}`, { flow: { op: "add", flowtable: `@${flowtable.name}` } }]],
};

function verdictOf(verdict: Verdict, family: Family | undefined): readonly Statement[] {
  if (typeof verdict === "string") return verdicts[verdict];
  if (!("map" in verdict)) return [transfer(verdict)];
  const [protocol, field] = [family && keyword[family], verdict.by === "source" ? "saddr" : "daddr"];
  const data = `@${verdict.map}-${family}`;
  return [[`${protocol} ${field} vmap ${data}`, { vmap: { key: { payload: { protocol, field } }, data } }]];
}

function transfer(where: Transfer): Statement {
  return "jump" in where
    ? [`jump ${where.jump}`, { jump: { target: where.jump } }]
    : [`goto ${where.goto}`, { goto: { target: where.goto } }];
}
