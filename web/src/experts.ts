/** Experts: in PEFT's format the factors of all experts of a module are stored together. */

import { type DecodedLowRank, type DecodedRecord, toFloat32 } from "./decoded.js";

/** The factors of a module as float32, row-major, with their shapes. */
export interface Pair {
  name: string;
  embedding: boolean;
  a: Float32Array;
  aShape: readonly number[];
  b: Float32Array;
  bShape: readonly number[];
}

/** The factors of one record. */
export function pairOf({ name, kind, values, exponents }: DecodedLowRank): Pair {
  return {
    name,
    embedding: kind.layout === "embedding",
    a: toFloat32(values[1]!, exponents[1]!),
    aShape: kind.aShape,
    b: toFloat32(values[0]!, exponents[0]!),
    bShape: kind.bShape,
  };
}

/**
 * The low-rank records of a file, those named M[0], M[1], ... joined to one pair M: lora_A (experts r, in) with the expert as
 * the slower index, lora_B (out, r experts) with the expert as the faster one. Experts of different shapes stay apart.
 */
export function joinExperts(records: readonly DecodedRecord[]): Pair[] {
  const plain: Pair[] = [];
  const modules = new Map<string, Map<number, DecodedLowRank>>();
  for (const record of records) {
    if (record.type !== "low-rank") continue;
    const match = /^(.*)\[(0|[1-9]\d{0,8})\]$/s.exec(record.name);
    if (match === null) {
      plain.push(pairOf(record));
      continue;
    }
    const known = modules.get(match[1]!) ?? new Map<number, DecodedLowRank>();
    modules.set(match[1]!, known.set(Number(match[2]), record));
  }
  const taken = new Set(plain.map(({ name }) => name));
  const others = [...modules].flatMap(([name, experts]) => {
    const found = [...experts.values()];
    const shapes = new Set(found.map(({ kind }) => `${kind.aShape} ${kind.bShape}`));
    const whole = !taken.has(name) && shapes.size === 1 && found.every((_, expert) => experts.has(expert));
    return whole ? [joinPairs(name, found.map((_, expert) => pairOf(experts.get(expert)!)))] : found.map(pairOf);
  });
  return [...plain, ...others];
}

function joinPairs(name: string, pairs: readonly Pair[]): Pair {
  const count = pairs.length;
  const { aShape, bShape, embedding } = pairs[0]!;
  const [rank, ...into] = aShape;
  const a = new Float32Array(count * pairs[0]!.a.length);
  const b = new Float32Array(count * pairs[0]!.b.length);
  pairs.forEach((pair, expert) => {
    a.set(pair.a, expert * pair.a.length);
    for (let i = 0; i < pair.b.length; i++) b[i * count + expert] = pair.b[i]!;
  });
  return { name, embedding, a, aShape: [rank! * count, ...into], b, bShape: [bShape[0]!, rank! * count, ...bShape.slice(2)] };
}
