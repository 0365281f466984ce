/** Dialects: the keys and layouts that the tensors of a record have in the format of the tool that they came from. */

import { type DecodedLowRank, type DecodedRecord, toFloat32 } from "./decoded.js";
import type { Header } from "./header.js";
import { floatBytes, type Tensor } from "./safetensors.js";

/** The keys of lora_A and lora_B, and whether each is stored transposed. */
interface Keys {
  a: string;
  b: string;
  transposeA?: boolean;
  transposeB?: boolean;
}

/** All tensors of a file, under the keys of its dialect. */
export function exportTensors(header: Header, records: readonly DecodedRecord[]): Tensor[] {
  return records.flatMap((record): Tensor[] => {
    if (record.type === "low-rank") return exportPair(header.dialect, record);
    const { name, kind } = record;
    if (record.type !== "vector") return [{ key: name, dtype: kind.dtype, shape: kind.shape, bytes: record.bytes }];
    return [floatTensor(name, record.kind.shape, toFloat32(record.values[0]!, record.exponents[0]!), false)];
  });
}

function keysOf(dialect: string, name: string, embedding: boolean): Keys {
  const old = { a: `${name}.down.weight`, b: `${name}.up.weight` };
  switch (dialect) {
    case "peft":
      return embedding
        ? { a: `${name}.lora_embedding_A`, b: `${name}.lora_embedding_B` }
        : { a: `${name}.lora_A.weight`, b: `${name}.lora_B.weight` };
    case "kohya":
      return /\.(hada|lokr)_w[12]$/.test(name)
        ? { a: `${name}_b`, b: `${name}_a` }
        : { a: `${name}.lora_down.weight`, b: `${name}.lora_up.weight` };
    case "diffusers":
      return /(\.lora|\.lora_linear_layer|_lora\d?)$/.test(name)
        ? old
        : { a: `${name}.lora_A.weight`, b: `${name}.lora_B.weight` };
    case "diffusers-old":
      return old;
    case "mlx":
      return { a: `${name}.lora_a`, b: `${name}.lora_b`, transposeA: true, transposeB: true };
    case "gguf":
      return { a: `${name}.lora_a`, b: `${name}.lora_b`, transposeA: name === "token_embd.weight" };
    case "cloneofsimo":
      return { a: `${name}:down`, b: `${name}:up` };
    case "sam_lora": {
      const number = name.slice(1).padStart(3, "0");
      return { a: `w_a_${number}`, b: `w_b_${number}` };
    }
    default:
      return { a: `${name}.lora_A`, b: `${name}.lora_B` };
  }
}

function exportPair(dialect: string, { name, kind, values, exponents }: DecodedLowRank): Tensor[] {
  const keys = keysOf(dialect, name, kind.layout === "embedding");
  const b = toFloat32(values[0]!, exponents[0]!);
  const a = toFloat32(values[1]!, exponents[1]!);
  return [
    floatTensor(keys.a, kind.aShape, a, keys.transposeA ?? false),
    floatTensor(keys.b, kind.bShape, b, keys.transposeB ?? false),
  ];
}

function floatTensor(key: string, shape: readonly number[], values: Float32Array, transposed: boolean): Tensor {
  if (!transposed) return { key, dtype: "F32", shape, bytes: floatBytes(values) };
  const rows = shape[0]!;
  const columns = values.length / rows;
  const turned = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) turned[j * rows + i] = values[i * columns + j]!;
  return { key, dtype: "F32", shape: [columns, rows], bytes: floatBytes(turned) };
}
