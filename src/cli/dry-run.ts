/** `wigglenet --dry-run`: prints what a first pass would do, in order, and changes nothing. */

import { followApiServers } from "../cluster/apiservers.ts";
import { printStep } from "../host/command.ts";
import { type Executor, nodeReader, type Reader } from "../host/executor.ts";
import { observePublicKey } from "../host/files.ts";
import { createKernelLink } from "../host/link.ts";
import { noObserver } from "../reconcile/observer.ts";
import { type AgentOptions, assemble, hasTunnel, setUp } from "./setup.ts";

/** Stands for what only the shell will know that the commands of a dry run are pasted into. */
const publicKeyToCome = "<public key>";

/** Prints what it is given to carry out, as one could paste it into a shell. */
export function dryExecutor(
  reader: Reader,
  { nodeName, privateKeyPath }: { nodeName: string; privateKeyPath: string },
  print: (text: string) => void,
): Executor {
  return {
    ...reader,
    dry: true,
    perform: async (steps) => {
      for (const step of steps) print(printStep(step));
    },
    createLink: async (name, mode) => {
      const [kernel, userspace] = [printStep(createKernelLink(name)), `wireguard-go ${name}`];
      print({ kernel, userspace, auto: `${kernel} || ${userspace}` }[mode]);
    },
    annotate: async (annotations) => {
      const patch = JSON.stringify({ metadata: { annotations } });
      const argv = ["kubectl", "patch", "node", nodeName, "--type=merge", "-p", patch];
      const derived = `'"$(wg pubkey < ${privateKeyPath})"'`;
      print(printStep({ kind: "run", argv }).replace(publicKeyToCome, () => derived));
    },
  };
}

export async function dryRun(options: AgentOptions): Promise<void> {
  const setup = await setUp(options, true);
  const { config } = setup;
  const print = (text: string) => console.log(text);
  let publicKey = hasTunnel(config) ? await observePublicKey(config.privateKeyPath) : null;
  if (publicKey === undefined) {
    print(`wg genkey | install -D -m 0600 /dev/stdin ${config.privateKeyPath}`);
    publicKey = publicKeyToCome;
  }
  const stop = new AbortController();
  const { reconciler, nodes } = assemble(
    setup,
    { publicKey, newKey: publicKey === publicKeyToCome },
    () => dryExecutor(nodeReader, config, print),
    noObserver,
    () => undefined,
  );
  const cluster = nodes.run(stop.signal);
  const { client, log } = setup;
  const servers = followApiServers(client, log, (addresses) => reconciler.reserve(addresses), stop.signal);
  await servers.tried;
  const deadline = performance.now() + 30_000;
  while (!nodes.whole || !nodes.complete) {
    if (performance.now() > deadline) {
      if (nodes.complete) break;
      throw new Error("the Nodes could not be read within 30 s from the API server");
    }
    await Bun.sleep(20);
  }
  await reconciler.pass("start");
  stop.abort();
  await Promise.all([cluster, servers.ended]);
  const { reasons } = reconciler.failures;
  const unread = [...reasons, ...(nodes.whole ? [] : ["Nodes: not all could be read"])];
  if (unread.length > 0)
    throw new Error(
      `not all could be read, and what is printed above may lack something:\n${unread.map((each) => `  ${each}`).join("\n")}`,
    );
}
