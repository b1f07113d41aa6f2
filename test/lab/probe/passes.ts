/** What an agent says of its passes; it has to serve metrics as `withMetrics` says. */
import type { LightNode } from "../cluster/lightnode.ts";
import { until } from "../process.ts";

export const withMetrics = { ENABLE_METRICS: "1", METRICS_BIND_ADDR: "127.0.0.1:9091" };

/** How many passes the agent has made. */
export async function passes(node: LightNode): Promise<number> {
  const ask = `console.log(await (await fetch("http://127.0.0.1:9091/metrics")).text())`;
  const answer = await node.namespace.run([process.execPath, "-e", ask]);
  return Number(/^wigglenet_pass_duration_seconds_count (\d+)/m.exec(answer)?.[1]);
}

/** Waits until the agent has made no pass for half a second. */
export async function quiet(node: LightNode): Promise<void> {
  let last = -1;
  await until(
    "no pass",
    async () => {
      const now = await passes(node);
      const same = now === last;
      last = now;
      return same;
    },
    { every: 500 },
  );
}
