/** What nf_tables tells by netlink: which transactions touched something of ours, and the chains that there are. */
import { $, CommandError } from "../command.ts";
import { attributes, type Message, messages, Netlink, NetlinkError, protocol, text } from "./netlink.ts";

const NFNL_SUBSYS_NFTABLES = 10;
const NFT_MSG_NEWCHAIN = 3;
const NFT_MSG_GETCHAIN = 4;
const NFT_MSG_DELCHAIN = 5;
const NFT_MSG_DELRULE = 8;
const NFT_MSG_NEWGEN = 15;
const NFT_MSG_GETGEN = 16;
const families: Record<number, string> = { 1: "inet", 2: "ip", 10: "ip6" };
const hooks = ["prerouting", "input", "forward", "output", "postrouting", "ingress"];

/** Of a message of nf_tables, which begins with its family; the first attribute of each but a generation's is its table. */
const header = 4;

export interface NftChain {
  family: string;
  table: string;
  name: string;
  /** Of base chains. */
  hook?: string;
  policy?: string;
}

/** Of our chains by iptables. */
const iptablesPrefix = "WIGGLENET-";

const marks = ["wigglenet", iptablesPrefix, "INPUT", "FORWARD", "ROUTING"].map((word) => Buffer.from(word));

/**
 * Whether some of a datagram's notifications may be about something of ours. Others write thousands of them at a time,
 * and hardly any has one of these words in it.
 * @param own the ports of our own programs
 */
export function tellsOfOurs(datagram: Buffer, own: readonly number[]): boolean {
  if (!marks.some((word) => datagram.includes(word))) return false;
  for (const message of messages(datagram)) if (isOurs(message) && !own.includes(message.port)) return true;
  return false;
}

/**
 * Whether a notification is about something of ours, in either backend, or may be: of a rule that iptables deleted
 * from a chain that jumps to ours, later kernels tell nothing but a handle.
 */
function isOurs({ type, body }: Message): boolean {
  const kind = type & 0xff;
  if (type >> 8 !== NFNL_SUBSYS_NFTABLES || kind === NFT_MSG_NEWGEN) return false;
  const family = families[body[0] ?? 0];
  if (family === undefined) return false;
  const table = tableOf(body);
  if (family === "inet") return table === "wigglenet";
  if (!/^(filter|mangle|nat)$/.test(table)) return false;
  if (Buffer.from(body.buffer, body.byteOffset, body.length).includes(iptablesPrefix)) return true;
  const found = attributes(body, header);
  if (kind === NFT_MSG_DELRULE) return /^(INPUT|FORWARD|PREROUTING|POSTROUTING)$/.test(text(found.get(2)));
  // Its policy, or the chain itself, which others' rules made.
  return (kind === NFT_MSG_NEWCHAIN || kind === NFT_MSG_DELCHAIN) && text(found.get(3)) === "FORWARD";
}

function tableOf(body: Uint8Array): string {
  const length = (body[header] ?? 0) | ((body[header + 1] ?? 0) << 8);
  const isFirst = body[header + 2] === 1;
  return isFirst ? text(body.subarray(header + 4, header + length)) : "";
}

/**
 * The chains of nf_tables that matter to us: base chains of the hooks of IP, and those that may be ours by iptables. A
 * program's list of all of them takes 84 MB beside 20,000 Services of kube-proxy: it is asked where there can be no socket.
 * @returns undefined where the kernel has no nf_tables
 * @throws NetlinkError or CommandError, as without the right to ask
 */
export async function listChains(): Promise<NftChain[] | undefined> {
  let socket: Netlink;
  try {
    socket = Netlink.open(protocol.netfilter);
  } catch {
    return await listByProgram();
  }
  using _ = socket;
  try {
    // Somebody may write while we read, over and over: what the list lacks then, the watch tells of.
    for (let attempt = 1; ; attempt += 1) {
      const chains: NftChain[] = [];
      const take = (message: Message) => chains.push(...chainOf(message));
      const whole = socket.dump((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETCHAIN, new Uint8Array(header), take);
      if (whole || attempt === 5) return chains;
    }
  } catch (error) {
    if (error instanceof NetlinkError && absent.includes(error.code)) return undefined;
    throw error;
  }
}

/**
 * The number of the current generation of nf_tables: each change of it, whoever makes it, begins another one. As long as it
 * stays, whatever was listed is as it was, but for counters.
 * @returns undefined where it cannot be asked for
 */
export function generation(): number | undefined {
  try {
    using socket = Netlink.open(protocol.netfilter);
    const { body } = socket.ask((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN, new Uint8Array(header));
    const id = attributes(body, header).get(1);
    return id && number(id);
  } catch {
    return undefined;
  }
}

/** What a kernel without nf_tables answers. */
const absent = ["EINVAL", "EPROTONOSUPPORT", "EOPNOTSUPP", "EAFNOSUPPORT"];

async function listByProgram(): Promise<NftChain[] | undefined> {
  try {
    return parseChains(await $`nft -j list chains`);
  } catch (error) {
    if (error instanceof CommandError && /not supported|Invalid argument/i.test(error.stderr))
      return undefined;
    throw error;
  }
}

/** Parses `nft -j list chains`; gives those that matter to us. */
export function parseChains(output: string): NftChain[] {
  const { nftables } = JSON.parse(output) as { nftables: { chain?: NftChain }[] };
  return nftables.flatMap(({ chain }) => {
    if (chain === undefined || !Object.values(families).includes(chain.family)) return [];
    const { family, table, name, hook, policy } = chain;
    return hook !== undefined || name.startsWith(iptablesPrefix)
      ? [{ family, table, name, ...(hook && { hook, policy: policy ?? "accept" }) }]
      : [];
  });
}

/** The chain that a message tells of, if it matters to us. */
export function chainOf({ type, body }: Message): NftChain[] {
  const family = families[body[0] ?? 0];
  if (type !== ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_NEWCHAIN) || family === undefined) return [];
  const found = attributes(body, header);
  const name = text(found.get(3));
  const hook = found.get(4);
  if (hook === undefined && !name.startsWith(iptablesPrefix)) return [];
  const base = hook && {
    hook: hooks[number(attributes(hook, 0).get(1))] ?? "",
    policy: number(found.get(5)) === 0 ? "drop" : "accept",
  };
  return [{ family, table: text(found.get(1)), name, ...base }];
}

/** Numbers of nf_tables are in network byte order. */
function number(value: Uint8Array | undefined): number {
  return value === undefined ? 0 : Buffer.from(value).readUInt32BE(0);
}
