/** Lists of objects, read as they arrive: never is more than one object of a list in memory as text. */
import { type ApiClient, type ApiRequest, noJson } from "./client.ts";

/** What every object has. */
export interface ApiObject {
  metadata: {
    name: string;
    resourceVersion?: string;
    creationTimestamp?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
}

interface ListMetadata {
  resourceVersion: string;
  continue?: string;
}

/**
 * Reads a collection, page by page if the server gives pages.
 * @param query of the first page
 * @param each called with each object
 * @returns the version of the list
 */
export async function readList<T>(
  client: ApiClient,
  request: Omit<ApiRequest, "method" | "body" | "contentType">,
  query: URLSearchParams,
  each: (item: T) => void,
): Promise<string> {
  const parameters = new URLSearchParams(query);
  for (;;) {
    const path = `${request.path}?${parameters}`;
    const { metadata } = await client.read({ ...request, path }, async (response, heard) => {
      const reader = new ListReader(each);
      for await (const chunk of response.body ?? []) {
        heard();
        reader.push(chunk as Uint8Array);
      }
      return reader.end((text) => noJson({ path }, text));
    });
    if (!metadata.continue) return metadata.resourceVersion;
    // A token stands for its version, and the API server refuses both.
    for (const name of ["resourceVersion", "resourceVersionMatch"]) parameters.delete(name);
    parameters.set("continue", metadata.continue);
  }
}

/** The version that a collection has now. That is asked of etcd, and costs it one key. */
export async function currentVersion(
  client: ApiClient,
  request: Omit<ApiRequest, "method" | "body" | "contentType">,
): Promise<string> {
  const { metadata } = await client.json<{ metadata: ListMetadata }>({
    ...request,
    path: `${request.path}?limit=1`,
  });
  return metadata.resourceVersion;
}

/** Whether a version came before another. Only numbers can be compared, which those of Kubernetes are. */
export function isOlder(version: string, than: string): boolean {
  if (!/^\d+$/.test(version) || !/^\d+$/.test(than)) return false;
  return version.length === than.length ? version < than : version.length < than.length;
}

const [quote, backslash] = [0x22, 0x5c];
const [openBrace, closeBrace, openBracket, closeBracket] = [0x7b, 0x7d, 0x5b, 0x5d];

/** Takes a list's JSON apart while it arrives: `{"metadata":{…},"items":[{…},{…}]}`. */
export class ListReader<T> {
  readonly #each: (item: T) => void;
  /** The list without its items. */
  readonly #frame = new TextDecoder();
  #frameText = "";
  /** What has arrived of the item under way. */
  #item: Uint8Array[] = [];
  /** How many braces and brackets are open, and whether the second is the bracket of the items. */
  #depth = 0;
  #inItems = false;
  #inString = false;
  #escaped = false;

  constructor(each: (item: T) => void) {
    this.#each = each;
  }

  push(chunk: Uint8Array): void {
    // Where the piece of the item, or of the frame, begins that ends in this chunk or goes on in the next.
    let from = 0;
    for (let at = 0; at < chunk.length; at += 1) {
      const byte = chunk[at];
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (byte === backslash) this.#escaped = true;
        else if (byte === quote) this.#inString = false;
      } else if (byte === quote) this.#inString = true;
      else if (byte === openBrace || byte === openBracket) {
        if (this.#depth === 1) {
          this.#toFrame(chunk.subarray(from, at));
          from = at;
          this.#inItems = byte === openBracket;
        }
        if (this.#depth === 2 && this.#inItems) {
          this.#toFrame(chunk.subarray(from, at));
          from = at;
        }
        this.#depth += 1;
      } else if (byte === closeBrace || byte === closeBracket) {
        this.#depth -= 1;
        if (this.#depth === 2 && this.#inItems) {
          this.#endItem(chunk.subarray(from, at + 1));
          from = at + 1;
        } else if (this.#depth === 1) {
          this.#toFrame(chunk.subarray(from, at + 1));
          from = at + 1;
          this.#inItems = false;
        }
      }
    }
    const rest = chunk.subarray(from);
    if (this.#depth > 2 && this.#inItems) this.#item.push(rest.slice());
    else this.#toFrame(rest);
  }

  /**
   * Throws if that was no list.
   * @param noJson the error of what is no JSON
   */
  end(noJson: (text: string) => Error): { metadata: ListMetadata } {
    let frame: { metadata: ListMetadata; items?: unknown } | null;
    try {
      frame = JSON.parse(this.#frameText);
    } catch {
      throw noJson(this.#frameText);
    }
    if (!frame?.metadata) throw new Error("the answer is no list");
    return { ...frame, metadata: frame.metadata };
  }

  #endItem(last: Uint8Array): void {
    const bytes = this.#item.length > 0 ? Buffer.concat([...this.#item, last]) : last;
    this.#item = [];
    this.#each(JSON.parse(new TextDecoder().decode(bytes)) as T);
  }

  #toFrame(bytes: Uint8Array): void {
    const text = this.#frame.decode(bytes, { stream: true });
    // Between the items there are commas, and in what is left of them none may be.
    this.#frameText += this.#inItems ? text.replaceAll(",", "") : text;
  }
}
