/** From the integers of a vector to 16-bit integers: one multiplication, one rounding shift, one clamp. */

import { refuse } from "./errors.js";
import { MANTISSAS } from "./mantissas.js";

/** Multiplier and shift of a scale code at an exponent. */
export interface Scale {
  multiplier: number;
  shift: number;
}

/** The scale of the code E and the exponent e. A shift outside 1 to 62 is refused. */
export function makeScale(code: number, exponent: number, where: string): Scale {
  const shift = 15 - Math.floor(code / 32) + exponent;
  if (shift < 1 || shift > 62) refuse("scale", `${where}: the shift ${shift} of a scale is not 1 to 62`);
  return { multiplier: MANTISSAS[((code % 32) + 32) % 32]!, shift };
}

/** Writes (y * M + 2^(s - 1)) >> s, clamped to 16 bits, to every `stride`-th element of `out` from `start` on. */
export function scaleVector(
  y: Float64Array,
  { multiplier, shift }: Scale,
  out: Int16Array,
  start: number,
  stride: number,
): void {
  let largest = 0;
  for (let i = 0; i < y.length; i++) {
    const magnitude = Math.abs(y[i]!);
    if (magnitude > largest) largest = magnitude;
  }
  const half = 2 ** (shift - 1);
  if (largest * multiplier + half < 2 ** 53) {
    // All numbers are exact in float64, the division by a power of two included.
    const inverse = 2 ** -shift;
    for (let i = 0, to = start; i < y.length; i++, to += stride) {
      const value = Math.floor((y[i]! * multiplier + half) * inverse);
      out[to] = value > 32767 ? 32767 : value < -32768 ? -32768 : value;
    }
    return;
  }
  const [wideMultiplier, wideHalf, wideShift] = [BigInt(multiplier), BigInt(half), BigInt(shift)];
  for (let i = 0, to = start; i < y.length; i++, to += stride) {
    const value = Number((BigInt(y[i]!) * wideMultiplier + wideHalf) >> wideShift);
    out[to] = Math.max(-32768, Math.min(32767, value));
  }
}
