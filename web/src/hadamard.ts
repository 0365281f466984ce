/** The Hadamard basis: signed Walsh-Hadamard transforms of groups, in one pass or two. */

import { PURPOSE, type Sequences, signs, subset } from "./generators.js";

/** The size of the groups for vectors of n elements, and the number of passes. */
export function hadamardBlock(n: number): { block: number; passes: 1 | 2 } {
  let p = 1;
  while (n % (2 * p) === 0) p *= 2;
  if (p === n || p >= 64) return { block: Math.min(p, 4096), passes: 1 };
  if (n === 3) return { block: 1, passes: 1 };
  return { block: n >= 64 ? 64 : n >= 16 ? 16 : 4, passes: 2 };
}

/** Synthesis with the Hadamard basis of one sequence of words. All numbers are integers below 2^46, exact in float64. */
export class HadamardBasis {
  private readonly block: number;
  private readonly passes: 1 | 2;
  private readonly first: Int8Array;
  private readonly second: Int8Array | null;
  private readonly positions: Uint32Array | null;
  private readonly q: Float64Array;
  private readonly z: Float64Array;
  private readonly group: Float64Array;

  constructor(
    sequences: Sequences,
    private readonly n: number,
    k: number,
  ) {
    ({ block: this.block, passes: this.passes } = hadamardBlock(n));
    this.first = signs(sequences, PURPOSE.signs, n);
    this.second = this.passes === 2 ? signs(sequences, PURPOSE.secondSigns, n) : null;
    this.positions = k < n ? subset(sequences, n, k) : null;
    this.q = new Float64Array(n);
    this.z = new Float64Array(this.second ? n : 0);
    this.group = new Float64Array(this.block);
  }

  /** Writes the n integers that the coefficients make to `y`. */
  synthesize(coefficients: Int32Array, y: Float64Array): void {
    const { n, q, z, block, positions } = this;
    if (positions === null) q.set(coefficients);
    else for (let i = 0; i < positions.length; i++) q[positions[i]!] = coefficients[i]!;
    if (this.second === null) {
      this.transform(q, 0, y, 0, n);
      multiply(y, this.first);
      return;
    }
    const root = Math.sqrt(block);
    const rest = n % block;
    this.transform(q, 0, z, 0, n - rest);
    for (let i = n - rest; i < n; i++) z[i] = root * q[i]!;
    multiply(z, this.first);
    for (let i = 0; i < rest; i++) y[i] = root * z[i]!;
    this.transform(z, rest, y, rest, n - rest);
    multiply(y, this.second);
  }

  /** T of m elements from `start`, to `out` from `target`: groups of consecutive elements, their results spread. */
  private transform(q: Float64Array, start: number, out: Float64Array, target: number, m: number): void {
    const { block, group } = this;
    const blocks = m / block;
    for (let b = 0; b < blocks; b++) {
      const from = start + b * block;
      for (let i = 0; i < block; i++) group[i] = q[from + i]!;
      butterflies(group);
      for (let i = 0, to = target + b; i < block; i++, to += blocks) out[to] = group[i]!;
    }
  }
}

function multiply(values: Float64Array, by: Int8Array): void {
  for (let i = 0; i < by.length; i++) values[i]! *= by[i]!;
}

/** The Walsh-Hadamard transform of a group, in place: two levels of butterflies at a time. */
function butterflies(x: Float64Array): void {
  const size = x.length;
  let half = 1;
  for (; 4 * half <= size; half *= 4) {
    for (let base = 0; base < size; base += 4 * half) {
      for (let i = base; i < base + half; i++) {
        const a = x[i]!;
        const b = x[i + half]!;
        const c = x[i + 2 * half]!;
        const d = x[i + 3 * half]!;
        x[i] = a + b + (c + d);
        x[i + half] = a - b + (c - d);
        x[i + 2 * half] = a + b - (c + d);
        x[i + 3 * half] = a - b - (c - d);
      }
    }
  }
  if (half < size) {
    for (let i = 0; i < half; i++) {
      const a = x[i]!;
      const b = x[i + half]!;
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}
