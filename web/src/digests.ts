/** Hashes of single tensors, as the conformance kit of the specification names them. */

import { littleEndian } from "./decoded.js";
import type { Decoded } from "./result.js";
import { hex, sha256 } from "./sha256.js";

/** Exponents and hashes of all tensors of a rung. */
export function digestsOf({ records }: Decoded): Record<string, string | number[]> {
  const found = records.flatMap((record): [string, string | number[]][] => {
    const { name } = record;
    if (record.type === "carried" || record.type === "drawn") return [[name, hex(sha256(record.bytes))]];
    const parts = record.type === "vector" ? ["vector"] : ["lora_B", "lora_A"];
    const hashes = record.values.map((values, side) => [`${name}.${parts[side]}`, hex(sha256(littleEndian(values)))] as const);
    return [[`${name}.exponents`, record.exponents], ...hashes.map(([key, hash]): [string, string] => [key, hash])];
  });
  return Object.fromEntries(found);
}
