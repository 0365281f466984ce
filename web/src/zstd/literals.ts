/** The literals section of a compressed zstd block, and its Huffman codes. */

import { refuse } from "../errors.js";
import { BackwardBits, readFseTable } from "./bits.js";

/** A Huffman decoding table: for each value of the next `log` bits the symbol and the bits that it takes. */
export interface HuffmanTable {
  log: number;
  symbols: Uint8Array;
  bits: Uint8Array;
}

const BLOCK_LIMIT = 1 << 17;

/** Decodes a literals section. Returns the literals, the section's length, and the table that later blocks may use. */
export function decodeLiterals(
  block: Uint8Array,
  previous: HuffmanTable | null,
  where: string,
): { literals: Uint8Array; length: number; huffman: HuffmanTable | null } {
  const damaged = (): never => refuse("zstd", `${where}: the literals of a zstd block are damaged`);
  if (block.length === 0) damaged();
  const type = block[0]! & 3;
  const format = (block[0]! >> 2) & 3;
  const compressed = type >= 2;
  // Formats 0 and 2 of the plain types share one bit less of the first byte.
  const header = compressed ? [3, 3, 4, 5][format]! : [1, 2, 1, 3][format]!;
  if (block.length < header) damaged();
  let word = 0;
  for (let i = 0; i < header; i++) word += block[i]! * 2 ** (8 * i);
  const width = compressed ? [10, 10, 14, 18][format]! : [5, 12, 5, 20][format]!;
  const skipped = compressed || format & 1 ? 4 : 3;
  const fields = Math.floor(word / 2 ** skipped);
  const size = fields % 2 ** width;
  if (size > BLOCK_LIMIT) damaged();
  if (!compressed) {
    const stored = type === 0 ? size : 1;
    if (block.length < header + stored) damaged();
    const literals =
      type === 0 ? block.subarray(header, header + size) : new Uint8Array(size).fill(block[header]!);
    return { literals, length: header + stored, huffman: previous };
  }
  const stored = Math.floor(fields / 2 ** width);
  const length = header + stored;
  if (block.length < length) damaged();
  let streams = block.subarray(header, length);
  let table = previous;
  if (type === 2) {
    const made = readHuffmanTable(streams, where);
    table = made.table;
    streams = streams.subarray(made.length);
  }
  if (table === null) return damaged();
  const literals = new Uint8Array(size);
  if (format === 0) {
    decodeStream(streams, literals, table, where);
  } else {
    if (streams.length < 6) damaged();
    const share = (size + 3) >> 2;
    if (3 * share > size) damaged();
    let at = 6;
    for (let i = 0; i < 4; i++) {
      const bytes = i < 3 ? streams[2 * i]! | (streams[2 * i + 1]! << 8) : streams.length - at;
      if (bytes <= 0 || at + bytes > streams.length) damaged();
      const target = literals.subarray(i * share, i < 3 ? (i + 1) * share : size);
      decodeStream(streams.subarray(at, at + bytes), target, table, where);
      at += bytes;
    }
  }
  return { literals, length, huffman: table };
}

/** Decodes one Huffman stream, which must fill `target` and end with it. */
function decodeStream(stream: Uint8Array, target: Uint8Array, table: HuffmanTable, where: string): void {
  const input = new BackwardBits(stream, where);
  const { log, symbols, bits } = table;
  for (let i = 0; i < target.length; i++) {
    const value = input.peek(log);
    target[i] = symbols[value]!;
    input.left -= bits[value]!;
  }
  if (input.left !== 0) refuse("zstd", `${where}: a Huffman stream of zstd has another length`);
}

/** Reads the weights of a Huffman code and makes its table. Returns the bytes that they take, too. */
function readHuffmanTable(data: Uint8Array, where: string): { table: HuffmanTable; length: number } {
  const damaged = (): never => refuse("zstd", `${where}: a Huffman table of zstd is damaged`);
  const first = data[0];
  if (first === undefined) return damaged();
  const weights: number[] = [];
  let length: number;
  if (first >= 128) {
    const count = first - 127;
    length = 1 + ((count + 1) >> 1);
    if (data.length < length) damaged();
    for (let i = 0; i < count; i++) weights.push(i & 1 ? data[1 + (i >> 1)]! & 15 : data[1 + (i >> 1)]! >> 4);
  } else {
    length = 1 + first;
    if (data.length < length) damaged();
    readWeights(data.subarray(1, length), weights, where);
  }
  let total = 0;
  for (const weight of weights) {
    if (weight > 11) damaged();
    if (weight > 0) total += 1 << (weight - 1);
  }
  if (total === 0) damaged();
  // The last weight is not stored: it fills the total up to a power of two.
  const log = 32 - Math.clz32(total);
  const rest = (1 << log) - total;
  if (log > 11 || (rest & (rest - 1)) !== 0) damaged();
  weights.push(32 - Math.clz32(rest));
  const symbols = new Uint8Array(1 << log);
  const bits = new Uint8Array(1 << log);
  let at = 0;
  for (let weight = 1; weight <= log; weight++) {
    weights.forEach((own, symbol) => {
      if (own !== weight) return;
      const stop = at + (1 << (weight - 1));
      symbols.fill(symbol, at, stop);
      bits.fill(log + 1 - weight, at, stop);
      at = stop;
    });
  }
  return { table: { log, symbols, bits }, length };
}

/** Reads weights that FSE codes, with two states that take turns. */
function readWeights(data: Uint8Array, weights: number[], where: string): void {
  const damaged = (): never => refuse("zstd", `${where}: a Huffman table of zstd is damaged`);
  const { table, length } = readFseTable(data, 6, 255, where);
  const input = new BackwardBits(data.subarray(length), where);
  const states = [input.read(table.log), input.read(table.log)];
  for (let turn = 0; ; turn ^= 1) {
    const state = states[turn]!;
    if (weights.length >= 254) damaged();
    weights.push(table.symbols[state]!);
    const bits = table.bits[state]!;
    if (input.left < bits) {
      // Too few bits are left for the next state: the other state gives the last weight.
      weights.push(table.symbols[states[turn ^ 1]!]!);
      break;
    }
    states[turn] = table.bases[state]! + input.read(bits);
  }
}
