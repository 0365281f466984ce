/** Adaptive integers: a range coder for bits whose probabilities adapt, each in a context of its own. */

import { refuse } from "./errors.js";

/** Longest integer, in bits of its magnitude. */
const MAX_BITS = 20;
/** Contexts whose earlier bits, after a leading one, are below this are in an array; others are in a map. */
const DIRECT = 1 << 10;

/** Reads the integers of one section of codec 3. */
export class IntegerReader {
  private range = 0xffffffff;
  private code = 0;
  private at = 0;
  /** By role, for each context the probability of a 0 in units of 2^-16, and the bits seen. */
  private readonly direct: { probabilities: Uint16Array; seen: Uint8Array }[] = [];
  private readonly long = new Map<number, { probability: number; seen: number }>();

  constructor(
    private readonly data: Uint8Array,
    private readonly where: string,
  ) {
    for (let i = 0; i < 4; i++) this.code = this.code * 256 + this.byte();
    if (this.code >= this.range) refuse("symbols", `${where}: the adaptive integers begin out of range`);
  }

  /** The next integer, which is of this role. */
  read(role: number): number {
    // The bits of this integer so far, after a leading one. They take at most 42 bits.
    let context = 1;
    let width = 0;
    for (; this.bit(role, context) === 1; width++) {
      context = 2 * context + 1;
      if (width === MAX_BITS) refuse("symbols", `${this.where}: an adaptive integer has more than ${MAX_BITS} bits`);
    }
    if (width === 0) return 0;
    context *= 2;
    const negative = this.bit(role, context);
    context = 2 * context + negative;
    let magnitude = 1;
    for (let i = 1; i < width; i++) {
      const bit = this.bit(role, context);
      context = 2 * context + bit;
      magnitude = 2 * magnitude + bit;
    }
    return negative ? -magnitude : magnitude;
  }

  /** Checks that all bytes were read. */
  finish(): void {
    if (this.at < this.data.length) {
      refuse("symbols", `${this.where}: ${this.data.length - this.at} bytes are left after the last adaptive integer`);
    }
  }

  private byte(): number {
    return this.data[this.at++] ?? 0;
  }

  private bit(role: number, context: number): number {
    if (context >= DIRECT) return this.longBit(role * 2 ** 44 + context);
    const { probabilities, seen } = (this.direct[role] ??= {
      probabilities: new Uint16Array(DIRECT).fill(32768),
      seen: new Uint8Array(DIRECT),
    });
    const p = probabilities[context]!;
    const n = seen[context]!;
    const bit = this.step(p);
    const rate = n + 2;
    probabilities[context] = bit === 0 ? p + Math.floor((65536 - p) / rate) : p - Math.floor(p / rate);
    if (n < 60) seen[context] = n + 1;
    return bit;
  }

  private longBit(key: number): number {
    let entry = this.long.get(key);
    if (entry === undefined) this.long.set(key, (entry = { probability: 32768, seen: 0 }));
    const p = entry.probability;
    const bit = this.step(p);
    const rate = entry.seen + 2;
    entry.probability = bit === 0 ? p + Math.floor((65536 - p) / rate) : p - Math.floor(p / rate);
    if (entry.seen < 60) entry.seen++;
    return bit;
  }

  private step(p: number): number {
    const bound = (this.range >>> 16) * p;
    let bit = 0;
    if (this.code < bound) {
      this.range = bound;
    } else {
      bit = 1;
      this.code -= bound;
      this.range -= bound;
    }
    while (this.range < 0x1000000) {
      this.range *= 256;
      this.code = this.code * 256 + this.byte();
    }
    return bit;
  }
}
