/** Bit streams that zstd reads backwards, and the tables of finite state entropy (FSE). */

import { refuse } from "../errors.js";

/** Reads bits from the end of a stream towards its beginning. The last byte's highest one bit marks the end. */
export class BackwardBits {
  private readonly data: Uint8Array;
  /** Bits that are left; it falls below zero when more was read than there is, and those bits are zero. */
  left: number;

  constructor(data: Uint8Array, where: string) {
    this.data = data;
    const last = data.length > 0 ? data[data.length - 1]! : 0;
    if (last === 0) refuse("zstd", `${where}: a zstd bit stream has no end mark`);
    this.left = data.length * 8 - 8 + (31 - Math.clz32(last));
  }

  /** The next `count` bits, at most 24, without taking them. */
  peek(count: number): number {
    const from = this.left - count;
    if (from < 0) return this.left <= 0 ? 0 : (this.word(0) & (2 ** this.left - 1)) << -from;
    return (this.word(from >> 3) >>> (from & 7)) & ((1 << count) - 1);
  }

  /** The next `count` bits, at most 32. */
  read(count: number): number {
    if (count > 24) {
      const high = this.read(count - 16);
      return high * 65536 + this.read(16);
    }
    const value = this.peek(count);
    this.left -= count;
    return value;
  }

  private word(byte: number): number {
    const data = this.data;
    return (data[byte]! | (data[byte + 1]! << 8) | (data[byte + 2]! << 16) | (data[byte + 3]! << 24)) >>> 0;
  }
}

/** An FSE decoding table: for each state its symbol, the bits to read, and the base of the next state. */
export interface FseTable {
  log: number;
  symbols: Uint8Array;
  bits: Uint8Array;
  bases: Uint16Array;
}

/** Makes the decoding table of a distribution; -1 stands for a probability below one. */
export function makeFseTable(distribution: readonly number[], log: number): FseTable {
  const size = 1 << log;
  const symbols = new Uint8Array(size);
  const bits = new Uint8Array(size);
  const bases = new Uint16Array(size);
  const next = distribution.map((count) => Math.abs(count));
  let high = size - 1;
  distribution.forEach((count, symbol) => {
    if (count === -1) symbols[high--] = symbol;
  });
  const step = (size >> 1) + (size >> 3) + 3;
  let position = 0;
  distribution.forEach((count, symbol) => {
    for (let i = 0; i < count; i++) {
      symbols[position] = symbol;
      do position = (position + step) & (size - 1);
      while (position > high);
    }
  });
  for (let state = 0; state < size; state++) {
    const number = next[symbols[state]!]!++;
    bits[state] = log - (31 - Math.clz32(number));
    bases[state] = (number << bits[state]!) - size;
  }
  return { log, symbols, bits, bases };
}

/** Reads the description of an FSE table. Returns the table and the bytes that the description takes. */
export function readFseTable(
  data: Uint8Array,
  maxLog: number,
  maxSymbol: number,
  where: string,
): { table: FseTable; length: number } {
  let bit = 0;
  const take = (count: number): number => {
    let value = 0;
    for (let i = 0; i < count; i++, bit++) value |= (((data[bit >> 3] ?? 0) >> (bit & 7)) & 1) << i;
    return value;
  };
  const log = take(4) + 5;
  if (log > maxLog) refuse("zstd", `${where}: an FSE table of zstd is too large`);
  const distribution: number[] = [];
  let left = 1 << log;
  while (left > 0) {
    // Values are 0 to left + 1; the small ones take one bit less.
    const width = 32 - Math.clz32(left + 1);
    const small = 2 ** width - 1 - (left + 1);
    let value = take(width - 1);
    if (value >= small) {
      value |= take(1) << (width - 1);
      if (value >= 1 << (width - 1)) value -= small;
    }
    const count = value - 1;
    distribution.push(count);
    left -= Math.abs(count);
    if (count === 0) {
      for (let more = 3; more === 3; ) {
        more = take(2);
        for (let i = 0; i < more; i++) distribution.push(0);
        if (distribution.length > maxSymbol + 1) break;
      }
    }
    if (distribution.length > maxSymbol + 1 || bit > 8 * data.length) {
      refuse("zstd", `${where}: an FSE table of zstd is damaged`);
    }
  }
  if (left < 0) refuse("zstd", `${where}: an FSE table of zstd is damaged`);
  return { table: makeFseTable(distribution, log), length: (bit + 7) >> 3 };
}
