/** A cluster of 5,000 nodes: what the firewall of one of them costs. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Scale } from "./lab/firewallscale.ts";
import { Namespace } from "./lab/namespace.ts";

let namespace: Namespace;
beforeAll(async () => {
  namespace = await Namespace.create("scale");
});
afterAll(() => namespace.place.close());

test.each(["nftables", "iptables-nft"])(
  "%s: the first sync costs little more than the bare program, one node more one element of each set",
  async (backend) => {
    const script = `${import.meta.dirname}/lab/firewallscale.ts`;
    const { sync, bare, oneMore }: Scale = JSON.parse(
      await namespace.run([process.execPath, script, backend]),
    );
    // The same work takes 250 ms at one time and 400 at another, here and in the bare programs alike: what is compared is done
    // one right after the other, and the odd pair of both does not count.
    const ratios = sync.map((ours, round) => ours / bare[round]!).sort((a, b) => a - b);
    const ratio = ratios[(ratios.length - 1) / 2]!;
    console.log(`${backend}: ${Math.min(...sync).toFixed(0)} ms, ${ratio.toFixed(2)} of the bare program`);
    expect(ratio).toBeLessThan(1.3);
    // Its pod CIDRs and its addresses, by family.
    expect(oneMore).toHaveLength(4);
    for (const line of oneMore) expect(line).toMatch(/^add (element inet wigglenet|WIGGLENET-)/);
  },
  120_000,
);
