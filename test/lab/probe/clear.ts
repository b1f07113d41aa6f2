/**
 * What crosses the underlay between pods, or between pods and nodes, outside of the tunnel: the router's bridge counts it, for as
 * long as the lab is there. The tunnel's own packets have nodes' addresses at both ends.
 */
import { podRanges } from "../cluster/controlplane.ts";
import type { Namespace } from "../kernel/namespace.ts";

const ranges = {
  ip: {
    type: "ipv4_addr",
    pods: podRanges.ipv4,
    nodes: "172.30.0.10-172.30.0.255",
    protocol: "ip protocol",
  },
  ip6: { type: "ipv6_addr", pods: podRanges.ipv6, nodes: "fd30::10-fd30::ffff", protocol: "ip6 nexthdr" },
};

export async function watchClear(router: Namespace): Promise<void> {
  const lines = Object.entries(ranges).flatMap(([ip, { type, pods, nodes, protocol }]) => {
    const add = `add @seen-${ip} { ${ip} saddr . ${ip} daddr . ${protocol} }`;
    return [
      `add set bridge clear seen-${ip} { type ${type} . ${type} . inet_proto; flags dynamic; size 4096; counter; }`,
      `add rule bridge clear c ${ip} saddr ${pods} ${ip} daddr { ${pods}, ${nodes} } ${add}`,
      `add rule bridge clear c ${ip} saddr ${nodes} ${ip} daddr ${pods} ${add}`,
    ];
  });
  await router.run(["nft", "-f", "-"], {
    stdin: [
      "add table bridge clear",
      "add chain bridge clear c { type filter hook prerouting priority 0; }",
      ...lines,
      "",
    ].join("\n"),
  });
}

interface Listing {
  nftables: {
    set?: { elem?: { elem: { val: { concat: string[] }; counter: { packets: number } } }[] };
  }[];
}

/** One line for each two addresses: "10.244.0.2 > 10.244.1.2 udp: 3 packets". */
export async function clearTraffic(router: Namespace): Promise<string[]> {
  const lists = Object.keys(ranges).map((ip) =>
    router.run(["nft", "-j", "list", "set", "bridge", "clear", `seen-${ip}`]),
  );
  return (await Promise.all(lists)).flatMap((text) =>
    (JSON.parse(text) as Listing).nftables.flatMap(({ set }) =>
      (set?.elem ?? []).map(({ elem: { val, counter } }) => {
        const [from, to, protocol] = val.concat;
        return `${from} > ${to} ${protocol}: ${counter.packets} packets`;
      }),
    ),
  );
}
