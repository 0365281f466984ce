/** What decoding returns: the records of a rung as integers and exponents, and the hash of all of them. */

import type { CarriedKind, DrawnKind, LowRankKind, VectorKind } from "./kinds.js";
import { Sha256 } from "./sha256.js";

/** Factors or a vector as int16 matrices, row-major, each times 2 to the power of its exponent. */
interface Coded {
  name: string;
  /** Elements of lora_B (out, r) and lora_A (r, columns), or those of the vector. */
  values: Int16Array[];
  exponents: number[];
}
export interface DecodedLowRank extends Coded {
  type: "low-rank";
  kind: LowRankKind;
}
export interface DecodedVector extends Coded {
  type: "vector";
  kind: VectorKind;
}
/** A tensor as it came: its bytes, little-endian and row-major. */
export interface DecodedCarried {
  type: "carried";
  name: string;
  kind: CarriedKind;
  bytes: Uint8Array;
}

/** A tensor that was drawn again: its bytes, little-endian and row-major. */
export interface DecodedDrawn {
  type: "drawn";
  name: string;
  kind: DrawnKind;
  bytes: Uint8Array;
}

export type DecodedCoded = DecodedLowRank | DecodedVector;
export type DecodedRecord = DecodedCoded | DecodedCarried | DecodedDrawn;

/** Adds a record to the decoded SHA-256. */
export function hashRecord(hash: Sha256, record: DecodedRecord): void {
  if (record.type === "carried" || record.type === "drawn") {
    hash.update(record.bytes);
    return;
  }
  hash.update(new Uint8Array(Int8Array.from(record.exponents).buffer));
  for (const values of record.values) hash.update(littleEndian(values));
}

const IS_LITTLE = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** The bytes of int16 numbers, the lower byte first. */
export function littleEndian(values: Int16Array): Uint8Array {
  if (IS_LITTLE) return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const view = new DataView(new ArrayBuffer(values.byteLength));
  values.forEach((value, at) => view.setInt16(2 * at, value, true));
  return new Uint8Array(view.buffer);
}

/** The float32 numbers that int16 elements and their exponent stand for; they are exact. */
export function toFloat32(values: Int16Array, exponent: number): Float32Array {
  const unit = 2 ** exponent;
  return Float32Array.from(values, (value) => value * unit);
}
