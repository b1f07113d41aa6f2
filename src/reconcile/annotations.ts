/** The own Node's annotations, by which other nodes know this one. */
import type { ClusterNodes } from "../cluster/nodes.ts";
import type { Config } from "../config/config.ts";
import type { Executor } from "../host/executor.ts";
import type { Resource } from "../host/resource.ts";
import type { Findings } from "../report/findings.ts";
import { Contest } from "./contest.ts";
import { Publication } from "./publication.ts";

interface Means {
  config: Pick<Config, "firewallOnly">;
  nodes: Pick<ClusterNodes, "own" | "ownIsThere">;
  executor: Pick<Executor, "dry">;
  /** Carries a change out, and has it logged. */
  annotate(annotations: Record<string, string | null>): Promise<void>;
  findings: Findings;
}

export class Annotations implements Resource<{ annotations: Record<string, string | null> }> {
  readonly #means: Means;
  readonly #publication = new Publication();
  readonly #contest = new Contest();
  /** Whether pods may start. */
  mayStart = false;

  constructor(means: Means) {
    this.#means = means;
  }

  /** Nothing is kept here: the cluster's watch tells what the Node has. */
  invalidate(): void {}

  /** When the pass is due in which pods may start, or what others changed is put back, in milliseconds of performance.now(). */
  get dueAt(): number {
    return Math.min(this.#publication.dueAt, this.#contest.dueAt);
  }

  /** The time has come: a pass is due, for this reason. */
  due(): string {
    // That pass may fail before it comes to this, and is then tried again in its own time.
    this.#publication.dueAt = this.#contest.dueAt = Number.POSITIVE_INFINITY;
    return "published";
  }

  async add({ annotations: wanted }: { annotations: Record<string, string | null> }): Promise<void> {
    const { config, nodes, executor, annotate } = this.#means;
    const present = nodes.own?.metadata.annotations ?? {};
    let published = false;
    try {
      const differing = Object.entries(wanted).filter(([name, value]) => (present[name] ?? null) !== value);
      const write = this.#contest.mayWrite(present, wanted, performance.now()) && nodes.ownIsThere;
      this.#reportContest();
      if (write) {
        await annotate(Object.fromEntries(differing));
        this.#contest.wrote(wanted);
      }
      published = nodes.ownIsThere && (write || differing.length === 0);
    } finally {
      this.mayStart =
        config.firewallOnly ||
        executor.dry ||
        this.#publication.mayStart(present, wanted, published, performance.now());
    }
  }

  #reportContest(): void {
    const { names } = this.#contest;
    this.#means.findings.report(
      "own Node",
      names.length === 0
        ? undefined
        : {
            severity: "unready",
            message:
              "somebody changes this node's annotations as often as the agent writes them: another machine has its name (a clone: give it one of its own), or another agent writes to its Node; the others now reach one of both at most, and this agent writes ever less often",
            annotations: names,
          },
    );
  }
}
