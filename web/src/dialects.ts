/** Dialects: the keys and layouts that the tensors of a record have in the format of the tool that they came from. */

import { type DecodedCarried, type DecodedRecord, type DecodedVector, toFloat32 } from "./decoded.js";
import { refuse } from "./errors.js";
import { joinExperts, type Pair, pairOf } from "./experts.js";
import { fromBytes, toBytes } from "./floats.js";
import type { Header } from "./header.js";
import { FACTOR_DTYPES } from "./kinds.js";
import { Float } from "./msgpack.js";
import type { Tensor } from "./safetensors.js";

/** The keys of lora_A and lora_B, and whether each is stored transposed. */
interface Keys {
  a: string;
  b: string;
  transposeA?: boolean;
  transposeB?: boolean;
}

/** All tensors of a file, under the keys of its dialect. Tensors that an encoder reduced are made again. */
export function exportTensors(header: Header, records: readonly DecodedRecord[]): Tensor[] {
  const byName = new Map(records.map((record) => [record.name, record]));
  const { dialect } = header;
  const pairs = dialect === "peft" ? joinExperts(records) : records.flatMap((r) => (r.type === "low-rank" ? [pairOf(r)] : []));
  const others = records.flatMap((record): Tensor[] => {
    if (record.type === "low-rank") return [];
    const { name, kind } = record;
    if (record.type === "vector") return [exportVector(record)];
    const whole = name.replace(/\.int8_scale$/, ".int8");
    if (whole !== name && byName.has(whole)) return [];
    const scale = name.endsWith(".int8") ? byName.get(`${name}_scale`) : undefined;
    if (scale?.type === "carried" && kind.dtype === "I8") return [exportScaled(name, record.bytes, kind.shape, scale)];
    return [{ key: name, dtype: kind.dtype, shape: kind.shape, bytes: record.bytes }];
  });
  return [...pairs.flatMap((pair) => exportPair(dialect, pair)), ...others, ...exportAlphas(header, records)];
}

function exportVector({ name, kind, values, exponents }: DecodedVector): Tensor {
  const coded = name.endsWith(".coded");
  const dtype = coded ? kind.dtype : "F32";
  const bytes = toBytes(toFloat32(values[0]!, exponents[0]!), dtype);
  return { key: coded ? name.slice(0, -".coded".length) : name, dtype, shape: kind.shape, bytes };
}

/** A tensor whose elements are int8, each times the number of its first index. */
function exportScaled(name: string, bytes: Uint8Array, shape: readonly number[], scale: DecodedCarried): Tensor {
  const dtype = FACTOR_DTYPES.find((known) => known === scale.kind.dtype);
  if (dtype === undefined) refuse("usage", `${scale.name}: scales of dtype ${scale.kind.dtype} are unknown`);
  const scales = fromBytes(scale.bytes, dtype);
  const pitch = bytes.length / scales.length;
  if (scales.length !== shape[0]) refuse("usage", `${scale.name}: expected ${shape[0]} scales, found ${scales.length}`);
  const numbers = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  const products = Float64Array.from(numbers, (number, at) => number * scales[Math.floor(at / pitch)]!);
  return { key: name.slice(0, -".int8".length), dtype, shape, bytes: toBytes(products, dtype) };
}

/** The scalar tensors `M.alpha` of modules, which the configuration keeps in these dialects. */
function exportAlphas({ dialect, config }: Header, records: readonly DecodedRecord[]): Tensor[] {
  const alpha = config?.get("alpha");
  if (!(alpha instanceof Map) || !["kohya", "diffusers", "diffusers-old"].includes(dialect)) return [];
  const dtype = FACTOR_DTYPES.find((known) => known === alpha.get("dtype"));
  const [shape, others, without] = [alpha.get("shape"), alpha.get("others"), alpha.get("without")];
  if (dtype === undefined || !Array.isArray(shape)) return [];
  const modules = records
    .filter(({ type }) => type === "low-rank")
    .map(({ name }) => (dialect === "kohya" ? name.replace(/\.(hada|lokr)_w[12]$/, "") : name.replace(/\.lora$/, "")));
  return [...new Set(modules)].flatMap((module): Tensor[] => {
    const own = others instanceof Map ? others.get(module) : undefined;
    const value = own ?? alpha.get("value");
    if (!(value instanceof Float) || (Array.isArray(without) && without.includes(module))) return [];
    return [{ key: `${module}.alpha`, dtype, shape: shape.map(Number), bytes: toBytes([value.value], dtype) }];
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

function exportPair(dialect: string, { name, embedding, a, aShape, b, bShape }: Pair): Tensor[] {
  const keys = keysOf(dialect, name, embedding);
  return [
    floatTensor(keys.a, aShape, a, keys.transposeA ?? false),
    floatTensor(keys.b, bShape, b, keys.transposeB ?? false),
  ];
}

function floatTensor(key: string, shape: readonly number[], values: Float32Array, transposed: boolean): Tensor {
  if (!transposed) return { key, dtype: "F32", shape, bytes: toBytes(values, "F32") };
  const rows = shape[0]!;
  const columns = values.length / rows;
  const turned = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) turned[j * rows + i] = values[i * columns + j]!;
  return { key, dtype: "F32", shape: [columns, rows], bytes: toBytes(turned, "F32") };
}
