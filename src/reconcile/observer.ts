/** Who is told what a pass did, to count it. */
import type { ReadonlyTable } from "../net/table.ts";

export interface Observer {
  /** A pass is over. */
  passed(seconds: number): void;
  /** A resource could not be brought to its desired state. */
  failed(resource: string): void;
  /** Commands that changed the node were run, or one of them failed. */
  changed(change: Change): void;
  /** A plan was made. */
  planned(
    plan: {
      peers: ReadonlyTable<{ node: string }>;
      problems: ReadonlyTable<readonly string[]>;
    },
    others: ReadonlyTable<{ podCidrs: readonly string[] }>,
    ownPodCidrs: number,
  ): void;
  /** The firewall's backend is known. */
  choseBackend(backend: string): void;
}

export interface Change {
  /** What the commands were for. */
  what: string;
  commands: number;
  seconds: number;
  succeeded: boolean;
  /** As in the log. */
  details: { backend?: string };
}

/** Nobody. */
export const noObserver: Observer = {
  passed: () => undefined,
  failed: () => undefined,
  changed: () => undefined,
  planned: () => undefined,
  choseBackend: () => undefined,
};
