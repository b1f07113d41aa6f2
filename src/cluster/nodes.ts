/** Follows the Nodes: the own one whole, the others by their metadata, and keeps what the plan needs of each. */
import type { Logger } from "pino";
import { Table } from "../net/table.ts";
import {
  annotation,
  fromAnnotations,
  type NodeObject,
  type NodeRecord,
  saysAll,
} from "../plan/overlay/node.ts";
import type { ApiClient } from "./client.ts";
import { type ApiObject, isOlder } from "./list.ts";
import { follow } from "./reflector.ts";
import { WholeNodes } from "./wholenodes.ts";

const nodes = "/api/v1/nodes";
/**
 * Milliseconds for which a node that left, or lost its key, stays as it was: a Node that is deleted and made anew has
 * its annotations back in a moment, and a peer that is taken away and put back has forgotten its session, so that the
 * other end's packets are lost for 15 s, until WireGuard notices.
 */
const grace = 3_000;
/** Milliseconds for which the Nodes that are to be read whole may hold back what is known of the others. */
const patience = 5_000;

export class ClusterNodes {
  /** The own Node, as it was last: one that is deleted is missed in the log, and what it had stays. */
  own: NodeObject | undefined;
  ownIsThere = false;
  /** The version of the own Node that is known. */
  #ownVersion = "";
  /** What is known of each other node, by name. */
  readonly others = new Table<NodeRecord>((a, b) => Bun.deepEquals(a, b));

  /** Whether a complete list of all nodes has been read, and the own Node. */
  get complete(): boolean {
    return this.#listed && this.own !== undefined;
  }

  /**
   * Whether all of it is known: the list is none that may be old, and each node was read. Until then nothing may be taken away
   * from the host for what is missing here.
   */
  get whole(): boolean {
    return this.#fresh && !this.#wholeNodes.incomplete;
  }

  readonly #client: ApiClient;
  readonly #ownName: string;
  readonly #log: Logger;
  readonly #changed: () => void;
  #listed = false;
  #fresh = false;
  /** How many Nodes there are besides the own one, with an agent or without. */
  #total = 0;
  /** Those whose annotations do not say all. */
  readonly #wholeNodes: WholeNodes;
  #wasWhole = false;
  /** Whether `others` changed since that was last told. */
  #untold = false;
  readonly #grace: number;
  readonly #patience: number;
  /** What the records were made from, by name: hardly any change of a Node is one of that. */
  readonly #digests = new Map<string, number>();
  /** Nodes in their grace. */
  readonly #leaving = new Map<string, Timer>();

  /** @param changed called after each change of `own` or `others` */
  constructor(options: {
    client: ApiClient;
    ownName: string;
    log: Logger;
    changed: () => void;
    grace?: number;
    patience?: number;
  }) {
    this.#grace = options.grace ?? grace;
    this.#patience = options.patience ?? patience;
    this.#client = options.client;
    this.#ownName = options.ownName;
    this.#log = options.log;
    this.#changed = options.changed;
    this.#wholeNodes = new WholeNodes({
      client: options.client,
      path: nodes,
      log: options.log,
      read: (name, record) => {
        this.#set(name, record);
        this.#tell();
      },
      total: () => this.#total,
    });
  }

  /** Runs until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const collection = { client: this.#client, path: nodes, log: this.#log };
    await Promise.all([
      follow<ApiObject & NodeObject>(
        { ...collection, name: this.#ownName },
        {
          replaced: ([node]) => this.#setOwn(node),
          // The watch may be behind what this agent has written.
          changed: (node) => {
            if (!isOlder(node.metadata.resourceVersion ?? "", this.#ownVersion)) this.#setOwn(node);
          },
          removed: () => this.#setOwn(undefined),
        },
        signal,
      ),
      follow<ApiObject>(
        { ...collection, metadataOnly: true, keep: essence },
        {
          provisional: (items) => {
            const { names } = this.#wholeNodes;
            const known = new Set([...this.others.keys(), ...names]);
            this.#take(
              items.filter(({ metadata }) => !known.has(metadata.name)),
              signal,
            );
          },
          replaced: (items) => {
            this.#fresh = true;
            this.#replace(items, signal);
          },
          changed: (item) => {
            this.#note(item);
            this.#tell();
            this.#wholeNodes.read(signal);
          },
          removed: (item) => {
            this.#wholeNodes.forget(item.metadata.name);
            this.#set(item.metadata.name, undefined);
            this.#tell();
          },
        },
        signal,
      ),
    ]);
  }

  /** Reads some Nodes of the other kind again: their status may have changed without a change of their metadata. */
  refresh(signal: AbortSignal): void {
    this.#wholeNodes.refresh();
    if (this.#listed) this.#wholeNodes.read(signal);
  }

  /** The node's addresses changed: follows on by new connections, from where it was. */
  reconnect(): void {
    this.#client.reconnect();
  }

  /**
   * Patches the own Node's annotations; null takes one away. `own` has them then, though the watch may tell of them much later.
   * Throws if the API server has changed them.
   */
  async annotate(annotations: Record<string, string | null>): Promise<void> {
    const node = await this.#client.json<ApiObject & NodeObject>({
      method: "PATCH",
      path: `${nodes}/${encodeURIComponent(this.#ownName)}`,
      contentType: "application/merge-patch+json",
      body: JSON.stringify({ metadata: { annotations } }),
    });
    this.#setOwn(node);
    const kept = node.metadata.annotations ?? {};
    const differing = Object.keys(annotations).filter((name) => (kept[name] ?? null) !== annotations[name]);
    if (differing.length > 0)
      throw new Error(
        `the API server takes ${differing.join(", ")} and does not keep it as it is: an admission webhook or policy changes annotations of Nodes; have it leave those of wigglenet/ alone`,
      );
  }

  #setOwn(node: (ApiObject & NodeObject) | undefined): void {
    this.ownIsThere = node !== undefined;
    this.#ownVersion = node?.metadata.resourceVersion ?? "";
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
    this.#total = present.size;
    for (const name of [...this.others.keys(), ...this.#wholeNodes.names])
      if (!present.has(name)) {
        this.#set(name, undefined);
        this.#wholeNodes.forget(name);
      }
    this.#take(items, signal);
  }

  #take(items: ApiObject[], signal: AbortSignal): void {
    for (const item of items) this.#note(item);
    this.#tell();
    void this.#wholeNodes.settle(signal, this.#patience).then(() => {
      if (signal.aborted) return;
      this.#untold ||= !this.#listed;
      this.#listed = true;
      this.#tell();
    });
  }

  // Nodes' heartbeats are changes of their metadata too, hundreds a second in a large cluster.
  #tell(): void {
    this.#untold ||= this.whole !== this.#wasWhole;
    this.#wasWhole = this.whole;
    if (!this.#untold || !this.#listed) return;
    this.#untold = false;
    this.#changed();
  }

  #set(name: string, record: NodeRecord | undefined): void {
    this.#digests.delete(name);
    clearTimeout(this.#leaving.get(name));
    this.#leaving.delete(name);
    const settle = () => {
      const isChange = record ? this.others.set(name, record) : this.others.delete(name);
      this.#untold ||= isChange;
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
    const { name, creationTimestamp, annotations } = item.metadata;
    if (name === this.#ownName) return;
    const digest = digestOf([creationTimestamp, annotations]);
    if (this.#digests.get(name) === digest) return;
    this.#digests.delete(name);
    if (!hasAgent(annotations)) {
      this.#wholeNodes.forget(name);
      // One that had an agent may still have pods: nobody's packets to them are to leave in the clear.
      const known = this.others.get(name);
      this.#set(name, known && withoutKey(known));
    } else if (saysAll(annotations)) {
      this.#wholeNodes.forget(name);
      this.#set(name, fromAnnotations(item));
      this.#digests.set(name, digest);
    } else this.#wholeNodes.note(item);
  }
}

/** Nobody is to find another text with the same digest. */
const seed = BigInt(crypto.getRandomValues(new Uint32Array(1))[0] ?? 0);

function digestOf(values: readonly unknown[]): number {
  // As many bits as a number takes without another object.
  return Number(BigInt.asUintN(52, BigInt(Bun.hash(JSON.stringify(values), seed))));
}

const ours: string[] = Object.values(annotation);

/** An agent of either kind annotates its Node; of one without there is nothing to know. */
function hasAgent(annotations: Record<string, string> | undefined): boolean {
  return ours.some((name) => annotations?.[name] !== undefined);
}

function withoutKey({ publicKey: _, ...record }: NodeRecord): NodeRecord {
  return { ...record, clearToNodes: false, problems: [] };
}

/** What counts of a Node's metadata, a tenth of it. */
function essence({ metadata }: ApiObject): ApiObject {
  const { name, resourceVersion, creationTimestamp, annotations = {} } = metadata;
  return {
    metadata: {
      name,
      ...(resourceVersion === undefined ? {} : { resourceVersion }),
      ...(creationTimestamp === undefined ? {} : { creationTimestamp }),
      annotations: Object.fromEntries(
        ours.flatMap((key) => (annotations[key] === undefined ? [] : [[key, annotations[key]]])),
      ),
    },
  };
}
