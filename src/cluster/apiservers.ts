/** Follows where the API servers are: the endpoints of the Service `default/kubernetes`, which each of them keeps up. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { parseAddress } from "../net/address.ts";
import { type ApiClient, ApiError } from "./client.ts";
import type { ApiObject } from "./list.ts";
import { backoff, follow } from "./reflector.ts";

const slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const name = "kubernetes";

type EndpointSlice = ApiObject & { endpoints?: { addresses?: string[] }[] };

const usual = {
  /** Milliseconds until what may not be read is tried again. */
  refused: 600_000,
  /** Milliseconds for which whoever has to know them first waits at most. */
  patience: 5_000,
};

/** Resolved once they are known, cannot be, or were waited for in vain; and once all has ended. */
export interface Following {
  tried: Promise<void>;
  ended: Promise<void>;
}

/**
 * Follows them until `signal` aborts. Without the right to read them the agent goes on with the address that it talks to. What is
 * planned before they are known may let another node's pod CIDR take one of them.
 * @param changed told of all addresses, canonical, each time that they are read or change
 */
export function followApiServers(
  client: ApiClient,
  log: Logger,
  changed: (addresses: string[]) => void,
  signal: AbortSignal,
  { refused = usual.refused, patience = usual.patience }: Partial<typeof usual> = {},
): Following {
  const tried = Promise.withResolvers<void>();
  const timer = setTimeout(tried.resolve, patience);
  const settled = () => {
    clearTimeout(timer);
    tried.resolve();
  };
  signal.addEventListener("abort", settled);
  return { tried: tried.promise, ended: run(client, log, changed, signal, refused, settled) };
}

async function run(
  client: ApiClient,
  log: Logger,
  changed: (addresses: string[]) => void,
  signal: AbortSignal,
  retry: number,
  settled: () => void,
): Promise<void> {
  const tell = (slice: EndpointSlice) => {
    changed(addressesOf(slice));
    settled();
  };
  for (let failures = 0, said = false; !signal.aborted; ) {
    try {
      tell(await client.json<EndpointSlice>({ path: `${slices}/${name}`, signal }));
      await follow<EndpointSlice>(
        { client, path: slices, name, log },
        // One that is deleted is made anew by the API servers; they are still there.
        { replaced: (items) => items.forEach(tell), changed: tell, removed: () => undefined },
        signal,
      );
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      const forbidden = error instanceof ApiError && (error.status === 403 || error.status === 404);
      if (forbidden && !said)
        log.warn(
          { error: (error as Error).message },
          "cannot read the EndpointSlice of the API servers: pod CIDRs of others are kept off the one that this agent talks to alone; apply the Role wigglenet of namespace default, see deploy/manifest.yaml",
        );
      said ||= forbidden;
      if (forbidden) settled();
      const wait = forbidden ? retry : backoff(failures, Math.random());
      await sleep(wait, undefined, { signal }).catch(() => undefined);
    }
  }
}

function addressesOf({ endpoints }: EndpointSlice): string[] {
  const all = (endpoints ?? []).flatMap(({ addresses }) => addresses ?? []);
  return [...new Set(all.flatMap((address) => parseAddress(address) ?? []))];
}
