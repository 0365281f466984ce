/** References: an earlier version whose elements, times a gain, are added to those of a file. */

import type { DecodedCoded, DecodedRecord } from "./decoded.js";
import { refuse } from "./errors.js";
import type { Reference } from "./header.js";

/** Adds the reference's record of the same name to a decoded record, in place. */
export function addReference(
  record: DecodedCoded,
  reference: Reference,
  earlier: ReadonlyMap<string, DecodedRecord>,
): void {
  const other = earlier.get(record.name);
  if (record.type === "vector") {
    if (other?.type !== "vector" || other.kind.shape.join() !== record.kind.shape.join()) return;
    const shift = shiftOf(record.exponents[0]!, other.exponents[0]!, record.name);
    addElements(record.values[0]!, other.values[0]!, reference.gains[0], shift, 1, record.values[0]!.length, 0, 0);
    return;
  }
  if (record.kind.form !== "difference") return;
  if (other?.type !== "low-rank") refuse("reference", `the reference has no low-rank record ${record.name}`);
  const [own, old] = [record.kind, other.kind];
  const rows = own.sides[0]!.elements / own.rank;
  const columns = own.sides[1]!.elements / own.rank;
  if (rows !== old.sides[0]!.elements / old.rank || columns !== old.sides[1]!.elements / old.rank) {
    refuse("reference", `the record ${record.name} of the reference has another size`);
  }
  const rank = Math.min(own.rank, old.rank);
  for (const side of [0, 1] as const) {
    const shift = shiftOf(record.exponents[side]!, other.exponents[side]!, record.name);
    const [values, earlierValues, gain] = [record.values[side]!, other.values[side]!, reference.gains[side]];
    if (side === 0) addElements(values, earlierValues, gain, shift, rows, rank, own.rank, old.rank);
    else addElements(values, earlierValues, gain, shift, rank, columns, columns, columns);
  }
}

function shiftOf(exponent: number, earlier: number, name: string): number {
  const shift = Math.min(62, 10 + exponent - earlier);
  if (shift < 1) refuse("scale", `${name}: the shift ${shift} of the reference is below 1`);
  return shift;
}

/** v = d + ((r * G + 2^(s - 1)) >> s), clamped, for the first `width` elements of each row. */
function addElements(
  values: Int16Array,
  earlier: Int16Array,
  gain: number,
  shift: number,
  rows: number,
  width: number,
  pitch: number,
  earlierPitch: number,
): void {
  // |r * G| is below 2^30, so that from this shift on nothing is added.
  if (shift > 40) return;
  const half = 2 ** (shift - 1);
  const inverse = 2 ** -shift;
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < width; i++) {
      const at = row * pitch + i;
      const value = values[at]! + Math.floor((earlier[row * earlierPitch + i]! * gain + half) * inverse);
      values[at] = value > 32767 ? 32767 : value < -32768 ? -32768 : value;
    }
  }
}
