/**
 * Netlink sockets (RFC 3549) by bun:ffi, read without ever waiting. Programs that follow the kernel (`nft monitor`, `ip
 * monitor`) keep the ruleset of the whole host in memory, hang and die by themselves, and go on after they lost events;
 * a socket of our own has no memory, and says exactly when the kernel had to drop something.
 */
import { dlopen, ptr, read } from "bun:ffi";

/** One message of a datagram. Numbers of netlink itself are in the byte order of the machine (little, on all of ours). */
export interface Message {
  type: number;
  flags: number;
  /** The port of the socket that caused it; a process's first socket has the process ID as seen in its own namespace. */
  port: number;
  /** What follows the header. */
  body: Uint8Array;
}

export const protocol = { route: 0, netfilter: 12 } as const;

const errors: Record<number, string> = {
  1: "EPERM",
  2: "ENOENT",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  22: "EINVAL",
  93: "EPROTONOSUPPORT",
  95: "EOPNOTSUPP",
  97: "EAFNOSUPPORT",
  105: "ENOBUFS",
};
const EAGAIN = 11;
const EINVAL = 22;
const ENOBUFS = 105;

/** What the kernel refused, with the name of its error. */
export class NetlinkError extends Error {
  readonly code: string;
  constructor(what: string, errno: number) {
    const code = errors[errno] ?? `error ${errno}`;
    super(`netlink: ${what}: ${code}`);
    this.code = code;
  }
}

const AF_NETLINK = 16;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0o4000 | 0o2000000;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SOL_NETLINK = 270;
const NETLINK_ADD_MEMBERSHIP = 1;
/** The length of the whole datagram is returned even if it was cut off. */
const MSG_TRUNC = 0x20;
const NLM_F_REQUEST = 0x1;
const NLM_F_DUMP = 0x300;
const NLM_F_DUMP_INTR = 0x10;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;

/** Bytes that the kernel keeps for us between two reads: a burst of some 30,000 rules. They do not count as ours. */
const backlog = 8 << 20;

let loaded: ReturnType<typeof load> | undefined;
function load() {
  return dlopen("libc.so.6", {
    socket: { args: ["int", "int", "int"], returns: "int" },
    bind: { args: ["int", "ptr", "u32"], returns: "int" },
    setsockopt: { args: ["int", "int", "int", "ptr", "u32"], returns: "int" },
    send: { args: ["int", "ptr", "usize", "int"], returns: "i64" },
    recv: { args: ["int", "ptr", "usize", "int"], returns: "i64" },
    close: { args: ["int"], returns: "int" },
    __errno_location: { args: [], returns: "ptr" },
  }).symbols;
}
function libc() {
  loaded ??= load();
  return loaded;
}

function errno(): number {
  const at = libc().__errno_location();
  return at === null ? 0 : read.i32(at, 0);
}

/** Datagrams are read into it one by one, and are dealt with before the next. */
const buffer = Buffer.alloc(256 << 10);

export class Netlink implements Disposable {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * @param groups of multicast to join
   * @throws NetlinkError, as where the kernel has no such protocol, or without the right to listen
   */
  static open(protocol: number, groups: readonly number[] = []): Netlink {
    const fd = libc().socket(AF_NETLINK, SOCK_RAW_NONBLOCK_CLOEXEC, protocol);
    if (fd < 0) throw new NetlinkError(`socket of protocol ${protocol}`, errno());
    const socket = new Netlink(fd);
    try {
      // A socket that has no port is told nothing.
      const any = new Uint16Array([AF_NETLINK, 0, 0, 0, 0, 0]);
      if (libc().bind(fd, ptr(any), any.byteLength) < 0) throw new NetlinkError("bind", errno());
      // Without the right to it the kernel's own limit stays.
      if (groups.length > 0)
        libc().setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, ptr(new Int32Array([backlog])), 4);
      for (const group of groups)
        if (libc().setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, ptr(new Int32Array([group])), 4) < 0)
          throw new NetlinkError(`to listen to group ${group}`, errno());
      return socket;
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Hands over all datagrams that are there, each until the next one is read.
   * @returns whether they are all that there were since the last time: false if the kernel had to drop some
   */
  drain(take: (datagram: Buffer) => void): boolean {
    let whole = true;
    for (;;) {
      const size = Number(libc().recv(this.#fd, ptr(buffer), buffer.length, MSG_TRUNC));
      if (size < 0) {
        const error = errno();
        if (error === EAGAIN) return whole;
        whole = false;
        // The one that is told once, with more to read behind it.
        if (error !== ENOBUFS) return whole;
      } else if (size > buffer.length) whole = false;
      else take(buffer.subarray(0, size));
    }
  }

  /**
   * Asks for a list of the kernel's objects and hands over each.
   * @param body what follows the header
   * @returns false if something was changed meanwhile, so that the list may lack some
   * @throws NetlinkError with the kernel's error
   */
  dump(type: number, body: Uint8Array, take: (message: Message) => void): boolean {
    this.#send(type, NLM_F_REQUEST | NLM_F_DUMP, body);
    let whole = true;
    for (;;) {
      // The kernel writes each part of it as it is read.
      for (const message of this.#answer()) {
        if (message.flags & NLM_F_DUMP_INTR) whole = false;
        if (message.type === NLMSG_DONE) return whole;
        take(message);
      }
    }
  }

  /**
   * Asks for one of the kernel's objects.
   * @param body what follows the header
   * @throws NetlinkError with the kernel's error
   */
  ask(type: number, body: Uint8Array): Message {
    this.#send(type, NLM_F_REQUEST, body);
    for (const message of this.#answer()) return message;
    throw new NetlinkError("an answer without a message", EINVAL);
  }

  #send(type: number, flags: number, body: Uint8Array): void {
    const request = Buffer.alloc(16 + body.length);
    request.writeUInt32LE(request.length, 0);
    request.writeUInt16LE(type, 4);
    request.writeUInt16LE(flags, 6);
    request.set(body, 16);
    if (libc().send(this.#fd, ptr(request), request.length, 0) < 0) throw new NetlinkError("to ask", errno());
  }

  *#answer(): Generator<Message> {
    const size = Number(libc().recv(this.#fd, ptr(buffer), buffer.length, MSG_TRUNC));
    if (size < 0) throw new NetlinkError("to read the answer", errno());
    for (const message of messages(buffer.subarray(0, size))) {
      if (message.type === NLMSG_ERROR)
        throw new NetlinkError("the answer", -Buffer.from(message.body).readInt32LE(0));
      yield message;
    }
  }

  [Symbol.dispose](): void {
    libc().close(this.#fd);
  }
}

const align = (length: number) => (length + 3) & ~3;

/** The messages of a datagram. */
export function* messages(datagram: Uint8Array): Generator<Message> {
  const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.length);
  for (let at = 0; at + 16 <= datagram.length; ) {
    const length = view.getUint32(at, true);
    if (length < 16 || at + length > datagram.length) return;
    yield {
      type: view.getUint16(at + 4, true),
      flags: view.getUint16(at + 6, true),
      port: view.getUint32(at + 12, true),
      body: datagram.subarray(at + 16, at + length),
    };
    at += align(length);
  }
}

/** The attributes of a message by number, from an offset of its body; of those that repeat, the last. */
export function attributes(body: Uint8Array, from: number): Map<number, Uint8Array> {
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const found = new Map<number, Uint8Array>();
  for (let at = from; at + 4 <= body.length; ) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > body.length) break;
    // The two highest bits say that it is nested, or in network byte order.
    found.set(view.getUint16(at + 2, true) & 0x3fff, body.subarray(at + 4, at + length));
    at += align(length);
  }
  return found;
}

/** A string that ends with a zero. */
export function text(value: Uint8Array | undefined): string {
  return value === undefined ? "" : Buffer.from(value).toString("latin1").replace(/\0.*$/s, "");
}
