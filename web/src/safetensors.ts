/** Writes safetensors files: the length of a JSON header, the header, then the tensors. */

import { refuse } from "./errors.js";

export interface Tensor {
  key: string;
  dtype: string;
  shape: readonly number[];
  /** Little-endian, row-major. */
  bytes: Uint8Array;
}

export function writeSafetensors(tensors: readonly Tensor[], metadata: Record<string, string>): Uint8Array {
  const entries = new Map<string, unknown>();
  if (Object.keys(metadata).length > 0) entries.set("__metadata__", metadata);
  let offset = 0;
  for (const { key, dtype, shape, bytes } of tensors) {
    if (entries.has(key)) refuse("usage", `safetensors: two tensors have the key ${key}`);
    entries.set(key, { dtype, shape, data_offsets: [offset, (offset += bytes.length)] });
  }
  let text = JSON.stringify(Object.fromEntries(entries));
  const encoder = new TextEncoder();
  text += " ".repeat((8 - (encoder.encode(text).length % 8)) % 8);
  const header = encoder.encode(text);
  const out = new Uint8Array(8 + header.length + offset);
  new DataView(out.buffer).setBigUint64(0, BigInt(header.length), true);
  out.set(header, 8);
  let at = 8 + header.length;
  for (const { bytes } of tensors) {
    out.set(bytes, at);
    at += bytes.length;
  }
  return out;
}
