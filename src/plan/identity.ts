/** What this node is to others: its addresses, and the MTU of the links that they are reached by. */
import { isIP } from "node:net";
import { type Family, familyOf, isUsable, parseAddress, unusableAs } from "../net/address.ts";
import { fromAnnotations, mostClaims, type NodeObject, saysAll, statusAddresses } from "./overlay/node.ts";
import { type NodeLink, nodeLinks, type OwnSettings } from "./own.ts";

/** What was decided before: in the last pass or, after a start, what the Node's annotations say. */
export interface KnownAddresses {
  addresses: readonly string[];
  endpoints: readonly string[];
  /** Of its own links, those that it had and nothing has replaced, whether a link has them now or not. */
  known: readonly string[];
}

export interface NodeAddresses {
  /** On its own links: InternalIPs, then those of NODE_IP_INTERFACES. */
  addresses: string[];
  /** All, best first: the former, then what only others can see, such as ExternalIPs behind 1:1 NAT. */
  endpoints: string[];
  known: string[];
  /** All that its links have, temporary ones too. */
  onLinks: string[];
  /** Listed addresses that do not go through the tunnel, or are not published, and why. */
  leftOut: Map<string, string>;
}

/** What the agent has published on its own Node; nothing if another program wrote it. */
export function publishedAddresses(node: Pick<NodeObject, "metadata">): KnownAddresses {
  if (!saysAll(node.metadata.annotations)) return { addresses: [], endpoints: [], known: [] };
  const { addresses, endpoints } = fromAnnotations(node);
  const inOrder = endpoints.filter((address) => addresses.includes(address));
  return { addresses: inOrder, endpoints, known: inOrder };
}

/**
 * An address that this node had stays as long as a link has it and the Node lists no other of that family that can take
 * its place: a status that is empty for a while, as cloud providers cause it, changes nothing.
 */
export function nodeAddresses(
  node: NodeObject,
  links: readonly NodeLink[],
  settings: Pick<OwnSettings, "linkName" | "nodeIpInterfaces">,
  before: KnownAddresses,
): NodeAddresses {
  const own = nodeLinks(links, settings.linkName);
  const entries = own.flatMap((link) => link.addresses);
  const { internal, external, unusable } = statusAddresses(node);
  const lists = (family: Family) => [...internal, ...external].some((each) => familyOf(each) === family);
  const remote = before.endpoints.filter(
    (address) => !before.known.includes(address) && !lists(familyOf(address)),
  );
  const elsewhere = new Set([...external, ...remote]);
  // One that becomes deprecated works as before until its link loses it, and flows to it run: only a new one is not taken.
  const lasts = ({ address, flaw }: (typeof entries)[number]) =>
    flaw === undefined || (flaw === "deprecated" && before.known.includes(address));
  const onLink = new Set(entries.filter(lasts).map((entry) => entry.address));
  const fits = (address: string) => onLink.has(address) && !elsewhere.has(address) && isUsable(address);
  const listed = internal.filter(fits);
  const byInterface = settings.nodeIpInterfaces
    .flatMap((name) => own.find((link) => link.name === name)?.addresses ?? [])
    .filter((entry) => entry.global && fits(entry.address))
    .map((entry) => entry.address);
  const current = [...listed, ...byInterface];
  const replaced = new Set(listed.map(familyOf));
  const lasting = before.known.filter(
    (address) => !current.includes(address) && !replaced.has(familyOf(address)) && !elsewhere.has(address),
  );
  const all = unique([...current, ...lasting.filter(fits)]);
  // The Node's own order, unless it does not list all: then the order that was published, so that nothing changes.
  const addresses = lasting.some(fits) ? inOrderOf(before.known, all) : all;
  const endpoints = unique([...addresses, ...internal, ...external, ...remote]);
  const leftOut = new Map([
    ...noAddresses(node),
    ...unusable.map((address): [string, string] => [address, `it is ${unusableAs(address)}`]),
  ]);
  for (const address of internal)
    if (!addresses.includes(address)) leftOut.set(address, whyNot(address, entries));
  for (const address of endpoints.slice(mostClaims))
    leftOut.set(address, `it is one more than the ${mostClaims} that a node publishes`);
  return {
    addresses: addresses.slice(0, mostClaims),
    endpoints: endpoints.slice(0, mostClaims),
    known: inOrderOf(addresses, unique([...addresses, ...lasting])).slice(0, 2 * mostClaims),
    onLinks: entries.map((entry) => entry.address),
    leftOut,
  };
}

/** What the Node lists as InternalIP or ExternalIP and nobody can read as one, with the reason. */
function noAddresses(node: NodeObject): [text: string, why: string][] {
  return (node.status?.addresses ?? [])
    .filter(
      ({ type, address }) => /^(Internal|External)IP$/.test(type) && parseAddress(address) === undefined,
    )
    .map(({ address }) => {
      if (parseAddress(address.replace(/%.*/, "")))
        return [address, "it has a zone, which means something on this node alone"];
      return [address, isIP(address) ? "it is IPv4-mapped" : "it is not an address"];
    });
}

function whyNot(address: string, entries: NodeLink["addresses"]): string {
  const flaw = entries.find((entry) => entry.address === address)?.flaw;
  if (flaw === "temporary") return "it is temporary (RFC 8981): others may use it as an endpoint alone";
  if (flaw === "deprecated") return "it is deprecated on its link: others may use it as an endpoint alone";
  if (!entries.some((entry) => familyOf(entry.address) === familyOf(address)))
    return "no link of this node has any of its family";
  if (flaw === "duplicate") return "another host on the link has it too (a duplicate)";
  return "it is on no link of this node: others may use it as an endpoint alone";
}

function inOrderOf(order: readonly string[], values: readonly string[]): string[] {
  return [
    ...order.filter((value) => values.includes(value)),
    ...values.filter((value) => !order.includes(value)),
  ];
}

function unique(values: readonly string[]): string[] {
  return [...new Set(values)];
}

/** Links whose MTU says nothing about what is behind them. */
const isVirtual = ({ name, kind }: NodeLink) => name === "lo" || kind === "dummy";

export interface UnderlayInput {
  links: readonly NodeLink[];
  tunnel: string;
  endpoints: readonly string[];
  nodes: { values(): Iterable<{ endpoints: readonly string[] }> };
  /** That the tunnel's packets may have. */
  families: readonly Family[];
}

/** Where the tunnel's packets to the others go; of no interest, and empty, where all links have the same MTU. */
export function peerEndpoints(input: UnderlayInput): string[] {
  if (sizesOf(input).length <= 1) return [];
  const reaches = input.families.filter((family) =>
    input.endpoints.some((each) => familyOf(each) === family),
  );
  return Array.from(input.nodes.values()).flatMap(
    ({ endpoints }) => endpoints.find((address) => reaches.includes(familyOf(address))) ?? [],
  );
}

function underlayLinks({ links, tunnel }: UnderlayInput): NodeLink[] {
  return nodeLinks(links, tunnel).filter((link) => !isVirtual(link));
}

function sizesOf(input: UnderlayInput): number[] {
  return [...new Set(underlayLinks(input).map((link) => link.mtu))];
}

/**
 * Smallest MTU of the links that lead to the peers. While there are none: of the links that have the node's addresses,
 * else of the default routes', else of all that have a global address. In bytes.
 * @param input with the link by which a packet to an endpoint leaves, by its name
 */
export function underlayMtu(
  input: UnderlayInput & {
    linkOf: ReadonlyMap<string, string | undefined>;
    defaultLinks: readonly string[];
  },
): number {
  const own = underlayLinks(input);
  const sizes = sizesOf(input);
  if (sizes.length <= 1) return sizes[0] ?? 1500;
  const named = (names: ReadonlySet<string | undefined>) => own.filter((link) => names.has(link.name));
  const candidates = [
    () => named(new Set(peerEndpoints(input).map((address) => input.linkOf.get(address)))),
    () => own.filter((link) => link.addresses.some((entry) => input.endpoints.includes(entry.address))),
    () => named(new Set(input.defaultLinks)),
    () => own.filter((link) => link.addresses.some((entry) => entry.global)),
  ];
  for (const choose of candidates) {
    const found = choose();
    if (found.length > 0) return Math.min(...found.map((link) => link.mtu));
  }
  return 1500;
}
