/** Tensors come out under the keys of their dialect, and reduced ones are made again. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { exportTensors } from "../build/modules/dialects.js";
import { fromBytes, round } from "../build/modules/floats.js";
import { Float } from "../build/modules/msgpack.js";

const pair = (name, layout = "linear") => ({
  type: "low-rank",
  name,
  kind: { layout, aShape: [1, 3], bShape: [2, 1] },
  values: [Int16Array.of(1, -2), Int16Array.of(3, 4, 5)],
  exponents: [-1, 0],
});
const keysOf = (dialect, record, config = null) => exportTensors({ dialect, config }, [record]).map(({ key }) => key);

test("keys of the dialects", () => {
  assert.deepEqual(keysOf("peft", pair("a")), ["a.lora_A.weight", "a.lora_B.weight"]);
  assert.deepEqual(keysOf("peft", pair("a", "embedding")), ["a.lora_embedding_A", "a.lora_embedding_B"]);
  assert.deepEqual(keysOf("kohya", pair("a.hada_w1")), ["a.hada_w1_b", "a.hada_w1_a"]);
  assert.deepEqual(keysOf("diffusers", pair("a_lora2")), ["a_lora2.down.weight", "a_lora2.up.weight"]);
  assert.deepEqual(keysOf("sam_lora", pair("w7")), ["w_a_007", "w_b_007"]);
});

test("mlx stores its factors transposed", () => {
  const [a] = exportTensors({ dialect: "mlx", config: null }, [pair("m")]);
  assert.deepEqual([a.key, a.shape, [...fromBytes(a.bytes, "F32")]], ["m.lora_a", [3, 1], [3, 4, 5]]);
});

test("experts of a module are stored together", () => {
  const [, , a, b] = exportTensors({ dialect: "peft", config: null }, [pair("m[1]"), pair("m[0]"), pair("n")]);
  assert.deepEqual([a.key, a.shape, b.key, b.shape], ["m.lora_A.weight", [2, 3], "m.lora_B.weight", [2, 2]]);
  assert.deepEqual([...fromBytes(a.bytes, "F32")], [3, 4, 5, 3, 4, 5]);
  assert.deepEqual([...fromBytes(b.bytes, "F32")], [0.5, 0.5, -1, -1]);
  const both = exportTensors({ dialect: "peft", config: null }, [pair("m"), pair("m[0]")]);
  assert.deepEqual(new Set(both.map(({ key }) => key)).size, 4);
  assert.deepEqual(keysOf("peft", pair("m[999999999]")), ["m[999999999].lora_A.weight", "m[999999999].lora_B.weight"]);
});

test("alpha of modules comes from the configuration", () => {
  const alpha = new Map([
    ["dtype", "F16"],
    ["shape", []],
    ["value", new Float(4)],
    ["others", new Map([["b", new Float(2)]])],
    ["without", ["c"]],
  ]);
  const tensors = exportTensors({ dialect: "kohya", config: new Map([["alpha", alpha]]) }, ["a", "b", "c"].map((n) => pair(n)));
  const found = tensors.filter(({ key }) => key.endsWith(".alpha")).map(({ key, bytes }) => [key, ...fromBytes(bytes, "F16")]);
  assert.deepEqual(found, [["a.alpha", 4], ["b.alpha", 2]]);
});

test("coded and scaled tensors are made again in their own dtype", () => {
  const coded = { type: "vector", name: "h.coded", kind: { dtype: "BF16", shape: [2] }, values: [Int16Array.of(257, -3)], exponents: [0] };
  const bytes = new Uint8Array(Int8Array.of(1, -2, 3, 4).buffer);
  const int8 = { type: "carried", name: "k.int8", kind: { dtype: "I8", shape: [2, 2] }, bytes };
  const scale = { type: "carried", name: "k.int8_scale", kind: { dtype: "F32", shape: [2] }, bytes: new Uint8Array(Float32Array.of(0.5, 3).buffer) };
  const [h, k] = exportTensors({ dialect: "peft", config: null }, [coded, int8, scale]);
  // 257 lies between 256 and 258 of bfloat16, and goes to the even one.
  assert.deepEqual([h.key, h.dtype, [...fromBytes(h.bytes, "BF16")]], ["h", "BF16", [256, -3]]);
  assert.deepEqual([k.key, k.dtype, [...fromBytes(k.bytes, "F32")]], ["k", "F32", [0.5, -1, 9, 12]]);
});

test("every number of binary16 and bfloat16 rounds to itself, and what lies between to the nearest", () => {
  for (const dtype of ["F16", "BF16"]) {
    const all = fromBytes(new Uint8Array(Uint16Array.from({ length: 0x7c00 }, (_, bits) => bits).buffer), dtype);
    for (let at = 0; at + 1 < all.length; at += dtype === "F16" ? 1 : 7) {
      const [low, high] = [all[at], all[at + 1]];
      assert.equal(round(low, dtype), low);
      assert.equal(round(-low, dtype), -low);
      // Halfway goes to the one whose last bit is zero.
      assert.equal(round((low + high) / 2, dtype), at % 2 === 0 ? low : high);
    }
    assert.equal(round(1e6, "F16"), Infinity);
  }
});
