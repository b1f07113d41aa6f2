/** Routes of others, of the number that routers and VPNs have, as commands of `ip`. */
import { routerAddresses } from "./underlay.ts";

/** `count` routes, half of each family, spread over ten tables: as of a router with VRFs. */
export function foreignTables(count: number): string[] {
  return half(count).flatMap((n) => {
    const table = 1_000 + (n % 10);
    return [`route add ${ipv4(n)} dev lo table ${table}`, `route add ${ipv6(n)} dev lo table ${table}`];
  });
}

/** `count` routes in the main table, half of each family, as of a router with a part of the internet's. */
export function foreignMain(count: number): string[] {
  return half(count).flatMap((n) => [
    `route add ${ipv4(n)} via ${routerAddresses.ipv4}`,
    `route add ${ipv6(n)} via ${routerAddresses.ipv6}`,
  ]);
}

const half = (count: number) => Array.from({ length: count / 2 }, (_, n) => n);
/** None is near what nodes and pods have. */
const ipv4 = (n: number) => `${20 + (n >> 16)}.${(n >> 8) & 255}.${n & 255}.0/24`;
const ipv6 = (n: number) => `2a00:${(n >> 12).toString(16)}:${(n & 4095).toString(16)}::/48`;
