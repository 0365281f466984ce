/** Drawn tensors: PyTorch's draws, as tests/kat has them. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { drawTensor } from "../build/modules/drawn.js";
import { hex, sha256 } from "../build/modules/sha256.js";
import { readAnswers } from "./support.js";

const DTYPES = { float32: "F32", float16: "F16", bfloat16: "BF16" };

for (const [file, method] of [["torch-plain", "uniform"], ["torch-fused", "fused"]]) {
  test(`${file}: draws of PyTorch`, async () => {
    for (const answer of readAnswers(file)) {
      const dtype = DTYPES[answer.dtype];
      const made = await drawTensor(
        {
          dtypes: [dtype],
          dtype,
          shape: [answer.count],
          method,
          digits: 24,
          seed: Number(BigInt(answer.seed) & 0xffffffffn),
          start: answer.start,
          axis: 0,
          low: Math.fround(answer.low),
          high: Math.fround(answer.high),
          divisor: null,
          elements: answer.count,
          bytes: answer.count * (dtype === "F32" ? 4 : 2),
        },
        () => {},
      );
      assert.equal(hex(sha256(made)), answer.sha256, JSON.stringify(answer));
    }
  });
}
