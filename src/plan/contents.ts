/** What the tables of the desired state have, by who contributes it. */
import { Dictionary } from "../net/dictionary.ts";
import { Outermost } from "../net/outermost.ts";
import { SharedTable } from "../net/sharedtable.ts";
import { type ReadonlyTable, Table } from "../net/table.ts";
import type { Contribution, Peer } from "./contribution.ts";
import { setKinds } from "./firewall/firewall.ts";
import { type SetName, setNames } from "./firewall/model.ts";
import { type Route, routePlace } from "./overlay/routes.ts";

const nothing: Contribution = { peer: undefined, routes: [], sets: {}, blocked: [] };

export class Contents {
  readonly #contributions = new Dictionary<Contribution>();
  readonly #peers = new Table<Peer>((a, b) => Bun.deepEquals(a, b));
  /** Where an exception is as long as a pod CIDR, the exception alone. */
  readonly #routes = new SharedTable<Route>(
    (a, b) => a.type === b.type,
    (a, b) => a.type === "throw" && b.type !== "throw",
  );
  readonly #addresses = new Map<SetName, SharedTable<true>>();
  /** An nftables interval set takes no prefix inside of another. */
  readonly #prefixes = new Map<SetName, Outermost>();
  readonly #blocked = new Map<string, number>();
  /** By name. */
  readonly sets: Readonly<Record<SetName, ReadonlyTable<true>>>;

  constructor() {
    const tables = setNames.map((name): [SetName, ReadonlyTable<true>] => {
      if (setKinds[name] === "prefixes") {
        const prefixes = new Outermost();
        this.#prefixes.set(name, prefixes);
        return [name, prefixes.table];
      }
      const addresses = new SharedTable<true>();
      this.#addresses.set(name, addresses);
      return [name, addresses.table];
    });
    this.sets = Object.fromEntries(tables) as Record<SetName, ReadonlyTable<true>>;
  }

  get peers(): ReadonlyTable<Peer> {
    return this.#peers;
  }

  get routes(): ReadonlyTable<Route> {
    return this.#routes.table;
  }

  /** Who contributes something. */
  contributors(): IterableIterator<string> {
    return this.#contributions.keys();
  }

  /** Whether an address lies in a pod CIDR of another node. */
  isRemote(address: string): boolean {
    return this.#prefixes.get("remote")!.covers(address);
  }

  /** How many endpoints there are in a contested prefix. */
  blocked(prefix: string): number {
    return this.#blocked.get(prefix) ?? 0;
  }

  /** What somebody contributes from now on, instead of what it did. */
  put(name: string, contribution: Contribution | undefined): void {
    const [before, after] = [this.#contributions.get(name) ?? nothing, contribution ?? nothing];
    if (contribution === undefined) this.#contributions.delete(name);
    else this.#contributions.set(name, contribution);
    // What stays is added a second time before it is taken back once: it never goes.
    if (after.peer !== undefined) this.#peers.set(after.peer.publicKey, after.peer);
    const lost = before.peer?.publicKey;
    if (lost !== undefined && lost !== after.peer?.publicKey && this.#peers.get(lost)?.node === name)
      this.#peers.delete(lost);
    for (const route of after.routes) this.#routes.add(routePlace(route), route);
    for (const route of before.routes) this.#routes.remove(routePlace(route), route);
    for (const [set, addresses] of this.#addresses) {
      for (const address of after.sets[set] ?? []) addresses.add(address, true);
      for (const address of before.sets[set] ?? []) addresses.remove(address, true);
    }
    for (const [set, prefixes] of this.#prefixes)
      prefixes.change(before.sets[set] ?? [], after.sets[set] ?? []);
    for (const prefix of after.blocked) this.#blocked.set(prefix, this.blocked(prefix) + 1);
    for (const prefix of before.blocked) {
      const count = this.blocked(prefix) - 1;
      if (count > 0) this.#blocked.set(prefix, count);
      else this.#blocked.delete(prefix);
    }
  }
}
