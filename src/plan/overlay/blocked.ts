/** What is sent to nobody: several nodes claim it, and none is known to have had it. */
import { PrefixIndex } from "../../net/lookup.ts";

export interface Blocked {
  /** All of such a pod CIDR is unreachable: packets for it would leave in the clear. */
  podCidrs: string[];
  /** So is all of these but what else there is in them, which this node has to reach. */
  around: string[];
  excepted: string[];
  addresses: string[];
}

/** @param places addresses that this node has to reach: other nodes, gateways, the API server */
export function blocked(
  contested: { podCidrs: readonly string[]; addresses: readonly string[] },
  places: () => Iterable<string>,
): Blocked {
  const index = new PrefixIndex(contested.podCidrs.map((prefix) => ({ prefix })));
  const around = new Set<string>();
  const excepted =
    contested.podCidrs.length === 0
      ? []
      : [...new Set(places())].filter((address) => {
          const prefixes = [...index.around(address)];
          for (const { prefix } of prefixes) around.add(prefix);
          return prefixes.length > 0;
        });
  return {
    podCidrs: contested.podCidrs.filter((prefix) => !around.has(prefix)),
    around: [...around],
    addresses: [...contested.addresses],
    excepted,
  };
}

/** The addresses that lie inside of a prefix. */
export function inside(prefixes: readonly string[], addresses: () => Iterable<string>): string[] {
  if (prefixes.length === 0) return [];
  const index = new PrefixIndex(prefixes.map((prefix) => ({ prefix })));
  return [...new Set(addresses())].filter((address) => index.longest(address) !== undefined);
}
