/**
 * What an expression can name beyond CEL's own: the IP and CIDR functions of Kubernetes' CEL, with its semantics,
 * `<cidr>.subnet(prefixLength, index)`, and the variables `interfaces` and `node`.
 */
import type { Environment } from "@marcbachmann/cel-js";
import { contains, familyOf, nthAddress, parseAddress, parsePrefix, sizeOf } from "../../net/address.ts";

/** The value of CEL type `ip`: a canonical address. */
class Ip {
  readonly address: string;

  constructor(text: string) {
    const address = parseAddress(text);
    if (address === undefined) throw new Error(`${JSON.stringify(text)} is not an IP address`);
    this.address = address;
  }

  isIn(ranges: string[]): boolean {
    return ranges.some((range) => contains(range, this.address));
  }
}

/** The value of CEL type `cidr`: an address, host bits and all, with a prefix length. */
export class Cidr {
  readonly address: string;
  readonly bits: number;
  /** The prefix without its host bits, canonical. */
  readonly masked: string;

  constructor(text: string) {
    const address = parseAddress(text.split("/")[0] ?? "");
    const masked = parsePrefix(text);
    if (address === undefined || masked === undefined)
      throw new Error(`${JSON.stringify(text)} is not a CIDR such as "10.1.0.0/16" or "2001:db8::/64"`);
    this.address = address;
    this.bits = Number(text.split("/")[1]);
    this.masked = masked;
  }

  toString(): string {
    return `${this.address}/${this.bits}`;
  }

  subnet(length: bigint, index: bigint): Cidr {
    const [width, family] = familyOf(this.masked) === "ipv4" ? [32n, "IPv4"] : [128n, "IPv6"];
    const call = `${this.masked}.subnet(${length}, ${index})`;
    if (length < this.bits)
      throw new Error(`${call}: a subnet cannot be shorter than the prefix, /${this.bits}`);
    if (length > width) throw new Error(`${call}: an ${family} subnet cannot be longer than /${width}`);
    const size = 1n << (width - length);
    const count = sizeOf(this.masked) / size;
    if (index < 0n || index >= count)
      throw new Error(`${call}: the index must be ${count === 1n ? "0" : `from 0 to ${count - 1n}`}`);
    return new Cidr(`${nthAddress(this.masked, index * size)}/${length}`);
  }
}

/** The value of the variable `node`. */
export class NodeValue {
  readonly name: string;
  readonly labels: ReadonlyMap<string, string>;
  readonly annotations: ReadonlyMap<string, string>;

  constructor(name: string, labels: Record<string, string>, annotations: Record<string, string>) {
    this.name = name;
    this.labels = new Map(Object.entries(labels));
    this.annotations = new Map(Object.entries(annotations));
  }
}

/** What `ip` is in `ip.isCanonical(…)`. */
class IpNamespace {}

const loopback = ["127.0.0.0/8", "::1/128"];
const multicast = ["224.0.0.0/4", "ff00::/8"];
const linkLocalUnicast = ["169.254.0.0/16", "fe80::/10"];
// Scope 2 with whatever flags, as Go's netip has it.
const linkLocalMulticast = ["224.0.0.0/24", ...[..."0123456789abcdef"].map((flags) => `ff${flags}2::/16`)];
const unspecified = ["0.0.0.0/32", "::/128"];
const notGlobalUnicast = [
  "255.255.255.255/32",
  ...unspecified,
  ...loopback,
  ...multicast,
  ...linkLocalUnicast,
];

const functions: Record<string, (...args: never[]) => unknown> = {
  "ip(string): ip": (text: string) => new Ip(text),
  "isIP(string): bool": (text: string) => parseAddress(text) !== undefined,
  "ipNamespace.isCanonical(string): bool": (_: IpNamespace, text: string) => new Ip(text).address === text,
  "ip.family(): int": (ip: Ip) => (familyOf(ip.address) === "ipv4" ? 4n : 6n),
  "ip.isUnspecified(): bool": (ip: Ip) => ip.isIn(unspecified),
  "ip.isLoopback(): bool": (ip: Ip) => ip.isIn(loopback),
  "ip.isLinkLocalMulticast(): bool": (ip: Ip) => ip.isIn(linkLocalMulticast),
  "ip.isLinkLocalUnicast(): bool": (ip: Ip) => ip.isIn(linkLocalUnicast),
  "ip.isGlobalUnicast(): bool": (ip: Ip) => !ip.isIn(notGlobalUnicast),
  "string(ip): string": (ip: Ip) => ip.address,
  "cidr(string): cidr": (text: string) => new Cidr(text),
  "isCIDR(string): bool": (text: string) => parsePrefix(text) !== undefined,
  "cidr.containsIP(ip): bool": (outer: Cidr, ip: Ip) => contains(outer.masked, ip.address),
  "cidr.containsIP(string): bool": (outer: Cidr, text: string) =>
    contains(outer.masked, new Ip(text).address),
  // Kubernetes compares the inner network's address unmasked and so contradicts its documentation, which this follows.
  "cidr.containsCIDR(cidr): bool": (outer: Cidr, inner: Cidr) => contains(outer.masked, inner.masked),
  "cidr.containsCIDR(string): bool": (outer: Cidr, text: string) =>
    contains(outer.masked, new Cidr(text).masked),
  "cidr.ip(): ip": (cidr: Cidr) => new Ip(cidr.address),
  "cidr.masked(): cidr": (cidr: Cidr) => new Cidr(cidr.masked),
  "cidr.prefixLength(): int": (cidr: Cidr) => BigInt(cidr.bits),
  "cidr.subnet(int, int): cidr": (cidr: Cidr, length: bigint, index: bigint) => cidr.subnet(length, index),
  "string(cidr): string": (cidr: Cidr) => String(cidr),
};

/** A CEL environment with all of this. */
export function newEnvironment(): Environment {
  // 12 MB and 10 ms, so only where there is an expression; by `require`, because that is synchronous.
  const cel: typeof import("@marcbachmann/cel-js") = require("@marcbachmann/cel-js");
  const environment = new cel.Environment({ limits: { maxDepth: 100, maxAstNodes: 10_000 } })
    .registerType("cidr", { ctor: Cidr, fields: {} })
    .registerType("ip", { ctor: Ip, fields: {} })
    .registerType("ipNamespace", { ctor: IpNamespace, fields: {} })
    .registerType("node", {
      ctor: NodeValue,
      fields: { name: "string", labels: "map<string, string>", annotations: "map<string, string>" },
    })
    .registerVariable("interfaces", "map<string, list<cidr>>")
    .registerVariable("node", "node")
    .registerConstant("ip", "ipNamespace", new IpNamespace())
    .registerOperator("cidr == cidr", (a: Cidr, b: Cidr) => String(a) === String(b))
    .registerOperator("string in node", (key: string, node: NodeValue) => Object.hasOwn(node, key))
    .registerOperator("ip == ip", (a: Ip, b: Ip) => a.address === b.address);
  for (const [signature, call] of Object.entries(functions)) {
    const handler = (...args: never[]) => {
      try {
        return call(...args);
      } catch (error) {
        // The library adds the position to errors of its own class only.
        throw new cel.EvaluationError((error as Error).message);
      }
    };
    environment.registerFunction(signature, handler, { async: false });
  }
  return environment;
}
