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
  // Words are made for several short rows at a time, or for a piece of a long one.
  const rows = Math.max(1, Math.floor(CHUNK_WORDS / pitch));
  const width = Math.min(n, CHUNK_WORDS * perWord);
  const row = new Float64Array(width);
  for (let first = 0; first < k; first += rows) {
    const stop = Math.min(k, first + rows);
    for (let start = 0; start < n; start += width) {
      const count = Math.min(width, n - start);
      // They are made in fours, from the last multiple of four on.
      const from = first * pitch + start / perWord;
      const skipped = from % 4;
      const needed = (stop - first - 1) * pitch + Math.ceil(count / perWord);
      const drawn = words(sequences, purpose, from - skipped, needed + skipped);
      for (let j = first; j < stop; j++) {
        if (vectors.every((coefficients) => coefficients[j] === 0)) continue;
        fillRow(row, count, drawn, skipped + (j - first) * pitch, uniform);
        vectors.forEach((coefficients, vector) => {
          const q = coefficients[j]!;
          if (q !== 0) addScaled(results[vector]!, start, row, count, q);
        });
      }
    }
  }
}

/** Makes `count` entries of a row from its words, which begin at `at`. */
function fillRow(row: Float64Array, count: number, drawn: Uint32Array, at: number, uniform: boolean): void {
  if (uniform) {
    for (let i = 0; i < count; i++) row[i] = ((drawn[at + (i >> 1)]! >>> (16 * (i & 1))) & 0xffff) - 32768;
  } else {
    for (let i = 0; i < count; i++) row[i] = 1 - 2 * ((drawn[at + (i >> 5)]! >>> (i & 31)) & 1);
  }
}

function addScaled(y: Float64Array, start: number, row: Float64Array, count: number, q: number): void {
  for (let i = 0; i < count; i++) y[start + i]! += q * row[i]!;
}
