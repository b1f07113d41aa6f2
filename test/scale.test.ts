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
    // The quickest of the rounds: what else the machine does only adds.
    const [ours, theirs] = [Math.min(...sync), Math.min(...bare)];
    console.log(`${backend}: ${ours.toFixed(0)} ms, bare ${theirs.toFixed(0)} ms`);
    expect(ours / theirs).toBeLessThan(1.3);
    // Its pod CIDRs and its addresses, by family.
    expect(oneMore).toHaveLength(4);
    for (const line of oneMore) expect(line).toMatch(/^add (element inet wigglenet|WIGGLENET-)/);
  },
  120_000,
);
