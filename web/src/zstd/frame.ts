/**
 * zstd frames (RFC 8878) as the specification asks for them: without the magic number, with a declared size, and with
 * nothing after the frame. The header's frame has a raw-content dictionary.
 */

import { refuse } from "../errors.js";
import { decodeLiterals, type HuffmanTable } from "./literals.js";
import { decodeSequences, newSequenceTables, type SequenceTables } from "./sequences.js";
import { xxh64 } from "./xxh64.js";

/** A block holds at most so many bytes, as stored and when decompressed. */
const BLOCK_LIMIT = 1 << 17;

/** What the blocks of one frame share. `output` begins with the dictionary; `end` is where the next byte goes. */
export interface FrameState {
  readonly output: Uint8Array;
  end: number;
  huffman: HuffmanTable | null;
  readonly tables: SequenceTables;
}

interface FrameHeader {
  /** Declared size of the content, in bytes. */
  size: number;
  /** Bytes of the frame header. */
  length: number;
  window: number;
  checksum: boolean;
}

/** Reads the frame header; refuses a frame without a size and one with a dictionary id. */
function readFrameHeader(frame: Uint8Array, where: string): FrameHeader {
  const descriptor = frame[0];
  if (descriptor === undefined) refuse("zstd", `${where}: the zstd frame is empty`);
  if (descriptor & 0x08) refuse("zstd", `${where}: the zstd frame has a reserved bit set`);
  const single = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const sizeBytes = sizeFlag === 0 ? (single ? 1 : 0) : 1 << sizeFlag;
  const idBytes = [0, 1, 2, 4][descriptor & 3]!;
  const length = 1 + (single ? 0 : 1) + idBytes + sizeBytes;
  if (frame.length < length) refuse("zstd", `${where}: the zstd frame ends inside its header`);
  if (sizeBytes === 0) refuse("zstd", `${where}: the zstd frame does not declare its size`);
  let at = 1;
  let window = 0;
  if (!single) {
    const byte = frame[at++]!;
    const base = 2 ** (10 + (byte >> 3));
    window = base + (base / 8) * (byte & 7);
  }
  for (const stop = at + idBytes; at < stop; at++) {
    if (frame[at] !== 0) refuse("zstd", `${where}: the zstd frame names a dictionary`);
  }
  let size = sizeBytes === 2 ? 256 : 0;
  for (let i = 0; i < sizeBytes; i++) size += frame[at + i]! * 2 ** (8 * i);
  return { size, length, window: single ? size : window, checksum: (descriptor & 4) !== 0 };
}

/** The size that a frame declares. A size that no frame of this length can have is refused. */
export function declaredSize(frame: Uint8Array, where: string): number {
  const { size } = readFrameHeader(frame, where);
  if (size > frame.length * 2 ** 15) {
    refuse("zstd", `${where}: a zstd frame of ${frame.length} bytes declares ${size} bytes, which cannot be right`);
  }
  return size;
}

/**
 * Decompresses a frame. The size that it declares must be `expected`; the caller has held that against a limit.
 *
 * @throws NolaError `zstd` if the frame is damaged, has another size, or if something follows it.
 */
export function decompress(frame: Uint8Array, expected: number, where: string, dictionary?: Uint8Array): Uint8Array {
  const size = declaredSize(frame, where);
  if (size !== expected) refuse("zstd", `${where}: expected a zstd frame of ${expected} bytes, it declares ${size}`);
  if (size === 0) {
    const empty = [0x20, 0, 1, 0, 0];
    if (frame.length !== 5 || empty.some((byte, at) => frame[at] !== byte)) {
      refuse("zstd", `${where}: the zstd frame of empty content must be 20 00 01 00 00`);
    }
    return new Uint8Array(0);
  }
  const header = readFrameHeader(frame, where);
  const base = dictionary?.length ?? 0;
  const output = new Uint8Array(base + size);
  if (dictionary) output.set(dictionary);
  const state: FrameState = { output, end: base, huffman: null, tables: newSequenceTables() };
  const blockLimit = Math.min(BLOCK_LIMIT, Math.max(header.window, 1));
  let at = header.length;
  for (let last = false; !last; ) {
    if (at + 3 > frame.length) refuse("zstd", `${where}: the zstd frame ends before its last block`);
    const word = frame[at]! | (frame[at + 1]! << 8) | (frame[at + 2]! << 16);
    at += 3;
    last = (word & 1) === 1;
    const type = (word >> 1) & 3;
    const count = word >> 3;
    const stored = type === 1 ? 1 : count;
    if (type === 3 || count > blockLimit) refuse("zstd", `${where}: a zstd block has a reserved type or is too large`);
    if (at + stored > frame.length) refuse("zstd", `${where}: the zstd frame ends inside a block`);
    const room = output.length - state.end;
    if (type === 2) {
      const before = state.end;
      decodeBlock(frame.subarray(at, at + count), state, where);
      if (state.end - before > blockLimit) refuse("zstd", `${where}: a zstd block is too large`);
    } else {
      if (count > room) refuse("zstd", `${where}: the zstd frame holds more bytes than it declares`);
      if (type === 0) output.set(frame.subarray(at, at + count), state.end);
      else output.fill(frame[at]!, state.end, state.end + count);
      state.end += count;
    }
    at += stored;
  }
  if (state.end !== output.length) {
    refuse("zstd", `${where}: the zstd frame declares ${size} bytes and holds ${state.end - base}`);
  }
  const content = base > 0 ? output.slice(base) : output;
  if (header.checksum) {
    if (at + 4 > frame.length) refuse("zstd", `${where}: the zstd frame ends before its checksum`);
    const stored = new DataView(frame.buffer, frame.byteOffset + at, 4).getUint32(0, true);
    if (Number(xxh64(content) & 0xffffffffn) !== stored) refuse("zstd", `${where}: the checksum of the zstd frame is wrong`);
    at += 4;
  }
  if (at !== frame.length) refuse("zstd", `${where}: ${frame.length - at} bytes follow the zstd frame`);
  return content;
}

/** Decodes a compressed block: a literals section, then a sequences section. */
function decodeBlock(block: Uint8Array, state: FrameState, where: string): void {
  const { literals, length, huffman } = decodeLiterals(block, state.huffman, where);
  state.huffman = huffman;
  decodeSequences(block.subarray(length), literals, state, where);
}
