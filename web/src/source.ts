/** Where the bytes of a file come from: memory, a Blob or File, or a URL that is read by range requests. */

import { NolaError, refuse } from "./errors.js";

/** Bytes of known length that can be read in any order. */
export interface Source {
  readonly size: number;
  /** Bytes `start` to `end`; fewer are never returned. */
  read(start: number, end: number, signal?: AbortSignal): Promise<Uint8Array>;
}

/** What `openNola` takes. */
export type SourceLike = Uint8Array | ArrayBuffer | Blob | URL | string | Source;

/** Opening reads so many bytes at once, which nearly always hold the whole header. */
export const FIRST_BYTES = 1 << 16;

class Bytes implements Source {
  constructor(private readonly data: Uint8Array) {}
  get size(): number {
    return this.data.length;
  }
  async read(start: number, end: number): Promise<Uint8Array> {
    return this.data.subarray(start, end);
  }
}

class BlobBytes implements Source {
  constructor(private readonly blob: Blob) {}
  get size(): number {
    return this.blob.size;
  }
  async read(start: number, end: number): Promise<Uint8Array> {
    return new Uint8Array(await this.blob.slice(start, end).arrayBuffer());
  }
}

/** A file at a URL. What the first request brought is kept, so that a small file takes one request. */
class Remote implements Source {
  constructor(
    private readonly url: string,
    readonly size: number,
    private readonly head: Uint8Array,
  ) {}

  async read(start: number, end: number, signal?: AbortSignal): Promise<Uint8Array> {
    if (end <= this.head.length) return this.head.subarray(start, end);
    if (start >= end) return new Uint8Array(0);
    const response = await request(this.url, start, end, signal);
    const data = new Uint8Array(await response.arrayBuffer());
    const part = response.status === 206 ? data : data.subarray(start, end);
    if (part.length !== end - start) {
      refuse("source", `${this.url}: expected ${end - start} bytes at offset ${start}, the server sent ${part.length}`);
    }
    return part;
  }
}

async function request(url: string, start: number, end: number, signal?: AbortSignal): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, { headers: { Range: `bytes=${start}-${end - 1}` }, signal: signal ?? null });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new NolaError("source", `${url}: the request failed (${String(error)}); is the server reachable, with CORS?`);
  }
  if (!response.ok) refuse("source", `${url}: the server answered ${response.status} ${response.statusText}`);
  return response;
}

async function openRemote(url: string, signal?: AbortSignal): Promise<Source> {
  const response = await request(url, 0, FIRST_BYTES, signal);
  const data = new Uint8Array(await response.arrayBuffer());
  if (response.status !== 206) return new Bytes(data);
  const total = Number(/\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "")?.[1] ?? NaN);
  if (Number.isNaN(total)) refuse("source", `${url}: the server does not say how long the file is`);
  return new Remote(url, total, data);
}

/** A source of anything that can be opened. */
export async function openSource(from: SourceLike, signal?: AbortSignal): Promise<Source> {
  if (from instanceof Uint8Array) return new Bytes(from);
  if (from instanceof ArrayBuffer) return new Bytes(new Uint8Array(from));
  if (typeof Blob !== "undefined" && from instanceof Blob) return new BlobBytes(from);
  if (typeof from === "string" || from instanceof URL) return openRemote(String(from), signal);
  const own = from as Source | null | undefined;
  if (typeof own?.read === "function" && typeof own.size === "number") return own;
  return refuse("usage", "openNola: expected bytes, a Blob, a URL or an object with size and read()");
}
