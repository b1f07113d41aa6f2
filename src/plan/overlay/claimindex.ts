/** All claims that there are, kept by where they are, so that what overlaps a change is found without a look at the rest. */
import { sortKey } from "../../net/address.ts";
import { Nesting } from "../../net/nesting.ts";
import { PrefixList } from "../../net/prefixlist.ts";
import { type Claim, collision, compareOwners, makeClaim, type Rank, rank, ranks } from "./claim.ts";

export interface ClaimChanges {
  gone: Set<Claim>;
  added: Set<Claim>;
  /** Claims that stay, whose rank may be another one by now. */
  again: Set<Claim>;
  goneEndpoints: Set<Claim>;
  addedEndpoints: Set<Claim>;
}

/** What this node has, and what surrounds it. */
interface Fixed {
  name: string;
  podCidrs: readonly string[];
  addresses: readonly string[];
  bounds: { apiServer: readonly string[]; onLink: readonly string[] };
}

/** Those that can give a node something; endpoints cannot. */
type Counted = "pod CIDR" | "address";

const none: ReadonlySet<never> = new Set();

export class ClaimIndex {
  readonly #ownName: string;
  /** Of other nodes. */
  readonly #byRank: Record<Rank, PrefixList<Claim>>;
  /** Those that hold, our own too. */
  readonly #held = new PrefixList(compareOwners);
  readonly #endpoints = new PrefixList(compareOwners);
  readonly #networks = new PrefixList(compareOwners);
  readonly #servers = new PrefixList(compareOwners);
  /** By an API server's address: the nodes that claim it, and the claim that keeps pod CIDRs off it. */
  readonly #serverAt = new Map<string, { claimants: Set<string>; claim: Claim }>();
  /** By prefix or address, how many claim it that none holds. */
  readonly #contested = { "pod CIDR": new Map<string, number>(), address: new Map<string, number>() };
  #steps = 0;

  constructor({ name, podCidrs, addresses, bounds }: Fixed) {
    this.#ownName = name;
    const list = () => new PrefixList(compareOwners);
    this.#byRank = { [rank.standing]: list(), [rank.new]: list(), [rank.keyless]: list() };
    const ours = (kind: Claim["kind"], prefixes: readonly string[]) =>
      prefixes.map((prefix) => makeClaim(name, kind, prefix, rank.own));
    this.hold([...ours("pod CIDR", podCidrs), ...ours("address", addresses)]);
    this.#networks.change(none, ours("network", bounds.onLink));
    const servers = ours("API server's address", bounds.apiServer);
    this.#servers.change(none, servers);
    for (const claim of servers) this.#serverAt.set(claim.prefix, { claimants: new Set(), claim });
  }

  /** Comparisons and looks at a claim so far. */
  get steps(): number {
    const lists = [
      ...Object.values(this.#byRank),
      this.#held,
      this.#endpoints,
      this.#networks,
      this.#servers,
    ];
    return lists.reduce((sum, { steps }) => sum + steps, this.#steps);
  }

  /** What several nodes claim and none holds. */
  contested(kind: Counted): IterableIterator<string> {
    return this.#contested[kind].keys();
  }

  /** Claims that nobody else's wins against. */
  hold(claims: readonly Claim[]): void {
    this.#held.change(none, claims);
  }

  /** One that holds at exactly this prefix, of another node. */
  heldAt(prefix: string): Claim | undefined {
    for (const claim of this.#held.at(prefix)) if (claim.node !== this.#ownName) return claim;
    return undefined;
  }

  /**
   * Decides what changes, and whatever depends on it: all claims that overlap one that changes, and rank no better.
   * @param rankOf the rank that a claim has now
   * @returns the claims that were decided, those that are gone not among them
   */
  decide(changes: ClaimChanges, rankOf: (claim: Claim) => Rank): ReadonlySet<Claim> {
    const dirty = this.#spread(changes, rankOf);
    const held = [...changes.gone, ...dirty].filter(({ state }) => state === "held");
    this.#held.change(new Set(held), []);
    for (const claim of [...changes.gone, ...dirty]) {
      if (claim.state === "contested") this.#count(claim, -1);
      claim.state = "open";
      claim.problem = undefined;
    }
    for (const each of ranks) {
      const open = [...dirty].filter((claim) => claim.rank === each);
      if (open.length > 0) this.#decideRank(open, each);
    }
    for (const claim of dirty) if (claim.state === "contested") this.#count(claim, 1);
    return dirty;
  }

  /** Finds all that is to be decided, gives it its rank, and brings the lists up to date. */
  #spread(changes: ClaimChanges, rankOf: (claim: Claim) => Rank): Set<Claim> {
    const { gone, added, again, goneEndpoints, addedEndpoints } = changes;
    const dirty = new Set([...added, ...again]);
    // Where many overlap, each of them would find all the others again.
    const searched = new PrefixList<{ prefix: string; key: string; from: number }>();
    const overlapping = (prefix: string, from: number) => {
      for (const earlier of searched.around(prefix)) if (earlier.from <= from) return;
      const before = dirty.size;
      for (const each of ranks) {
        const list = this.#byRank[each];
        if (each < from || list.size === 0) continue;
        for (const found of [list.around(prefix), list.within(prefix)])
          for (const claim of found) if (!gone.has(claim)) dirty.add(claim);
      }
      if (dirty.size > before) searched.change(none, [{ prefix, key: sortKey(prefix), from }]);
    };
    for (const { prefix, rank } of gone) overlapping(prefix, rank);
    for (const { prefix } of [...goneEndpoints, ...addedEndpoints]) overlapping(prefix, rank.new);
    for (const prefix of this.#moveServers(changes)) overlapping(prefix, rank.standing);
    const leaving: Record<Rank, Claim[]> = { [rank.standing]: [], [rank.new]: [], [rank.keyless]: [] };
    const coming: Record<Rank, Claim[]> = { [rank.standing]: [], [rank.new]: [], [rank.keyless]: [] };
    for (const claim of gone) leaving[claim.rank as Rank].push(claim);
    // It grows while it is walked through.
    for (const claim of dirty) {
      const [before, now] = [claim.rank as Rank, rankOf(claim)];
      claim.rank = now;
      overlapping(claim.prefix, Math.min(before, now));
      const isNew = added.has(claim);
      if (!isNew && before !== now) leaving[before].push(claim);
      if (isNew || before !== now) coming[now].push(claim);
    }
    this.#steps += searched.steps;
    for (const each of ranks) this.#byRank[each].change(new Set(leaving[each]), coming[each]);
    this.#endpoints.change(goneEndpoints, [...addedEndpoints]);
    return dirty;
  }

  /**
   * The one node that claims an API server's address may have it inside of its own pod CIDR.
   * @returns the addresses for which that is another node now
   */
  #moveServers({ gone, added }: ClaimChanges): string[] {
    if (this.#serverAt.size === 0) return [];
    const touched = new Set<string>();
    const note = (claims: Iterable<Claim>, take: (claimants: Set<string>, node: string) => void) => {
      for (const { kind, prefix, node } of claims) {
        const server = kind === "address" ? this.#serverAt.get(prefix) : undefined;
        if (server === undefined) continue;
        take(server.claimants, node);
        touched.add(prefix);
      }
    };
    note(gone, (claimants, node) => claimants.delete(node));
    note(added, (claimants, node) => claimants.add(node));
    return [...touched].filter((prefix) => {
      const server = this.#serverAt.get(prefix)!;
      const [claimant = this.#ownName, ...others] = server.claimants;
      const node = others.length > 0 ? this.#ownName : claimant;
      if (server.claim.node === node) return false;
      const claim = makeClaim(node, "API server's address", prefix, rank.own);
      this.#servers.change(new Set([server.claim]), [claim]);
      server.claim = claim;
      return true;
    });
  }

  /** Decides the open claims of a rank: against what better ones hold, then among each other. */
  #decideRank(open: readonly Claim[], current: Rank): void {
    const left: Claim[] = [];
    for (const claim of open) {
      const rival = this.#better(claim);
      if (rival) lose(claim, rival, "refused");
      else left.push(claim);
    }
    left.sort((a, b) => this.#held.compare(a, b));
    const nesting = new Nesting(left);
    const [around, within] = [nesting.around(), nesting.within()];
    this.#steps += nesting.steps;
    const held = left.filter((claim, index) => {
      // All were found before any is decided: what loses to one still contests the others.
      const rival = around[index] ?? within[index] ?? this.#endpointIn(claim, current);
      if (rival) lose(claim, rival, "contested");
      else claim.state = "held";
      return rival === undefined;
    });
    this.#held.change(none, held);
  }

  /** Of another node, a claim that holds or a place that nobody may cover. */
  #better(claim: Claim): Claim | undefined {
    const { prefix, key, node, kind } = claim;
    const rivals = (other: Claim) => other.node !== node;
    const before = (other: Claim) => other.key !== key || compareOwners(other, claim) < 0;
    for (const other of this.#held.around(prefix)) if (rivals(other) && before(other)) return other;
    const inside = this.#held.lastWithin(prefix, (other) => rivals(other));
    if (inside || kind !== "pod CIDR") return inside;
    const network = this.#networks.lastWithin(prefix, rivals);
    if (network) return network;
    // Inside of a network on a link it has a route of its own: excepted from the pod CIDR.
    for (const other of this.#networks.around(prefix)) if (other.key !== key) return undefined;
    return this.#servers.lastWithin(prefix, rivals);
  }

  #endpointIn({ prefix, node, kind }: Claim, current: Rank): Claim | undefined {
    if (kind !== "pod CIDR" || current === rank.standing) return undefined;
    return this.#endpoints.lastWithin(prefix, (other) => other.node !== node && other.rank <= current);
  }

  #count({ kind, prefix }: Claim, by: 1 | -1): void {
    const counts = this.#contested[kind as Counted];
    const count = (counts.get(prefix) ?? 0) + by;
    if (count > 0) counts.set(prefix, count);
    else counts.delete(prefix);
  }
}

function lose(claim: Claim, rival: Claim, state: "refused" | "contested"): void {
  claim.state = state;
  claim.problem = collision(claim, rival, state);
}
