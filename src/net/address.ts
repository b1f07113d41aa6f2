/**
 * Addresses and prefixes as canonical strings (RFC 5952 for IPv6), so that they compare with `===` and serve as map keys.
 * Parsing is strict: what Go's netip would refuse is refused here too. A canonical string is read in less time than a
 * lookup in a large cache takes, so nothing is remembered; whoever sorts or searches many of them keeps their sort keys.
 */

export type Family = "ipv4" | "ipv6";
export const families: readonly Family[] = ["ipv4", "ipv6"];

/** Groups of 16 bits: two for IPv4, eight for IPv6. */
type Groups = Uint16Array;

const [dot, slash, colon] = [0x2e, 0x2f, 0x3a];

// What was read last. Each function is done with them before it returns.
const [left, right] = [new Uint16Array(8), new Uint16Array(8)];

/** The canonical form of an address without zone or prefix length, or undefined if `text` is not one. */
export function parseAddress(text: string): string | undefined {
  const count = readGroups(text, text.length, left);
  if (count === 0) return undefined;
  // There is but one way to write an IPv4 address here.
  if (count === 2) return text;
  return isMapped(left) ? undefined : formatGroups(left, 8);
}

/** The canonical form of a prefix, its host bits cleared, or undefined if `text` is not one. */
export function parsePrefix(text: string): string | undefined {
  const end = text.indexOf("/");
  const length = text.slice(end + 1);
  if (end < 0 || !/^(0|[1-9]\d{0,2})$/.test(length)) return undefined;
  const count = readGroups(text, end, left);
  const bits = Number(length);
  if (count === 0 || bits > 16 * count || (count === 8 && isMapped(left))) return undefined;
  clearHostBits(left, count, bits);
  return `${formatGroups(left, count)}/${bits}`;
}

/** The family of a canonical address or prefix. */
export function familyOf(value: string): Family {
  return value.includes(":") ? "ipv6" : "ipv4";
}

/** The single-address prefix of an address: /32 or /128. */
export function hostPrefix(address: string): string {
  return `${address}/${address.includes(":") ? 128 : 32}`;
}

/** Whether `outer` contains the whole of `inner`; both are prefixes or addresses. */
export function contains(outer: string, inner: string): boolean {
  const bits = lengthOf(outer);
  return bits <= lengthOf(inner) && read(outer, left) === read(inner, right) && shareBits(bits);
}

/**
 * A key that sorts as `compareAddresses` does, by `<`. All that a prefix contains, and nothing else, has keys from its
 * own to its `lastKey`.
 */
export function sortKey(value: string): string {
  return keyOf(read(value, left), lengthOf(value));
}

/** Whether a sort key is that of an IPv4 prefix or address. */
export function isIpv4Key(key: string): boolean {
  return key.length === 4;
}

/** The last sort key that something in a prefix may have. */
export function lastKey(value: string): string {
  const count = read(value, left);
  setHostBits(left, count, lengthOf(value));
  return keyOf(count, 0xffff);
}

/** The sort key of the prefix of `bits` length around a prefix or address that is at least as long. */
export function ancestorKey(value: string, bits: number): string {
  const count = read(value, left);
  clearHostBits(left, count, bits);
  return keyOf(count, bits);
}

/** The length of a prefix; of an address, its width. */
export function lengthOf(value: string): number {
  // A prefix ends in a slash and one to three digits.
  for (let at = value.length - 2; at >= value.length - 4; at -= 1)
    if (value.charCodeAt(at) === slash) return digitsFrom(value, at + 1);
  return value.includes(":") ? 128 : 32;
}

function digitsFrom(text: string, from: number): number {
  let number = 0;
  for (let at = from; at < text.length; at += 1) number = number * 10 + text.charCodeAt(at) - 0x30;
  return number;
}

/** Whether two prefixes (or addresses) share an address. */
export function overlaps(a: string, b: string): boolean {
  return read(a, left) === read(b, right) && shareBits(Math.min(lengthOf(a), lengthOf(b)));
}

/** The `index`-th address of a prefix, counted from its network address. */
export function nthAddress(prefix: string, index: bigint): string {
  const count = read(prefix, left);
  let number = toNumber(left, count) + index;
  for (let group = count - 1; group >= 0; group -= 1) {
    left[group] = Number(number & 0xffffn);
    number >>= 16n;
  }
  return formatGroups(left, count);
}

// Never a pod's or a node's: this network, loopback, link-local, multicast and above (RFC 6890).
const special = (
  [
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
  ] as const
).map(([range, name]) => ({ first: sortKey(range), last: lastKey(range), name }));

/** Whether a prefix or address has no part in the special ranges that no pod or node can have. */
export function isUsable(value: string): boolean {
  return unusableAs(value) === undefined;
}

/** What of the special ranges a prefix or address has a part in, if any: `loopback`, `partly link-local`, … */
export function unusableAs(value: string): string | undefined {
  const [key, last] = [sortKey(value), lastKey(value)];
  const range = special.find((each) => each.first <= last && key <= each.last);
  return range === undefined || range.first <= key ? range?.name : `partly ${range.name}`;
}

/** How many addresses a prefix has. */
export function sizeOf(prefix: string): bigint {
  return 1n << BigInt((prefix.includes(":") ? 128 : 32) - lengthOf(prefix));
}

/** The position of an address inside a prefix that contains it. */
export function indexIn(prefix: string, address: string): bigint {
  const count = read(prefix, left);
  return toNumber(right, read(address, right)) - toNumber(left, count);
}

/** Sorts IPv4 before IPv6, then by number, then shorter prefixes first: the order of everything that is written. */
export function compareAddresses(a: string, b: string): number {
  const count = read(a, left);
  const difference = count - read(b, right);
  if (difference !== 0) return difference;
  for (let group = 0; group < count; group += 1)
    if (left[group] !== right[group]) return left[group]! - right[group]!;
  return lengthOf(a) - lengthOf(b);
}

/** Reads a canonical address or prefix. @returns how many groups it has */
function read(value: string, into: Groups): number {
  const end = value.indexOf("/");
  return readGroups(value, end < 0 ? value.length : end, into);
}

/** Reads the address that `text` has before `end`. @returns how many groups it has; 0 if it is none */
function readGroups(text: string, end: number, into: Groups): 0 | 2 | 8 {
  for (let at = 0; at < end && at < 5; at += 1)
    if (text.charCodeAt(at) === colon) return readIpv6(text, end, into) ? 8 : 0;
  return readIpv4(text, 0, end, into, 0) ? 2 : 0;
}

/** Reads four numbers into two groups. */
function readIpv4(text: string, from: number, end: number, into: Groups, group: number): boolean {
  let at = from;
  for (let index = 0; index < 4; index += 1) {
    if (index > 0 && (at >= end || text.charCodeAt(at++) !== dot)) return false;
    const begin = at;
    let number = 0;
    for (; at < end && at < begin + 3; at += 1) {
      const digit = text.charCodeAt(at) - 0x30;
      if (digit < 0 || digit > 9) break;
      number = number * 10 + digit;
    }
    // A leading zero is octal to some programs.
    if (at === begin || number > 255 || (at > begin + 1 && text.charCodeAt(begin) === 0x30)) return false;
    const place = group + (index >> 1);
    into[place] = index % 2 === 0 ? number << 8 : into[place]! | number;
  }
  return at === end;
}

function readIpv6(text: string, end: number, into: Groups): boolean {
  let count = 0;
  /** Where `::` is, in groups. */
  let gap = -1;
  let at = 0;
  if (text.charCodeAt(0) === colon) {
    if (end < 2 || text.charCodeAt(1) !== colon) return false;
    gap = 0;
    at = 2;
  }
  while (at < end) {
    if (count === 8) return false;
    const begin = at;
    let number = 0;
    for (; at < end && at < begin + 4; at += 1) {
      const digit = hexDigit(text.charCodeAt(at));
      if (digit < 0) break;
      number = number * 16 + digit;
    }
    if (at < end && text.charCodeAt(at) === dot) {
      // The last 32 bits as an IPv4 address.
      if (count > 6 || !readIpv4(text, begin, end, into, count)) return false;
      count += 2;
      break;
    }
    if (at === begin) return false;
    into[count++] = number;
    if (at === end) break;
    if (text.charCodeAt(at++) !== colon || at === end) return false;
    if (text.charCodeAt(at) === colon) {
      if (gap >= 0) return false;
      gap = count;
      at += 1;
    }
  }
  // It stands for one group at least.
  if (gap < 0 || count === 8) return gap < 0 && count === 8;
  into.copyWithin(8 - count + gap, gap, count);
  into.fill(0, gap, 8 - count + gap);
  return true;
}

function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const letter = code | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x61 + 10 : -1;
}

function formatGroups(groups: Groups, count: number): string {
  if (count === 2) return `${groups[0]! >> 8}.${groups[0]! & 255}.${groups[1]! >> 8}.${groups[1]! & 255}`;
  // The first of the longest runs of zeros, of two groups at least.
  let [gap, longest] = [-1, 1];
  for (let from = 0; from < 8; from += 1) {
    let to = from;
    while (to < 8 && groups[to] === 0) to += 1;
    if (to - from > longest) [gap, longest] = [from, to - from];
    from = to;
  }
  let text = "";
  for (let group = 0; group < 8; group += 1) {
    if (group === gap) {
      text += "::";
      group += longest - 1;
    } else {
      if (group > 0 && group !== gap + longest) text += ":";
      text += groups[group]!.toString(16);
    }
  }
  return text;
}

/** An IPv4-mapped address means IPv4 to some programs and IPv6 to others. */
function isMapped(groups: Groups): boolean {
  return groups[5] === 0xffff && groups.subarray(0, 5).every((group) => group === 0);
}

/** Whether the first bits of what was read into `left` and `right` are the same. */
function shareBits(bits: number): boolean {
  const whole = bits >> 4;
  for (let group = 0; group < whole; group += 1) if (left[group] !== right[group]) return false;
  const rest = bits & 15;
  return rest === 0 || (left[whole]! ^ right[whole]!) >> (16 - rest) === 0;
}

function clearHostBits(groups: Groups, count: number, bits: number): void {
  for (let group = bits >> 4; group < count; group += 1)
    groups[group] = groups[group]! & ~hostMask(bits - 16 * group);
}

function setHostBits(groups: Groups, count: number, bits: number): void {
  for (let group = bits >> 4; group < count; group += 1)
    groups[group] = groups[group]! | hostMask(bits - 16 * group);
}

/** The host bits of a group of which the prefix has so many bits. */
function hostMask(bits: number): number {
  return 0xffff >> Math.max(0, bits);
}

function keyOf(count: number, bits: number): string {
  const at = left;
  if (count === 2) return String.fromCharCode(4, at[0]!, at[1]!, bits);
  return String.fromCharCode(6, at[0]!, at[1]!, at[2]!, at[3]!, at[4]!, at[5]!, at[6]!, at[7]!, bits);
}

function toNumber(groups: Groups, count: number): bigint {
  let number = 0n;
  for (let group = 0; group < count; group += 1) number = (number << 16n) | BigInt(groups[group]!);
  return number;
}
