/** Quantizers: rules that turn symbols into integers. */

import { refuse } from "./errors.js";
import { asArray, asInteger, asTuple } from "./fields.js";
import type { Value } from "./msgpack.js";
import { addTrellis, TRELLISES } from "./trellis.js";

/** Frequencies of the symbols of a table add up to this. */
export const TOTAL = 4096;

interface Alphabet {
  /** Number of symbols. */
  size: number;
  /** Frequencies of the symbols for codec 2, or null. */
  table: Uint16Array | null;
  /** Largest magnitude of a point or level. */
  largest: number;
}

/** Symbol s stands for points[s]. */
export interface Codebook extends Alphabet {
  type: "codebook";
  name: "points" | "integers";
  points: Int32Array;
}

/** Symbols are steps of a trellis with this number. */
export interface Trellis extends Alphabet {
  type: "trellis";
  number: number;
}

/** Symbol s stands for even[s] or odd[s], by the parity of the mask and the eight levels before. */
export interface Dependent extends Alphabet {
  type: "dependent";
  mask: number;
  even: Int32Array;
  odd: Int32Array;
}

export type Quantizer = Codebook | Trellis | Dependent;

/** Reads one quantizer of the header. */
export function readQuantizer(value: Value, what: string): Quantizer {
  const [type, parameters, table] = asTuple(value, 3, what);
  switch (asInteger(type, 0, 3, `${what}: type`)) {
    case 0: {
      const points = Int32Array.from(readPoints(parameters, 256, -32768, what));
      return codebook("points", points, readTable(table, points.length, false, what));
    }
    case 1: {
      const size = 2 ** asInteger(parameters, 9, 16, `${what}: bits`);
      if (table !== null) refuse("header", `${what}: integers have no table`);
      const points = Int32Array.from({ length: size }, (_, symbol) => symbol - size / 2);
      return codebook("integers", points, null);
    }
    case 2: {
      const number = asInteger(parameters, 0, TRELLISES.length - 1, `${what}: trellis`);
      if (table !== null) refuse("header", `${what}: a trellis has no table`);
      const { bits, levels } = TRELLISES[number]!;
      return { type: "trellis", number, size: 2 ** bits, table: null, largest: Math.max(...levels) };
    }
    default: {
      const [mask, first, second] = asTuple(parameters, 3, what);
      const even = readPoints(first, 127, 1, what);
      const odd = readPoints(second, 127, 1, what);
      if (even.length !== odd.length) refuse("header", `${what}: the two codebooks have different lengths`);
      return {
        type: "dependent",
        mask: asInteger(mask, 0, 255, `${what}: mask`),
        even: mirror(even),
        odd: mirror(odd),
        size: 2 * even.length + 1,
        table: readTable(table, even.length + 1, true, what),
        largest: Math.max(even[even.length - 1]!, odd[odd.length - 1]!),
      };
    }
  }
}

function codebook(name: Codebook["name"], points: Int32Array, table: Uint16Array | null): Codebook {
  const largest = Math.max(Math.abs(points[0]!), Math.abs(points[points.length - 1]!));
  return { type: "codebook", name, points, size: points.length, table, largest };
}

/** Strictly ascending points from `low` to 32768: the first one, then differences from the one before. */
function readPoints(value: Value | undefined, most: number, low: number, what: string): number[] {
  const stored = asArray(value, `${what}: points`);
  if (stored.length < 1 || stored.length > most) {
    refuse("header", `${what}: expected 1 to ${most} points, found ${stored.length}`);
  }
  let point = 0;
  return stored.map((difference, at) => {
    point += asInteger(difference, at > 0 ? 1 : low, 65536, `${what}: points`);
    return point > 32768 ? refuse("header", `${what}: the point ${point} is above 32768`) : point;
  });
}

/** ..., -p2, -p1, 0, p1, p2, ... */
function mirror(positive: readonly number[]): Int32Array {
  return Int32Array.from([...positive.map((point) => -point).reverse(), 0, ...positive]);
}

/** Frequencies of all symbols. If they are symmetric, they are stored from the middle, once for both signs. */
function readTable(value: Value | undefined, length: number, symmetric: boolean, what: string): Uint16Array | null {
  if (value === null) return null;
  const stored = asTuple(value, length, `${what}: table`).map((f) => asInteger(f, 1, TOTAL, `${what}: table`));
  const table = symmetric ? [...stored.slice(1).reverse(), ...stored] : stored;
  const sum = table.reduce((a, b) => a + b, 0);
  if (sum !== TOTAL) refuse("header", `${what}: the frequencies add up to ${sum}, expected ${TOTAL}`);
  return Uint16Array.from(table);
}

/** Number of symbols that k coefficients take. */
export function countSymbols(quantizer: Quantizer, k: number): number {
  return quantizer.type === "trellis" ? Math.ceil(k / TRELLISES[quantizer.number]!.stride) : k;
}

/** Adds the points of one layer, times its weight, to the coefficients of a vector. */
export function addLayer(
  quantizer: Quantizer,
  weight: number,
  symbols: Uint16Array,
  coefficients: Int32Array,
): void {
  if (quantizer.type === "trellis") {
    addTrellis(quantizer.number, weight, symbols, coefficients);
  } else if (quantizer.type === "codebook") {
    const points = quantizer.points;
    for (let i = 0; i < coefficients.length; i++) coefficients[i]! += weight * points[symbols[i]!]!;
  } else {
    addDependent(quantizer, weight, symbols, coefficients);
  }
}

/** PARITY[w] is 1 if w, of eight bits, has an odd number of ones. */
export const PARITY = Uint8Array.from({ length: 256 }, (_, window) => {
  let ones = 0;
  for (let rest = window; rest > 0; rest >>= 1) ones ^= rest & 1;
  return ones;
});

function addDependent(
  { mask, even, odd, size }: Dependent,
  weight: number,
  symbols: Uint16Array,
  coefficients: Int32Array,
): void {
  const middle = size >> 1;
  // Bit i of the window is the parity of the level i + 1 places before.
  let window = 0;
  for (let i = 0; i < coefficients.length; i++) {
    const symbol = symbols[i]!;
    coefficients[i]! += weight * (PARITY[window & mask]! ? odd[symbol]! : even[symbol]!);
    window = ((window << 1) | ((symbol ^ middle) & 1)) & 255;
  }
}
