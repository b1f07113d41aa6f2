/** What `wg show LINK dump` tells of the traffic with each peer, and which peers are worth a series of their own. */
import { handshakeLimit } from "../host/wireguard.ts";

export interface Peer {
  publicKey: string;
  /** Empty for one that no node has. */
  node: string;
  endpoint: string;
  /** Seconds since 1970; 0: none. */
  handshake: number;
  /** Bytes, WireGuard's own packets included. */
  received: number;
  sent: number;
}

/** A series for each peer up to so many; in a larger cluster for no more than these. */
const most = 200;

/** @param nodes their names, by public key */
export function parsePeerTraffic(output: string, nodes: Pick<ReadonlyMap<string, string>, "get">): Peer[] {
  return output
    .split("\n")
    .slice(1)
    .filter(Boolean)
    .map((line) => {
      const [publicKey = "", , endpoint = "", , handshake, received, sent] = line.split("\t");
      return {
        publicKey,
        node: nodes.get(publicKey) ?? "",
        endpoint: endpoint === "(none)" ? "" : endpoint,
        handshake: Number(handshake),
        received: Number(received),
        sent: Number(sent),
      };
    });
}

/** Remembers from one look to the next when something was sent to a peer: WireGuard does not tell. */
export class PeerTraffic {
  #sent = new Map<string, { bytes: number; at: number }>();

  /**
   * @param now in seconds since 1970
   * @returns the peers to show, and how many are silent: something was sent to them within three minutes, and no
   *   handshake was that recent. One that nobody talks to has no handshake either, and is well.
   */
  look(peers: readonly Peer[], now: number): { shown: Peer[]; silent: number } {
    const silent = peers
      .filter(
        (peer) => now - peer.handshake > handshakeLimit && now - this.#sentAt(peer, now) <= handshakeLimit,
      )
      .sort((a, b) => a.handshake - b.handshake);
    this.#sent = new Map(
      peers.map((peer) => [peer.publicKey, { bytes: peer.sent, at: this.#sentAt(peer, now) }]),
    );
    return { shown: peers.length <= most ? [...peers] : silent.slice(0, most), silent: silent.length };
  }

  /** When something was last sent to it as far as is known. */
  #sentAt({ publicKey, sent, handshake }: Peer, now: number): number {
    const before = this.#sent.get(publicKey);
    if (before !== undefined) return sent === before.bytes ? before.at : now;
    // Of earlier traffic only this much is sure: what was sent without any handshake is still being tried.
    return sent > 0 && handshake === 0 ? now : Number.NEGATIVE_INFINITY;
  }
}
