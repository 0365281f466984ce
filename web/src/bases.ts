/** Bases: linear rules that turn k integer coefficients into n integers. */

import { PURPOSE, type Sequences, words } from "./generators.js";
import { HadamardBasis } from "./hadamard.js";
import type { Basis, Side } from "./kinds.js";

/** Words of a dense basis that are made at a time. */
const CHUNK_WORDS = 1 << 14;

/** Turns the coefficients of the vectors of one side into integers, vector by vector, and hands each to `use`. */
export function synthesizeSide(
  basis: Basis,
  sequences: Sequences,
  side: Side,
  vectors: readonly Int32Array[],
  use: (y: Float64Array, vector: number) => void,
): void {
  if (vectors.length === 0) return;
  if (basis === "hadamard") {
    const hadamard = new HadamardBasis(sequences, side.n, side.k);
    const y = new Float64Array(side.n);
    vectors.forEach((coefficients, vector) => {
      hadamard.synthesize(coefficients, y);
      use(y, vector);
    });
    return;
  }
  const results = vectors.map(() => new Float64Array(side.n));
  addRows(basis, sequences, side, vectors, results);
  results.forEach(use);
}

/** y[i] = sum over j of q[j] * G[j, i], for all vectors at once, since they share the rows G[j]. */
function addRows(
  basis: "rademacher" | "uniform",
  sequences: Sequences,
  { n, k }: Side,
  vectors: readonly Int32Array[],
  results: readonly Float64Array[],
): void {
  const uniform = basis === "uniform";
  const perWord = uniform ? 2 : 32;
  const purpose = uniform ? PURPOSE.uniform : PURPOSE.rademacher;
  const pitch = Math.ceil(n / perWord);
  const row = new Float64Array(Math.min(n, CHUNK_WORDS * perWord));
  for (let j = 0; j < k; j++) {
    for (let start = 0; start < n; start += row.length) {
      const count = Math.min(row.length, n - start);
      // Words are made in fours, from the last multiple of four on.
      const word = j * pitch + start / perWord;
      const drawn = words(sequences, purpose, word - (word % 4), Math.ceil(count / perWord) + (word % 4));
      fillRow(row, count, drawn.subarray(word % 4), uniform);
      vectors.forEach((coefficients, vector) => {
        const q = coefficients[j]!;
        if (q !== 0) addScaled(results[vector]!, start, row, count, q);
      });
    }
  }
}

function fillRow(row: Float64Array, count: number, drawn: Uint32Array, uniform: boolean): void {
  if (uniform) {
    for (let i = 0; i < count; i++) row[i] = ((drawn[i >> 1]! >>> (16 * (i & 1))) & 0xffff) - 32768;
  } else {
    for (let i = 0; i < count; i++) row[i] = 1 - 2 * ((drawn[i >> 5]! >>> (i & 31)) & 1);
  }
}

function addScaled(y: Float64Array, start: number, row: Float64Array, count: number, q: number): void {
  for (let i = 0; i < count; i++) y[start + i]! += q * row[i]!;
}
