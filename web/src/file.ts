/** An opened file: its header, its tensors, and the calls that decode and verify it. */

import { crc32 } from "./crc32.js";
import type { DecodedRecord } from "./decoded.js";
import { Decoder } from "./decoder.js";
import { NolaError, refuse } from "./errors.js";
import { type Header, readHeader, type Section } from "./header.js";
import HEADER_DICTIONARY from "../../spec/header-dictionary.bin";
import type { Kind } from "./kinds.js";
import { checkLimit, type Limits, makeLimits } from "./limits.js";
import { decodeMessagePack } from "./msgpack.js";
import { type Prelude, PRELUDE_BYTES, readPrelude } from "./prelude.js";
import { Decoded } from "./result.js";
import { hex, Sha256 } from "./sha256.js";
import { checkSignature, readSignature, type Signature } from "./signature.js";
import { FIRST_BYTES, openSource, type Source, type SourceLike } from "./source.js";
import { declaredSize, decompress } from "./zstd/frame.js";

/** The content SHA-256 is taken over pieces of so many bytes. */
const PIECE = 1 << 20;
/** Milliseconds of work after which the event loop gets its turn. */
const TURN = 30;

export interface OpenOptions {
  /** Limits that replace the default ones. */
  limits?: Partial<Limits>;
  signal?: AbortSignal;
}

export interface DecodeOptions {
  /** Number of the rung to decode; the last one unless given. */
  rung?: number;
  /** Names of the only records to decode. Sections without them are not read, and no decoded SHA-256 is checked. */
  names?: readonly string[];
  /** Files among which a file with a reference finds the versions below it. */
  references?: readonly NolaFile[];
  /** Called often with the share of the work that is done, from 0 to 1. */
  onProgress?: (share: number) => void;
  /** Called with the symbols of each run and the index of their quantizer. The array is used again: copy what you keep. */
  onSymbols?: (quantizer: number, symbols: Uint16Array) => void;
  signal?: AbortSignal;
}

export interface VerifyOptions extends Omit<DecodeOptions, "rung" | "names"> {
  /** Called with what each rung decodes to, from rung 0 up. */
  onRung?: (decoded: Decoded) => void;
}

/** What a complete check of a file found. */
export interface Verification {
  contentSha256: string;
  /** Decoded SHA-256 of each rung, computed and equal to that of the header. */
  rungs: string[];
  /** What the last rung decodes to. */
  decoded: Decoded;
  /** The public key of the signature in hexadecimal, and whether it is right: null where Ed25519 is not at hand. */
  signed: { publicKey: string; valid: boolean | null } | null;
}

/** One record, for people. */
export interface TensorInfo {
  name: string;
  type: Kind["type"];
  /** Shapes of lora_B and lora_A, or the shape of the tensor. */
  shapes: number[][];
  dtype: string;
}

/**
 * Opens a file: reads and checks the prelude, the header and the length, and decodes nothing.
 *
 * @param from bytes, a Blob or File, a URL (read by range requests), or an object with `size` and `read(start, end)`.
 * @throws NolaError with a code of the specification's reject table; `source` if bytes cannot be fetched.
 */
export async function openNola(from: SourceLike, options: OpenOptions = {}): Promise<NolaFile> {
  const limits = makeLimits(options.limits);
  const source = await openSource(from, options.signal);
  const first = await source.read(0, Math.min(source.size, FIRST_BYTES), options.signal);
  const prelude = readPrelude(first.subarray(0, PRELUDE_BYTES));
  checkLimit(limits, "storedHeader", prelude.stored, "header: stored bytes");
  const start = PRELUDE_BYTES + prelude.stored;
  if (start > source.size) refuse("truncated", `header: expected ${start} bytes, the file has ${source.size}`);
  const stored =
    start <= first.length ? first.subarray(PRELUDE_BYTES, start) : await source.read(PRELUDE_BYTES, start, options.signal);
  if (crc32(first.subarray(0, PRELUDE_BYTES - 4), stored) !== prelude.crc) {
    refuse("header-checksum", "header: the CRC-32 of prelude and header is wrong; the file is damaged");
  }
  const size = declaredSize(stored, "header");
  checkLimit(limits, "plainHeader", size, "header: plain bytes");
  const plain = decompress(stored, size, "header", HEADER_DICTIONARY);
  const header = readHeader(decodeMessagePack(plain, limits), prelude.requiredFlags, start, limits);
  if (header.fileLength > source.size) {
    refuse("truncated", `sections: they end at byte ${header.fileLength}, the file has ${source.size}`);
  }
  const signature = await readSignature(source, header.fileLength, options.signal);
  if (header.fileLength < source.size && signature === null) {
    refuse("trailing", `sections: ${source.size - header.fileLength} bytes follow the last one, and are no signature`);
  }
  return new NolaFile(source, prelude, header, signature, limits);
}

/** An opened file. Several decodings may run at the same time. */
export class NolaFile {
  constructor(
    private readonly source: Source,
    readonly prelude: Prelude,
    readonly header: Header,
    /** The signature behind the last section, if there is one. `verify` checks it. */
    readonly signature: Signature | null,
    readonly limits: Readonly<Limits>,
  ) {}

  /** Length of the file in bytes. */
  get size(): number {
    return this.source.size;
  }

  /** All records, in order. */
  get tensors(): TensorInfo[] {
    return this.header.records.map(({ name, kind }) => ({
      name,
      type: kind.type,
      shapes: kind.type === "low-rank" ? [kind.bShape, kind.aShape] : [kind.shape],
      dtype: kind.dtype,
    }));
  }

  /** Decodes one rung, and checks the CRC-32 of all sections that it reads and the decoded SHA-256. */
  async decode(options: DecodeOptions = {}): Promise<Decoded> {
    const { header } = this;
    const last = header.rungs.length - 1;
    const rung = options.rung ?? last;
    if (!Number.isInteger(rung) || rung < 0 || rung > last) refuse("usage", `decode: there are rungs 0 to ${last}`);
    const decoder = await this.makeDecoder(options, rung + 1);
    return this.guard(async () => {
      for (let before = 0; before < rung; before++) await decoder.skip();
      const { records, sha256 } = await decoder.decode(true);
      options.onProgress?.(1);
      return new Decoded(header, rung, records, sha256);
    });
  }

  /** Checks everything: all checksums, the content SHA-256, and the decoded SHA-256 of every rung. */
  async verify(options: VerifyOptions = {}): Promise<Verification> {
    const decoder = await this.makeDecoder(options, this.header.rungs.length);
    return this.guard(async () => {
      const rungs: string[] = [];
      for (let rung = 0; ; rung++) {
        const last = rung === this.header.rungs.length - 1;
        const { records, sha256 } = await decoder.decode(last);
        rungs.push(sha256!);
        const decoded = new Decoded(this.header, rung, records, sha256);
        options.onRung?.(decoded);
        if (!last) continue;
        const content = await this.checkContent(options.signal);
        const signed = this.signature && {
          publicKey: hex(this.signature.publicKey),
          valid: await checkSignature(this.signature, content),
        };
        return { contentSha256: hex(content.subarray(0, 16)), rungs, decoded, signed };
      }
    });
  }

  /** Memory that is not there is a limit of this machine. */
  private async guard<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new NolaError("limit", `decode: the file takes more memory than this machine gives (${error.message})`);
    }
  }

  /** All 32 bytes of the SHA-256 whose first 16 bytes are the content SHA-256. */
  private async checkContent(signal?: AbortSignal): Promise<Uint8Array> {
    const hash = new Sha256();
    hash.update(await this.source.read(0, 18, signal));
    const turn = new Turns(signal);
    for (let at = PRELUDE_BYTES; at < this.header.fileLength; at += PIECE) {
      hash.update(await this.source.read(at, Math.min(at + PIECE, this.header.fileLength), signal));
      await turn.next();
    }
    const content = hash.digest();
    const found = hex(content.subarray(0, 16));
    const expected = hex(this.prelude.contentSha256);
    if (found !== expected) {
      refuse("content-checksum", `file: expected the content SHA-256 ${expected}, computed ${found}; the file is damaged`);
    }
    return content;
  }

  private async makeDecoder(options: DecodeOptions, rungs: number): Promise<Decoder> {
    const { header, limits } = this;
    const { signal, onProgress, onSymbols } = options;
    const names = options.names ? new Set(options.names) : null;
    const known = new Set(names ? header.records.map(({ name }) => name) : []);
    for (const name of names ?? []) if (!known.has(name)) refuse("usage", `decode: there is no record ${name}`);
    const earlier = header.reference === null ? null : await this.decodeReference(options);
    const total = rungs * header.coded + header.records.length - header.coded;
    const turn = new Turns(signal);
    let done = 0;
    return new Decoder({
      header,
      limits,
      names,
      earlier,
      readSection: async (section: Section) => {
        const data = await this.source.read(section.offset, section.offset + section.length, signal);
        if (crc32(data) !== section.crc) {
          refuse("section-checksum", `${section.label}: its CRC-32 is wrong; the file is damaged`);
        }
        return data;
      },
      step: (records) => {
        done += records;
        if (records > 0) onProgress?.(done / total);
        return turn.next();
      },
      observe: onSymbols,
    });
  }

  /** Decodes the version that this file is coded against, and what that one is coded against. */
  private async decodeReference(options: DecodeOptions): Promise<Map<string, DecodedRecord>> {
    const reference = this.header.reference!;
    const wanted = hex(reference.sha256);
    for (const file of options.references ?? []) {
      const own = file.header.reference;
      if (own === null ? reference.files === 0 : own.files >= reference.files) continue;
      const rung = file.header.rungs.findIndex(({ sha256 }) => hex(sha256) === wanted);
      if (rung < 0) continue;
      // The whole of it is decoded, so that its hash is checked.
      const { references, signal } = options;
      const { records } = await file.decode({ rung, ...(references && { references }), ...(signal && { signal }) });
      return new Map(records.map((record) => [record.name, record]));
    }
    return refuse("reference", `the file is coded against ${reference.name || "a file"} (${wanted}), which is not given`);
  }
}

/** Gives the event loop its turn now and then, and stops the work when the caller asks for it. */
class Turns {
  private since = performance.now();

  constructor(private readonly signal?: AbortSignal) {}

  next(): Promise<void> | void {
    this.signal?.throwIfAborted();
    if (performance.now() - this.since < TURN) return;
    return new Promise((resolve) => setTimeout(resolve, 0)).then(() => {
      this.since = performance.now();
      this.signal?.throwIfAborted();
    });
  }
}
