/** Many streams at once, for tests in which not one packet may be lost. */

import type { Stream } from "../cluster/place.ts";
import type { Host } from "../kernel/namespace.ts";
import { patience } from "../process.ts";

/**
 * Streams both ways between each two places, by both families and by UDP and TCP: 400 packets a second in all, which
 * wireguard-go carries on a busy machine, too. In a virtual machine there are fewer: 400 fill its processor, and agents
 * got next to none of it.
 */
export async function probes(...pairs: [Host, Host][]): Promise<{ lost(): Promise<string[]> }> {
  const rate = Math.ceil(50 / pairs.length / patience);
  const streams: { name: string; stream: Stream }[] = [];
  for (const [a, b] of pairs)
    for (const family of ["ipv4", "ipv6"] as const)
      for (const protocol of ["udp", "tcp"] as const)
        for (const [from, to] of [
          [a, b],
          [b, a],
        ] as const)
          streams.push({
            name: `${from.name} -> ${to.name} ${protocol} ${family}`,
            stream: await from.place.stream({ protocol, address: to.addresses[family]!, rate }),
          });
  await Promise.all(streams.map(({ stream }) => stream.flowing(1)));
  const stop = async ({ stream }: { stream: Stream }) => {
    await stream.flowing(20);
    return await stream.stop();
  };
  return {
    /** Ends them; one line for each that lost something. */
    lost: async () => {
      const counts = await Promise.all(streams.map(stop));
      return counts.flatMap((count, index) =>
        count.lost > 0 ? [`${streams[index]?.name}: ${JSON.stringify(count)}`] : [],
      );
    },
  };
}
