/** Drawn tensors: PyTorch's draw from the Mersenne Twister MT19937, made again word by word. */

import { round, write } from "./floats.js";
import type { DrawnKind } from "./kinds.js";

/** Words of MT19937, in blocks of 624. */
export class Twister {
  private readonly state = new Uint32Array(624);
  private at = 624;

  constructor(seed: number) {
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1]! ^ (this.state[i - 1]! >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
  }

  /** Passes over so many words. */
  skip(count: number): void {
    for (let left = count; left > 0; ) {
      if (this.at === 624) this.turn();
      const some = Math.min(left, 624 - this.at);
      this.at += some;
      left -= some;
    }
  }

  next(): number {
    if (this.at === 624) this.turn();
    let y = this.state[this.at++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private turn(): void {
    const x = this.state;
    for (let k = 0; k < 624; k++) {
      const m = (x[k]! & 0x80000000) | (x[(k + 1) % 624]! & 0x7fffffff);
      x[k] = x[(k + 397) % 624]! ^ (m >>> 1) ^ (m & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }
}

/** What turns a word into an element, before the casts. */
function elementRule({ method, digits, low, high, divisor, dtypes }: DrawnKind): (word: number) => number {
  const [modulus, drawn] = [2 ** digits, dtypes[0]!];
  const span = Math.fround(high - low);
  const [top, bottom] = [round(high, drawn), round(low, drawn)];
  const base = (u: number): number => {
    if (method === "ternary") return u < low ? -1 : u > high ? 1 : 0;
    const scaled = method === "fused" ? u * span : Math.fround(u * span);
    const value = round(scaled + low, drawn);
    return value === top ? bottom : value;
  };
  return (word) => {
    const value = base((word % modulus) / modulus);
    return divisor === null ? value : round(value / divisor, drawn);
  };
}

/** The bytes of a drawn tensor, little-endian and row-major. `step` is called now and then. */
export async function drawTensor(kind: DrawnKind, step: () => Promise<void> | void): Promise<Uint8Array> {
  const { shape, start, seed, dtype, dtypes } = kind;
  const out = new Uint8Array(kind.bytes);
  const view = new DataView(out.buffer);
  const words = new Twister(seed);
  for (let left = start; left > 0; left -= 2 ** 20) {
    words.skip(Math.min(left, 2 ** 20));
    await step();
  }
  const rule = elementRule(kind);
  const casts = dtypes.slice(1);
  // Along axis 1 the tensor is drawn slice by slice: `slices` of `rows` pieces of `pitch` elements.
  const slices = kind.axis === 1 ? shape[1]! : 1;
  const rows = kind.axis === 1 ? shape[0]! : 1;
  const pitch = kind.elements / (slices * rows);
  for (let slice = 0; slice < slices; slice++) {
    for (let row = 0; row < rows; row++) {
      let at = (row * slices + slice) * pitch;
      for (const stop = at + pitch; at < stop; at++) {
        let value = rule(words.next());
        for (const cast of casts) value = round(value, cast);
        write(view, at, value, dtype);
        if ((at & 0xfffff) === 0xfffff) await step();
      }
    }
    if ((slice & 0xfff) === 0xfff) await step();
  }
  return out;
}
