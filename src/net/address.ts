/**
 * Addresses and prefixes as canonical strings (RFC 5952 for IPv6), so that they compare with `===`, sort and
 * serve as map keys. Parsing is strict: what Go's netip would refuse is refused here too.
 */
import { Address4, Address6 } from "ip-address";

export type Family = "ipv4" | "ipv6";
export const families: readonly Family[] = ["ipv4", "ipv6"];

/** A prefix taken apart: `first` is its network address, `bits` its length, `width` 32 or 128. */
interface Parts {
  first: bigint;
  bits: number;
  width: 32 | 128;
}

/** The canonical form of an address without zone or prefix length, or undefined if `text` is not one. */
export function parseAddress(text: string): string | undefined {
  if (!/^[0-9A-Fa-f:.]+$/.test(text)) return undefined;
  try {
    const address = text.includes(":") ? new Address6(text) : new Address4(text);
    // An IPv4-mapped address means IPv4 to some programs and IPv6 to others.
    if (address instanceof Address6 && address.bigInt() >> 32n === 0xffffn) return undefined;
    return address.correctForm();
  } catch {
    return undefined;
  }
}

/** The canonical form of a prefix, its host bits cleared, or undefined if `text` is not one. */
export function parsePrefix(text: string): string | undefined {
  const [address = "", length = "", ...rest] = text.split("/");
  const canonical = parseAddress(address);
  if (canonical === undefined || rest.length > 0 || !/^(0|[1-9]\d{0,2})$/.test(length)) return undefined;
  const bits = Number(length);
  const width = widthOf(canonical);
  if (bits > width) return undefined;
  return `${fromNumber((toNumber(canonical) >> BigInt(width - bits)) << BigInt(width - bits), width)}/${bits}`;
}

/** The family of a canonical address or prefix. */
export function familyOf(value: string): Family {
  return value.includes(":") ? "ipv6" : "ipv4";
}

/** The single-address prefix of an address: /32 or /128. */
export function hostPrefix(address: string): string {
  return `${address}/${widthOf(address)}`;
}

/** Whether `outer` contains the whole of `inner`; both are prefixes or addresses. */
export function contains(outer: string, inner: string): boolean {
  const o = parts(outer);
  const i = parts(inner);
  return (
    o.width === i.width &&
    o.bits <= i.bits &&
    i.first >> BigInt(o.width - o.bits) === o.first >> BigInt(o.width - o.bits)
  );
}

/** The prefix of `bits` length around a prefix or address that is at least as long, as a key: equal for equal prefixes. */
export function ancestorKey(value: string, bits: number): string {
  const { first, width } = parts(value);
  return `${width}/${bits}/${(first >> BigInt(width - bits)).toString(36)}`;
}

/** The length of a prefix; of an address, its width. */
export function lengthOf(value: string): number {
  return parts(value).bits;
}

/** Whether two prefixes (or addresses) share an address. */
export function overlaps(a: string, b: string): boolean {
  return contains(a, b) || contains(b, a);
}

/** The `index`-th address of a prefix, counted from its network address. */
export function nthAddress(prefix: string, index: bigint): string {
  const { first, width } = parts(prefix);
  return fromNumber(first + index, width);
}

// Never a pod's or a node's: this network, loopback, link-local, multicast and above (RFC 6890).
const special: [range: string, name: string][] = [
  ["0.0.0.0/8", "not unicast"],
  ["127.0.0.0/8", "loopback"],
  ["169.254.0.0/16", "link-local"],
  ["224.0.0.0/4", "multicast"],
  ["240.0.0.0/4", "not unicast"],
  ["::1/128", "loopback"],
  ["::/96", "not unicast"],
  ["::ffff:0:0/96", "IPv4-mapped"],
  ["fe80::/10", "link-local"],
  ["ff00::/8", "multicast"],
];

/** Whether a prefix or address has no part in the special ranges that no pod or node can have. */
export function isUsable(value: string): boolean {
  return unusableAs(value) === undefined;
}

/** What of the special ranges a prefix or address has a part in, if any: `loopback`, `partly link-local`, … */
export function unusableAs(value: string): string | undefined {
  const [range = "", name] = special.find(([range]) => overlaps(range, value)) ?? [];
  return name === undefined || contains(range, value) ? name : `partly ${name}`;
}

/** How many addresses a prefix has. */
export function sizeOf(prefix: string): bigint {
  const { bits, width } = parts(prefix);
  return 1n << BigInt(width - bits);
}

/** The position of an address inside a prefix that contains it. */
export function indexIn(prefix: string, address: string): bigint {
  return toNumber(address) - parts(prefix).first;
}

/** Sorts IPv4 before IPv6, then by number, then shorter prefixes first: the order of everything that is written. */
export function compareAddresses(a: string, b: string): number {
  const x = parts(a);
  const y = parts(b);
  if (x.width !== y.width) return x.width - y.width;
  if (x.first !== y.first) return x.first < y.first ? -1 : 1;
  return x.bits - y.bits;
}

// A plan of thousands of nodes compares the same few thousand values again and again.
const known = new Map<string, Parts>();

function parts(value: string): Parts {
  let result = known.get(value);
  if (result === undefined) {
    const [address = "", length] = value.split("/");
    const width = widthOf(address);
    result = { first: toNumber(address), bits: length === undefined ? width : Number(length), width };
    if (known.size > 100_000) known.clear();
    known.set(value, result);
  }
  return result;
}

function widthOf(address: string): 32 | 128 {
  return address.includes(":") ? 128 : 32;
}

function toNumber(address: string): bigint {
  return (address.includes(":") ? new Address6(address) : new Address4(address)).bigInt();
}

function fromNumber(value: bigint, width: 32 | 128): string {
  return (width === 128 ? Address6.fromBigInt(value) : Address4.fromBigInt(value)).correctForm();
}
