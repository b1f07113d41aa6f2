/** The own Node's annotations, by which other nodes know this one. */
import type { ClusterNodes } from "../cluster/nodes.ts";
import type { Config } from "../config/config.ts";
import type { Executor } from "../host/executor.ts";
import type { Resource } from "../host/resource.ts";
import { Publication } from "./publication.ts";

interface Means {
  config: Pick<Config, "firewallOnly">;
  nodes: Pick<ClusterNodes, "own" | "ownIsThere">;
  executor: Executor;
  /** Carries a change out, and has it logged. */
  annotate(annotations: Record<string, string | null>): Promise<void>;
}

export class Annotations implements Resource<{ annotations: Record<string, string | null> }> {
  readonly #means: Means;
  readonly #publication = new Publication();
  /** Whether pods may start. */
  mayStart = false;

  constructor(means: Means) {
    this.#means = means;
  }

  /** Nothing is kept here: the cluster's watch tells what the Node has. */
  invalidate(): void {}

  /** When the pass is due in which pods may start, in milliseconds of performance.now(). */
  get dueAt(): number {
    return this.#publication.dueAt;
  }

  async add({ annotations: wanted }: { annotations: Record<string, string | null> }): Promise<void> {
    const { config, nodes, executor, annotate } = this.#means;
    const present = nodes.own?.metadata.annotations ?? {};
    let published = false;
    try {
      const differing = Object.entries(wanted).filter(([name, value]) => (present[name] ?? null) !== value);
      if (nodes.ownIsThere && differing.length > 0) await annotate(Object.fromEntries(differing));
      published = nodes.ownIsThere;
    } finally {
      this.mayStart =
        config.firewallOnly ||
        executor.paper ||
        this.#publication.mayStart(present, wanted, published, performance.now());
    }
  }
}
