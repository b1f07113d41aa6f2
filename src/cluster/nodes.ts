/** Follows the Nodes: the own one whole, the others by their metadata, and keeps what the plan needs of each. */
import type { Logger } from "pino";
import { fromAnnotations, fromNode, type NodeObject, type NodeRecord, saysAll } from "../plan/node.ts";
import { type ApiClient, ApiError } from "./client.ts";
import { type ApiObject, backoff, follow } from "./reflector.ts";

const nodes = "/api/v1/nodes";
const readsAtOnce = 16;
/**
 * Milliseconds for which a node that left, or lost its key, stays as it was: a Node that is deleted and made anew has
 * its annotations back in a moment, and a peer that is taken away and put back has forgotten its session, so that the
 * other end's packets are lost for 15 s, until WireGuard notices.
 */
const grace = 3_000;

/** What was read of a Node whose annotations do not say all. */
interface Reading {
  /** Those that were read with it; undefined: it is to be read. */
  annotations: string | undefined;
  /** How often it was to be read: a change while the answer is on its way has it asked for again. */
  changes: number;
}

export class ClusterNodes {
  /** The own Node, as it was last: one that is deleted is missed in the log, and what it had stays. */
  own: NodeObject | undefined;
  ownIsThere = false;
  readonly others = new Map<string, NodeRecord>();

  /** Whether a complete list of all nodes has been read, and the own Node. */
  get complete(): boolean {
    return this.#listed && this.own !== undefined;
  }

  readonly #client: ApiClient;
  readonly #ownName: string;
  readonly #log: Logger;
  readonly #changed: () => void;
  #listed = false;
  /** Nodes whose annotations do not say all. */
  readonly #ofOtherKind = new Map<string, Reading>();
  #reading: Promise<void> | undefined;
  /** Whether `others` changed since that was last told. */
  #untold = false;
  readonly #grace: number;
  /** Nodes in their grace. */
  readonly #leaving = new Map<string, Timer>();

  /** @param changed called after each change of `own` or `others` */
  constructor(options: {
    client: ApiClient;
    ownName: string;
    log: Logger;
    changed: () => void;
    grace?: number;
  }) {
    this.#grace = options.grace ?? grace;
    this.#client = options.client;
    this.#ownName = options.ownName;
    this.#log = options.log;
    this.#changed = options.changed;
  }

  /** Runs until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const collection = { client: this.#client, path: nodes, log: this.#log };
    const fieldSelector = `metadata.name=${this.#ownName}`;
    await Promise.all([
      follow<ApiObject & NodeObject>(
        { ...collection, fieldSelector },
        {
          replaced: ([node]) => this.#setOwn(node),
          changed: (node) => this.#setOwn(node),
          removed: () => this.#setOwn(undefined),
        },
        signal,
      ),
      follow<ApiObject>(
        { ...collection, metadataOnly: true },
        {
          replaced: (items) => this.#replace(items, signal),
          changed: (item) => {
            this.#note(item);
            this.#tell();
            this.#settle(signal);
          },
          removed: (item) => {
            this.#ofOtherKind.delete(item.metadata.name);
            this.#set(item.metadata.name, undefined);
            this.#tell();
          },
        },
        signal,
      ),
    ]);
  }

  /** Reads the Nodes of the other kind again: their status may have changed without a change of their metadata. */
  refresh(signal: AbortSignal): void {
    for (const reading of this.#ofOtherKind.values()) reading.annotations = undefined;
    if (this.#listed) this.#settle(signal);
  }

  /** The node's addresses changed: follows on by new connections, from where it was. */
  reconnect(): void {
    this.#client.reconnect();
  }

  /** Patches the own Node's annotations; null takes one away. */
  async annotate(annotations: Record<string, string | null>): Promise<void> {
    await this.#client.json({
      method: "PATCH",
      path: `${nodes}/${encodeURIComponent(this.#ownName)}`,
      contentType: "application/merge-patch+json",
      body: JSON.stringify({ metadata: { annotations } }),
    });
  }

  #setOwn(node: NodeObject | undefined): void {
    this.ownIsThere = node !== undefined;
    if (node === undefined) {
      this.#log.warn(
        { node: this.#ownName },
        "there is no Node of this name: waiting for kubelet to register it; if it has another name, set NODE_NAME",
      );
      return;
    }
    const { metadata, spec, status } = node;
    const parts: NodeObject = {
      metadata: {
        name: this.#ownName,
        labels: metadata.labels ?? {},
        annotations: metadata.annotations ?? {},
      },
      spec: { podCIDRs: spec?.podCIDRs ?? (spec?.podCIDR ? [spec.podCIDR] : []) },
      status: { addresses: status?.addresses ?? [] },
    };
    // Heartbeats change the Node all the time, and nothing that we look at.
    if (Bun.deepEquals(parts, this.own)) return;
    this.own = parts;
    this.#changed();
  }

  #replace(items: ApiObject[], signal: AbortSignal): void {
    const present = new Set(items.map((item) => item.metadata.name));
    for (const name of [...this.others.keys(), ...this.#ofOtherKind.keys()])
      if (!present.has(name)) {
        this.#set(name, undefined);
        this.#ofOtherKind.delete(name);
      }
    for (const item of items) this.#note(item);
    this.#settle(signal, () => {
      this.#untold ||= !this.#listed;
      this.#listed = true;
    });
  }

  // Nodes' heartbeats are changes of their metadata too, hundreds a second in a large cluster.
  #tell(): void {
    if (!this.#untold) return;
    this.#untold = false;
    this.#changed();
  }

  #set(name: string, record: NodeRecord | undefined): void {
    clearTimeout(this.#leaving.get(name));
    this.#leaving.delete(name);
    const settle = () => {
      this.#untold ||= !Bun.deepEquals(this.others.get(name), record);
      if (record) this.others.set(name, record);
      else this.others.delete(name);
    };
    if (record?.publicKey || record?.problems.length || !this.others.get(name)?.publicKey) {
      settle();
      return;
    }
    const timer = setTimeout(() => {
      this.#leaving.delete(name);
      settle();
      this.#tell();
    }, this.#grace);
    this.#leaving.set(name, timer);
  }

  #note(item: ApiObject): void {
    const { name, annotations } = item.metadata;
    if (name === this.#ownName) return;
    if (saysAll(annotations)) {
      this.#ofOtherKind.delete(name);
      this.#set(name, fromAnnotations(item));
      return;
    }
    const reading = this.#ofOtherKind.get(name) ?? { annotations: undefined, changes: 0 };
    this.#ofOtherKind.set(name, reading);
    if (reading.annotations === JSON.stringify(annotations ?? {})) return;
    reading.annotations = undefined;
    reading.changes += 1;
  }

  /** Reads what is to be read whole, then tells of the change. */
  #settle(signal: AbortSignal, then?: () => void): void {
    const before = this.#reading ?? Promise.resolve();
    const reading = before
      .then(() => this.#readWhole(signal))
      .then(() => {
        if (signal.aborted) return;
        then?.();
        this.#tell();
      });
    this.#reading = reading;
  }

  async #readWhole(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; ) {
      const names = [...this.#ofOtherKind]
        .filter(([, { annotations }]) => annotations === undefined)
        .map(([name]) => name);
      if (names.length === 0) return;
      try {
        for (let from = 0; from < names.length; from += readsAtOnce)
          await Promise.all(
            names.slice(from, from + readsAtOnce).map((name) => this.#readNode(name, signal)),
          );
        return;
      } catch (error) {
        failures += 1;
        if (failures === 1)
          this.#log.warn({ error: (error as Error).message }, "cannot read Nodes of the other kind of agent");
        await Bun.sleep(backoff(failures, Math.random()));
      }
    }
  }

  async #readNode(name: string, signal: AbortSignal): Promise<void> {
    const reading = this.#ofOtherKind.get(name);
    const changes = reading?.changes;
    try {
      const node = await this.#client.json<ApiObject & NodeObject>({
        path: `${nodes}/${encodeURIComponent(name)}`,
        signal,
      });
      // It may have left, or have become one of our kind, while the answer was on its way.
      if (reading === undefined || this.#ofOtherKind.get(name) !== reading) return;
      const record = saysAll(node.metadata.annotations) ? fromAnnotations(node) : fromNode(node);
      // Its pod CIDRs may still be allocated, which no annotation will tell: any change of it has it read again.
      if (reading.changes === changes)
        reading.annotations =
          record.podCidrs.length > 0 ? JSON.stringify(node.metadata.annotations ?? {}) : "";
      this.#set(name, record);
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error;
      this.#ofOtherKind.delete(name);
      this.#set(name, undefined);
    }
  }
}
