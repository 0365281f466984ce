/** The known answers of tests/kat: words, signs, subsets, trellises and adaptive integers. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { philox, PURPOSE, signs, subset, words } from "../build/modules/generators.js";
import { IntegerReader } from "../build/modules/integers.js";
import { hex, sha256 } from "../build/modules/sha256.js";
import { addTrellis, TRELLISES } from "../build/modules/trellis.js";
import { readAnswers, ROOT } from "./support.js";

const sequences = ({ seed, stream }) => ({ seed: BigInt(seed), t: stream });

/** The SHA-256 of numbers as little-endian int64, which stands for long answers. */
const hashOf = (numbers) => hex(sha256(new Uint8Array(BigInt64Array.from(numbers, BigInt).buffer)));

function check(found, { values, sha256: expected }) {
  if (values) assert.deepEqual([...found], values);
  else assert.equal(hashOf(found), expected);
}

test("Random123's own vectors of philox4x32-10", () => {
  const lines = readFileSync(new URL("tests/kat/random123.txt", ROOT), "utf8").split("\n");
  const vectors = lines.filter((line) => line.startsWith("philox4x32 10"));
  assert.equal(vectors.length, 3);
  for (const line of vectors) {
    const numbers = line.split(" ").slice(2).map((word) => parseInt(word, 16));
    const out = new Uint32Array(4);
    philox(out, 0, numbers.slice(0, 4), numbers.slice(4, 6));
    assert.deepEqual([...out], numbers.slice(6));
  }
});

test("words of sequences", () => {
  for (const answer of readAnswers("words")) {
    const made = words(sequences(answer), answer.purpose, 0, 1000);
    assert.deepEqual([...made.subarray(0, 6)], answer.first);
    assert.equal(hashOf(made), answer.sha256_of_1000);
    assert.deepEqual(words(sequences(answer), answer.purpose, 500, 37), made.slice(500, 537));
  }
});

test("signs", () => {
  for (const answer of readAnswers("signs")) check(signs(sequences(answer), answer.purpose, answer.count), answer);
});

test("subsets", () => {
  for (const answer of readAnswers("subsets")) {
    check(subset(sequences(answer), answer.population, answer.size), answer);
  }
});

test("trellises", () => {
  for (const { trellis, symbols, points } of readAnswers("trellises")) {
    const coefficients = new Int32Array(points.length);
    addTrellis(trellis, 1, Uint16Array.from(symbols), coefficients);
    assert.deepEqual([...coefficients], points);
  }
  assert.equal(TRELLISES.length, 13);
});

test("adaptive integers", () => {
  for (const { section, roles, integers, bytes_read: bytes } of readAnswers("integers")) {
    const input = new IntegerReader(new Uint8Array(Buffer.from(section, "hex")), "test");
    assert.deepEqual(roles.map((role) => input.read(role)), integers);
    if (section.length / 2 <= bytes) input.finish();
  }
  assert.equal(PURPOSE.uniform, 4);
});
