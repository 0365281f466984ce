/** The counter-based generator, and what is drawn from it: words, signs and subsets. */

/** Purposes of sequences of words. */
export const PURPOSE = { signs: 0, secondSigns: 1, subset: 2, rademacher: 3, uniform: 4 } as const;

/** Names sequences of words of philox4x32-10: the seed of the file, and a number `t` below 2^32. */
export interface Sequences {
  seed: bigint;
  t: number;
}

/** Words `from` to `from + count` of the sequence of a purpose. `from` is a multiple of four. */
export function words(sequences: Sequences, purpose: number, from: number, count: number): Uint32Array {
  const key = [Number(sequences.seed & 0xffffffffn), Number(sequences.seed >> 32n)] as const;
  const out = new Uint32Array(Math.ceil(count / 4) * 4);
  for (let at = 0, j = from / 4; at < out.length; at += 4, j++) {
    philox(out, at, [j >>> 0, Math.floor(j / 2 ** 32), sequences.t, purpose], key);
  }
  return out.length === count ? out : out.subarray(0, count);
}

/** The high 32 bits of a product of two 32-bit numbers; `Math.imul` gives the low ones. */
function mulHigh(a: number, b: number): number {
  const [a1, a0, b1, b0] = [a >>> 16, a & 0xffff, b >>> 16, b & 0xffff];
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const other = a0 * b1 + (middle & 0xffff);
  return (a1 * b1 + Math.floor(middle / 65536) + Math.floor(other / 65536)) | 0;
}

/** Writes philox4x32-10 of one counter to `out`, from `at` on. */
export function philox(
  out: Uint32Array,
  at: number,
  [c0, c1, c2, c3]: readonly [number, number, number, number],
  [k0, k1]: readonly [number, number],
): void {
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(0xd2511f53, c0);
    const low0 = Math.imul(0xd2511f53, c0);
    const high1 = mulHigh(0xcd9e8d57, c2);
    const low1 = Math.imul(0xcd9e8d57, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  out[at] = c0;
  out[at + 1] = c1;
  out[at + 2] = c2;
  out[at + 3] = c3;
}

/** Signs 0 to n - 1 of a purpose: 1 where the bit is 0, -1 where it is 1. */
export function signs(sequences: Sequences, purpose: number, n: number): Int8Array {
  const drawn = words(sequences, purpose, 0, Math.ceil(n / 32));
  const out = new Int8Array(n);
  for (let i = 0; i < n; i++) out[i] = 1 - 2 * ((drawn[i >>> 5]! >>> (i & 31)) & 1);
  return out;
}

/** The k of n positions with the smallest pairs (word, position), in ascending order. */
export function subset(sequences: Sequences, n: number, k: number): Uint32Array {
  const drawn = words(sequences, PURPOSE.subset, 0, n);
  const sorted = drawn.slice().sort();
  const last = sorted[k - 1]!;
  // Of the positions whose word is `last`, the first ones are taken, so many as are missing.
  let equal = 0;
  while (equal < k && sorted[k - 1 - equal] === last) equal++;
  const out = new Uint32Array(k);
  for (let position = 0, found = 0; position < n && found < k; position++) {
    const word = drawn[position]!;
    if (word < last || (word === last && equal-- > 0)) out[found++] = position;
  }
  return out;
}
