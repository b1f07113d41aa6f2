/** ICMP errors about UDP packets of others, which whoever sends them may make up. */
import type { Family } from "../../../src/net/address.ts";

/** A UDP packet, by its addresses and ports. */
export interface UdpPacket {
  family: Family;
  from: string;
  fromPort: number;
  to: string;
  toPort: number;
}

/** Types and codes: the port is unreachable, the packet's time is up, the packet is too big (with an MTU of 1280). */
const kinds = {
  ipv4: { unreachable: [3, 3], expired: [11, 0], "too big": [3, 4] },
  ipv6: { unreachable: [1, 4], expired: [3, 0], "too big": [2, 0] },
} as const;
export type IcmpError = keyof (typeof kinds)["ipv4"];
export const icmpErrors = Object.keys(kinds.ipv4) as IcmpError[];

/** The message, with the beginning of the packet that it is about; the checksum of ICMPv6 is left out. */
export function icmpError(kind: IcmpError, packet: UdpPacket): Uint8Array {
  const four = packet.family === "ipv4";
  const [type, code] = kinds[packet.family][kind];
  const mtu = kind === "too big" ? 1280 : 0;
  const udp = [...two(packet.fromPort), ...two(packet.toPort), ...two(16), 0, 0, ...new Array(8).fill(0)];
  const addresses = [...bytesOf(packet.from), ...bytesOf(packet.to)];
  const ip = four
    ? [0x45, 0, ...two(20 + udp.length), 0, 1, 0x40, 0, 64, 17, 0, 0, ...addresses]
    : [0x60, 0, 0, 0, ...two(udp.length), 17, 64, ...addresses];
  if (four) ip.splice(10, 2, ...two(checksum(ip)));
  const message = [type, code, 0, 0, 0, 0, ...two(mtu), ...ip, ...udp];
  if (four) message.splice(2, 2, ...two(checksum(message)));
  return Uint8Array.from(message);
}

const two = (value: number) => [value >> 8, value & 255];

/** RFC 1071, of an even number of bytes. */
function checksum(bytes: readonly number[]): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

function bytesOf(address: string): number[] {
  if (!address.includes(":")) return address.split(".").map(Number);
  const [head = [], tail] = address.split("::").map((part) => part.split(":").filter(Boolean));
  const zeros = new Array<string>(8 - head.length - (tail?.length ?? 0)).fill("0");
  const groups = tail === undefined ? head : [...head, ...zeros, ...tail];
  return groups.flatMap((group) => two(Number.parseInt(group, 16)));
}
