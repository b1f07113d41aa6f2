/**
 * Who owns what: nodes claim keys, pod CIDRs and addresses by their annotations, and some claims collide (a cloned
 * machine, a VIP that fails over, a stale Node object, malice). Who holds a claim keeps it until it gives it up or its
 * Node is deleted. What two claim and nobody holds is nobody's. So no annotation moves another node's traffic.
 *
 * All claims are kept, so that a change costs what it overlaps and not the cluster. A claim that changes has those
 * decided again that overlap it and rank no better: nothing else depends on it.
 */
import { compareAddresses, type Family } from "../../net/address.ts";
import { Dictionary } from "../../net/dictionary.ts";
import { type Bounds, boundsCheck, type Check } from "./bounds.ts";
import { type Claim, compareDecided, makeClaim, type Rank, rank } from "./claim.ts";
import { type ClaimChanges, ClaimIndex } from "./claimindex.ts";
import { copiedFrom, type Standing, settleKey, wayTo } from "./keys.ts";
import type { NodeRecord } from "./node.ts";

export type { Standing } from "./keys.ts";

/** What this node has itself; nobody else's claim wins against it. */
export interface OwnClaims {
  name: string;
  /** Null without a tunnel: then other nodes need no key either. */
  publicKey: string | null;
  podCidrs: readonly string[];
  addresses: readonly string[];
  bounds: Bounds;
  /** Families in which it can reach a peer. */
  reaches: readonly Family[];
  /** False while some nodes may be unknown: what those hold is nobody else's. */
  whole: boolean;
}

/** A node with those of its claims that hold. */
export interface SettledNode {
  record: NodeRecord;
  publicKey: string | undefined;
  podCidrs: readonly string[];
  addresses: readonly string[];
  /** Both, as WireGuard calls them, sorted. */
  allowedIps: readonly string[];
  /** Its claims that do not hold, and why. */
  refused: readonly string[];
}

export interface Settlement {
  nodes: SettledNode[];
  /** By node name, the claims that do not hold and why. */
  refused: Map<string, readonly string[]>;
  /** What several nodes claim and none holds: it is sent to nobody. */
  contested: { podCidrs: string[]; addresses: string[] };
  /** Of what holds; without endpoints. */
  standing: Omit<Standing, "endpoints">;
  /** Comparisons and looks at a claim that it took. */
  steps: number;
}

/** Settles all from nothing. @param nodes all nodes but our own */
export function settle(own: OwnClaims, nodes: readonly NodeRecord[], standing: Standing): Settlement {
  const claims = new Claims(own, standing);
  claims.update(nodes.map((record) => [record.name, record]));
  const settled = nodes.flatMap(({ name }) => claims.get(name) ?? []);
  const { endpoints: _, ...rest } = claims.standing;
  return {
    nodes: settled,
    refused: new Map(
      settled.flatMap(({ record, refused }) => (refused.length > 0 ? [[record.name, refused]] : [])),
    ),
    contested: {
      podCidrs: [...claims.contested.podCidrs].sort(compareAddresses),
      addresses: [...claims.contested.addresses].sort(compareAddresses),
    },
    standing: rest,
    steps: claims.steps,
  };
}

/** A node with all that it claims. */
interface Claimant {
  record: NodeRecord;
  /** The rank of what it claims and did not hold before. */
  fresh: Rank;
  claims: readonly Claim[];
  /** Where its tunnel is, if that is nothing that it claims. */
  endpoints: readonly Claim[];
  outOfBounds: readonly string[];
  /** Whose its key is; without a holder if it has none. */
  key: { holder: string | undefined; decided: boolean };
  settled: SettledNode | undefined;
}

/** No node has a name that begins so. */
const unknown = "?";

/** The claims of all nodes but our own, settled after each `update`. */
export class Claims {
  readonly #own: OwnClaims;
  readonly #check: Check;
  readonly #index: ClaimIndex;
  readonly #nodes = new Dictionary<Claimant>();
  /** By key the names of those that have it: mostly one. */
  readonly #byKey = new Dictionary<readonly string[]>();
  /** Keys of several nodes that are judged again each time. */
  readonly #undecided = new Set<string>();
  readonly #standing: { [name in keyof Standing]: Dictionary<string> };
  /** Claims whose rank is another one by what the last update settled. */
  #pending = new Set<Claim>();
  #isFirst = true;

  /** @param standing what is held before the first update */
  constructor(own: OwnClaims, standing: Standing) {
    this.#own = own;
    this.#check = boundsCheck(own.bounds);
    this.#index = new ClaimIndex(own);
    const { owners, nodes, endpoints, holders } = standing;
    this.#standing = {
      owners: dictionaryOf(owners),
      nodes: dictionaryOf(nodes),
      endpoints: dictionaryOf(endpoints),
      holders: dictionaryOf(holders),
    };
  }

  /** What holds now: a copy. */
  get standing(): Standing {
    const { owners, nodes, endpoints, holders } = this.#standing;
    return {
      owners: new Map(owners.entries()),
      nodes: new Map(nodes.entries()),
      endpoints: new Map(endpoints.entries()),
      holders: new Map(holders.entries()),
    };
  }

  /** What several nodes claim and none holds: it is sent to nobody. */
  get contested(): { podCidrs: Iterable<string>; addresses: Iterable<string> } {
    return { podCidrs: this.#index.contested("pod CIDR"), addresses: this.#index.contested("address") };
  }

  /** Comparisons and looks at a claim so far. */
  get steps(): number {
    return this.#index.steps;
  }

  /** Whether an update without a change would settle something in another way than the last one did. */
  get unsettled(): boolean {
    return this.#pending.size > 0;
  }

  /** How a node is settled; undefined if there is none of this name. */
  get(name: string): SettledNode | undefined {
    return this.#nodes.get(name)?.settled;
  }

  /**
   * Takes over what nodes say now, and settles it.
   * @param records by name; undefined: the node is gone
   * @returns the names of the nodes that are settled in another way than before, those that are gone too
   */
  update(records: Iterable<readonly [name: string, record: NodeRecord | undefined]>): Set<string> {
    const changes: ClaimChanges = {
      gone: new Set(),
      added: new Set(),
      again: this.#pending,
      goneEndpoints: new Set(),
      addedEndpoints: new Set(),
    };
    const before = new Map<string, SettledNode | undefined>();
    const keys = new Set(this.#undecided);
    for (const [name, record] of records) {
      const claimant = this.#nodes.get(name);
      if (!before.has(name)) before.set(name, claimant?.settled);
      if (claimant !== undefined) this.#takeAway(claimant, changes, keys);
      if (record !== undefined) this.#note(record, changes, keys);
    }
    for (const key of keys)
      for (const { record, claims, settled } of this.#settleKey(key)) {
        if (!before.has(record.name)) before.set(record.name, settled);
        for (const claim of claims) if (!changes.added.has(claim)) changes.again.add(claim);
      }
    if (this.#isFirst && !this.#own.whole) this.#index.hold(this.#heldByUnknown());
    const decided = this.#index.decide(changes, (claim) => this.#rankOf(claim));
    for (const { node } of decided) if (!before.has(node)) before.set(node, this.get(node));
    const changed = new Set<string>();
    for (const [name, settled] of before) if (this.#settleNode(name, settled)) changed.add(name);
    this.#remember(changes.gone, decided, before, keys);
    return changed;
  }

  #takeAway({ record, claims, endpoints }: Claimant, changes: ClaimChanges, keys: Set<string>): void {
    this.#nodes.delete(record.name);
    for (const claim of claims) {
      changes.again.delete(claim);
      // One that came in this very update has never been anywhere.
      if (!changes.added.delete(claim)) changes.gone.add(claim);
    }
    for (const endpoint of endpoints)
      if (!changes.addedEndpoints.delete(endpoint)) changes.goneEndpoints.add(endpoint);
    if (record.publicKey === undefined) return;
    keys.add(record.publicKey);
    const others = this.#byKey.get(record.publicKey)?.filter((name) => name !== record.name) ?? [];
    if (others.length > 0) this.#byKey.set(record.publicKey, others);
    else this.#byKey.delete(record.publicKey);
  }

  #note(record: NodeRecord, changes: ClaimChanges, keys: Set<string>): void {
    const { name, publicKey } = record;
    const fresh = publicKey === undefined && this.#own.publicKey !== null ? rank.keyless : rank.new;
    const claims: Claim[] = [];
    const outOfBounds: string[] = [];
    const add = (kind: "pod CIDR" | "address", prefix: string) => {
      const problem = this.#check(kind, prefix);
      if (problem) outOfBounds.push(`${kind} ${prefix}: ${problem}`);
      else claims.push(makeClaim(name, kind, prefix, fresh));
    };
    for (const prefix of record.podCidrs) add("pod CIDR", prefix);
    for (const address of record.addresses) add("address", address);
    const endpoints = record.endpoints
      .filter((endpoint) => !record.addresses.includes(endpoint))
      .map((endpoint) => makeClaim(name, "endpoint", endpoint, fresh));
    const key = noKey;
    const kept = { endpoints: orNone(endpoints), outOfBounds: orNone(outOfBounds) };
    this.#nodes.set(name, { record, fresh, claims, ...kept, key, settled: undefined });
    for (const claim of claims) changes.added.add(claim);
    for (const endpoint of endpoints) changes.addedEndpoints.add(endpoint);
    if (publicKey === undefined) return;
    keys.add(publicKey);
    this.#byKey.set(publicKey, [...(this.#byKey.get(publicKey) ?? []), name]);
  }

  /** @returns the nodes for which that is another result than before */
  #settleKey(key: string): Claimant[] {
    const claimants = (this.#byKey.get(key) ?? []).map((name) => this.#nodes.get(name)!);
    const [first, ...others] = claimants.map(({ record }) => record);
    this.#undecided.delete(key);
    if (first === undefined) return [];
    const settled = settleKey(key, [first, ...others], this.#own, this.#standing);
    if (!settled.decided) this.#undecided.add(key);
    return claimants.filter((claimant) => {
      const { holder, decided } = claimant.key;
      claimant.key = settled;
      return holder !== settled.holder || decided !== settled.decided;
    });
  }

  /** Claims of nodes that held something, and that may be among those not read yet. */
  #heldByUnknown(): Claim[] {
    const { owners, nodes } = this.#standing;
    const keys = [...this.#nodes.values()].map((claimant) => keyOf(claimant));
    const known = new Set([...this.#nodes.keys(), ...keys]);
    return [...new Set([...owners.keys(), ...nodes.keys()])].flatMap((prefix) => {
      const holder = nodes.get(prefix) ?? owners.get(prefix) ?? "";
      return known.has(holder) ? [] : makeClaim(`${unknown} (${holder})`, "pod CIDR", prefix, rank.own);
    });
  }

  #rankOf(claim: Claim): Rank {
    const claimant = this.#nodes.get(claim.node)!;
    if (claimant.fresh === rank.keyless) return claimant.fresh;
    const holder = this.#standing.nodes.get(claim.allowedIp);
    if (holder === claim.node) return rank.standing;
    const key = keyOf(claimant);
    // A node that is there under another name now, with the key that it had.
    const moved =
      key !== undefined &&
      this.#standing.owners.get(claim.allowedIp) === key &&
      !this.#nodes.has(holder ?? "");
    return moved ? rank.standing : claimant.fresh;
  }

  /** @returns whether that is another result than `before` */
  #settleNode(name: string, before: SettledNode | undefined): boolean {
    const claimant = this.#nodes.get(name);
    if (claimant === undefined) return before !== undefined;
    const { record, claims, outOfBounds, key } = claimant;
    const holds = claims.filter(({ state }) => state === "held").sort((a, b) => (a.key < b.key ? -1 : 1));
    const holding = new Set(holds.map(({ prefix }) => prefix));
    const held = (values: readonly string[]) =>
      values.every((value) => holding.has(value)) ? values : values.filter((value) => holding.has(value));
    const lost = claims.filter(({ problem }) => problem !== undefined).sort(compareDecided);
    const refused = [
      ...(key.holder === undefined || key.holder === name ? [] : [copiedFrom(key.holder)]),
      ...outOfBounds,
      ...lost.map(({ problem = "" }) => problem),
    ];
    const publicKey = keyOf(claimant);
    const settled = {
      record,
      publicKey,
      podCidrs: held(record.podCidrs),
      addresses: held(record.addresses),
      allowedIps: holds.map(({ allowedIp }) => allowedIp),
      refused: orNone(refused),
    };
    const same = before !== undefined && isSame(settled, before);
    claimant.settled = same ? before : settled;
    return !same;
  }

  /** Writes down what holds now, for the next update. */
  #remember(
    gone: Iterable<Claim>,
    decided: Iterable<Claim>,
    before: ReadonlyMap<string, SettledNode | undefined>,
    keys: ReadonlySet<string>,
  ): void {
    const { owners, nodes, endpoints, holders } = this.#standing;
    const holding = new Map<string, Claim | undefined>();
    if (this.#isFirst) {
      for (const prefix of [...owners.keys(), ...nodes.keys()]) holding.set(prefix, undefined);
      endpoints.clear();
      holders.clear();
      this.#isFirst = false;
    }
    for (const { allowedIp } of gone) holding.set(allowedIp, undefined);
    for (const claim of decided)
      if (claim.state === "held") holding.set(claim.allowedIp, claim);
      else if (!holding.has(claim.allowedIp)) holding.set(claim.allowedIp, undefined);
    for (const [prefix, found] of holding) {
      if (found === undefined && !owners.has(prefix) && !nodes.has(prefix)) continue;
      const claim = found ?? this.#index.heldAt(prefix);
      // What a node holds that is not known yet stays with it.
      if (claim?.node.startsWith(unknown)) continue;
      const claimant = claim && this.#nodes.get(claim.node);
      const key = claimant && keyOf(claimant);
      put(owners, prefix, key);
      put(nodes, prefix, key === undefined || claimant?.key.decided ? claim?.node : undefined);
    }
    for (const settled of before.values()) put(endpoints, settled?.publicKey, undefined);
    for (const name of before.keys()) {
      const settled = this.get(name);
      if (settled) put(endpoints, settled.publicKey, wayTo(settled.record, this.#own.reaches));
    }
    for (const key of keys) {
      const [name = ""] = this.#byKey.get(key) ?? [];
      const { holder, decided } = this.#nodes.get(name)?.key ?? {};
      put(holders, key, decided && holder !== this.#own.name ? holder : undefined);
    }
    this.#pending = new Set();
    for (const claim of decided) if (this.#rankOf(claim) !== claim.rank) this.#pending.add(claim);
  }
}

const noKey = { holder: undefined, decided: true };

// Thousands of nodes have none.
const none: readonly never[] = [];

function orNone<T>(list: readonly T[]): readonly T[] {
  return list.length > 0 ? list : none;
}

function dictionaryOf(map: Iterable<[string, string]> = []): Dictionary<string> {
  const dictionary = new Dictionary<string>();
  for (const [key, value] of map) dictionary.set(key, value);
  return dictionary;
}

function put(map: Dictionary<string>, key: string | undefined, value: string | undefined): void {
  if (key === undefined) return;
  if (value === undefined) map.delete(key);
  else map.set(key, value);
}

/** Its key, if that is its own. */
function keyOf({ record, key }: Claimant): string | undefined {
  return key.holder === record.name ? record.publicKey : undefined;
}

function isSame(a: SettledNode, b: SettledNode): boolean {
  return (
    a.record === b.record &&
    a.publicKey === b.publicKey &&
    Bun.deepEquals([a.podCidrs, a.addresses, a.refused], [b.podCidrs, b.addresses, b.refused])
  );
}
