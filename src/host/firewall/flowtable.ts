/** The flow table of `inet wigglenet`: whether the kernel has such, and the links at which it meets packets. */
import { batch, type Command, CommandError, execute } from "../command.ts";
import type { Executor, Perform, Reader } from "../executor.ts";
import type { Links } from "../link.ts";
import { Kept, type Reason, type Resource } from "../resource.ts";

/** The Go implementation's name for it. */
export const name = "fastpath";
/** Priority 0 at ingress: after what others have there for filtering before (-500). */
export const spec = "hook ingress priority 0";

const on = `inet wigglenet ${name}`;

/** Undefined if this kernel can offload flows; else what nft says of it. Nothing is changed. */
export async function refusal(): Promise<string | undefined> {
  const table = "inet wigglenet-check";
  const lines = [
    `add table ${table}`,
    `add flowtable ${table} ${name} { ${spec}; }`,
    `add chain ${table} forward { type filter hook forward priority 0; }`,
    `add rule ${table} forward flow add @${name}`,
  ];
  try {
    for (const command of batch(["nft", "-c", "-f", "-"], lines)) await execute(command);
    return undefined;
  } catch (error) {
    if (error instanceof CommandError) return error.stderr.split("\n")[0];
    throw error;
  }
}

async function observeDevices({ $ }: Reader): Promise<string[]> {
  // Asked for alone, one of more than 255 links is not found (kernel 6.1, nft 1.0.6).
  return parseDevices(await $`nft -j list flowtables`);
}

interface NftFlowtableEntry {
  family: string;
  table: string;
  name: string;
  dev?: string | string[];
}

/** Parses `nft -j list flowtables`: the links of ours. One that is deleted leaves the flow table by itself. */
export function parseDevices(output: string): string[] {
  const { nftables } = JSON.parse(output) as { nftables: { flowtable?: NftFlowtableEntry }[] };
  return nftables.flatMap(({ flowtable }) =>
    flowtable && on === `${flowtable.family} ${flowtable.table} ${flowtable.name}`
      ? (flowtable.dev ?? [])
      : [],
  );
}

// A message to the kernel may hold 255 (6.1), and what it tells of half as many fits into a page.
const most = 128;

/** One transaction, or none. Flows stay where they are: of a link that is not in it they take the long way. */
export function diffDevices(desired: readonly string[], present: readonly string[]): Command[] {
  const change = (verb: string, devices: readonly string[]) =>
    Array.from({ length: Math.ceil(devices.length / most) }, (_, index) => {
      const some = devices.slice(index * most, (index + 1) * most).map((device) => `"${device}"`);
      return `${verb} flowtable ${on} { ${spec}; devices = { ${some.join(", ")} }; }`;
    });
  return batch(
    ["nft", "-f", "-"],
    [
      ...change(
        "add",
        desired.filter((device) => !present.includes(device)),
      ),
      ...change(
        "delete",
        present.filter((device) => !desired.includes(device)),
      ),
    ],
  );
}

/** Undefined: no flow is offloaded. */
interface DesiredFlowTable {
  firewall: { devices: readonly string[] | undefined };
}

/** The links in the flow table. They come after the rules, which need none of them: a link may go while it is put in. */
export class FlowTable implements Resource<DesiredFlowTable> {
  readonly #links: Links;
  readonly #executor: Executor;
  readonly #perform: Perform;
  readonly #devices: Kept<string[]>;

  constructor(links: Links, executor: Executor, perform: Perform) {
    this.#links = links;
    this.#executor = executor;
    this.#devices = new Kept(() => observeDevices(executor));
    this.#perform = perform;
  }

  invalidate(reason: Reason): void {
    if (["links", "firewall", "drift", "resync"].includes(reason)) this.#devices.forget();
  }

  /** The table was written. In a dry run it is not there to be seen. */
  written(): void {
    this.#devices.forget();
    if (this.#executor.dry) this.#devices.set([]);
  }

  async add({ firewall: { devices } }: DesiredFlowTable): Promise<void> {
    if (devices === undefined) return;
    const present = await this.#devices.get();
    const change = () => this.#perform("flow table", diffDevices(devices, present));
    try {
      await this.#devices.change(change, () => [...devices]);
    } catch (error) {
      this.#links.invalidate("links");
      const there = (await this.#links.observe()).map((link) => link.name);
      // Its going is told, and has a pass of its own.
      if (devices.every((device) => there.includes(device))) throw error;
    }
  }
}
