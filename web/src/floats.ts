/** Numbers of the float dtypes: rounded to them, written, and read. */

import type { FactorDtype } from "./kinds.js";

const BITS = new DataView(new ArrayBuffer(4));

/** A float32 number rounded to bfloat16, to nearest, ties to even. */
function roundBf16(value: number): number {
  BITS.setFloat32(0, value);
  const bits = BITS.getUint32(0);
  BITS.setUint32(0, (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000);
  return BITS.getFloat32(0);
}

/** A number rounded to binary16, to nearest, ties to even. Below the normal numbers the step is 2^-24. */
function roundF16(value: number): number {
  const magnitude = Math.abs(value);
  if (magnitude >= 65520) return value > 0 ? Infinity : -Infinity;
  BITS.setFloat32(0, magnitude);
  const exponent = Math.max(-14, (BITS.getUint32(0) >>> 23) - 127);
  const step = 2 ** (exponent - 10);
  const steps = value / step;
  const floor = Math.floor(steps);
  const up = steps - floor > 0.5 || (steps - floor === 0.5 && floor % 2 !== 0);
  // A zero keeps its sign.
  return value === 0 ? value : Math.sign(value) * Math.abs((floor + (up ? 1 : 0)) * step);
}

/** A number rounded to a dtype, to nearest, ties to even. It is rounded to binary32 before it is rounded to 16 bits. */
export function round(value: number, dtype: FactorDtype): number {
  const single = Math.fround(value);
  return dtype === "F32" ? single : dtype === "F16" ? roundF16(single) : roundBf16(single);
}

/** Writes a number that the dtype holds exactly, as element `at`, little-endian. */
export function write(view: DataView, at: number, value: number, dtype: FactorDtype): void {
  if (dtype === "F32") {
    view.setFloat32(4 * at, value, true);
    return;
  }
  BITS.setFloat32(0, value);
  const single = BITS.getUint32(0);
  if (dtype === "BF16") {
    view.setUint16(2 * at, single >>> 16, true);
    return;
  }
  const magnitude = Math.abs(value);
  const exponent = Math.max(-14, ((single >>> 23) & 255) - 127);
  const bits = magnitude === Infinity ? 0x7c00 : magnitude / 2 ** (exponent - 10) + (exponent + 14) * 1024;
  view.setUint16(2 * at, ((single >>> 31) << 15) | bits, true);
}

/** The bytes of numbers rounded to a dtype. */
export function toBytes(values: ArrayLike<number>, dtype: FactorDtype): Uint8Array {
  const view = new DataView(new ArrayBuffer(values.length * (dtype === "F32" ? 4 : 2)));
  for (let at = 0; at < values.length; at++) write(view, at, round(values[at]!, dtype), dtype);
  return new Uint8Array(view.buffer);
}

/** The numbers that bytes of a dtype stand for. */
export function fromBytes(bytes: Uint8Array, dtype: FactorDtype): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (dtype === "F32") return Float64Array.from({ length: bytes.length / 4 }, (_, at) => view.getFloat32(4 * at, true));
  return Float64Array.from({ length: bytes.length / 2 }, (_, at) => {
    const bits = view.getUint16(2 * at, true);
    if (dtype === "BF16") {
      BITS.setUint32(0, bits << 16);
      return BITS.getFloat32(0);
    }
    const exponent = (bits >> 10) & 31;
    const digits = bits & 1023;
    const magnitude =
      exponent === 31 ? (digits ? NaN : Infinity) : exponent ? (1024 + digits) * 2 ** (exponent - 25) : digits * 2 ** -24;
    return bits >> 15 ? -magnitude : magnitude;
  });
}
