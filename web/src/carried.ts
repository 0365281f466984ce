/** Carried tensors: bytes that are stored as they came, as a zstd frame, or as planes. */

import { refuse } from "./errors.js";
import type { CarriedKind } from "./kinds.js";
import { decompress } from "./zstd/frame.js";

/** The bytes of a carried tensor, little-endian and row-major. */
export function readCarriedTensor(codec: number, data: Uint8Array, kind: CarriedKind, where: string): Uint8Array {
  const { bytes, elementBytes } = kind;
  if (codec === 0) {
    if (data.length !== bytes) refuse("symbols", `${where}: expected a tensor of ${bytes} bytes, found ${data.length}`);
    return data.slice();
  }
  if (codec === 1) return decompress(data, bytes, where);
  if (codec !== 4 || elementBytes === 1) refuse("codec", `${where}: the codec ${codec} is unknown here`);
  const plain = data[0];
  if (plain === undefined || plain >= elementBytes) refuse("symbols", `${where}: the number of plain planes is wrong`);
  const count = bytes / elementBytes;
  const end = 1 + plain * count;
  if (data.length < end) refuse("symbols", `${where}: the planes are cut short`);
  const rest = decompress(data.subarray(end), (elementBytes - plain) * count, where);
  const out = new Uint8Array(bytes);
  for (let plane = 0; plane < elementBytes; plane++) {
    const from =
      plane < plain
        ? data.subarray(1 + plane * count, 1 + (plane + 1) * count)
        : rest.subarray((plane - plain) * count, (plane - plain + 1) * count);
    for (let i = 0, to = plane; i < count; i++, to += elementBytes) out[to] = from[i]!;
  }
  return out;
}
