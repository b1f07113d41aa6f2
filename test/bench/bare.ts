/** The limit that the agent's start is compared with: the same list with nothing done, and the same content by bare programs. */
import type { LightNode } from "../lab/cluster/lightnode.ts";

/** Milliseconds of each. */
export interface Bare {
  list: number;
  wg: number;
  ip: number;
  nft: number;
}

const tables = ["24600", "24601"];

/** What the node has is read, taken away and written again; its agent must not run meanwhile. */
export async function measureBare(node: LightNode): Promise<Bare> {
  const { namespace } = node;
  const { KUBECONFIG = "" } = node.agentEnv();
  const list = JSON.parse(
    await namespace.run([process.execPath, `${import.meta.dirname}/readlist.ts`], { env: { KUBECONFIG } }),
  ) as { took: number };
  const peers = await namespace.run(["wg", "showconf", "wigglenet"]);
  const routes: string[] = [];
  for (const family of ["-4", "-6"])
    for (const table of tables) {
      // A table that nothing is in is not there.
      const shown = await namespace.run(["ip", family, "route", "show", "table", table]).catch(() => "");
      const lines = shown.split("\n").filter((line) => line.trim() !== "");
      routes.push(...lines.map((line) => `route add ${line.trim()} table ${table}`));
    }
  const rules = await namespace.run(["nft", "list", "table", "inet", "wigglenet"]);
  const [own = ""] = peers.split("[Peer]");
  await namespace.run(["wg", "setconf", "wigglenet", "/dev/stdin"], { stdin: own });
  for (const family of ["-4", "-6"])
    for (const table of tables)
      await namespace.run(["ip", family, "route", "flush", "table", table]).catch(() => undefined);
  await namespace.run(["nft", "delete", "table", "inet", "wigglenet"]);
  const timed = async (argv: string[], stdin: string) => {
    const from = performance.now();
    await namespace.run(argv, { stdin });
    return performance.now() - from;
  };
  return {
    list: list.took,
    wg: await timed(["wg", "setconf", "wigglenet", "/dev/stdin"], peers),
    ip: await timed(["ip", "-batch", "-"], `${routes.join("\n")}\n`),
    nft: await timed(["nft", "-f", "-"], rules),
  };
}
