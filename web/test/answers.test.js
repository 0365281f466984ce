/** The known answers of the conformance kit, one step of decoding after the other. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { synthesizeSide } from "../build/modules/bases.js";
import { drawTensor, Twister } from "../build/modules/drawn.js";
import { RunCounts, SymbolReader } from "../build/modules/entropy.js";
import { makeScale, scaleVector } from "../build/modules/factors.js";
import { PURPOSE, signs, subset, words } from "../build/modules/generators.js";
import { hadamardBlock } from "../build/modules/hadamard.js";
import { IntegerReader } from "../build/modules/integers.js";
import { BASES, readKind } from "../build/modules/kinds.js";
import { FORMAT_LIMITS } from "../build/modules/limits.js";
import { Float } from "../build/modules/msgpack.js";
import { addLayer, readQuantizer } from "../build/modules/quantizers.js";
import { addReference } from "../build/modules/references.js";
import { weightOf } from "../build/modules/units.js";
import { KIT, readJson } from "./support.js";

const bytes = (text) => new Uint8Array(Buffer.from(text, "hex"));
const sequences = ({ seed, t }) => ({ seed: BigInt(seed), t });

/** One test for each answer file; `check` gets one answer after the other. */
function answers(name, check) {
  test(name, async () => {
    const all = readJson(`${KIT}answers/${name}.json`);
    assert.ok(all.length > 0);
    for (const answer of all) await check(answer);
  });
}

answers("words", (answer) => {
  const made = words(sequences(answer), answer.purpose, 0, 1001);
  assert.deepEqual([...made.subarray(0, 10)], answer.words);
  assert.equal(made[1000], answer.word_1000);
  assert.equal(words(sequences(answer), answer.purpose, 1000, 1)[0], answer.word_1000);
});
answers("signs", (answer) => {
  assert.deepEqual([...signs(sequences(answer), answer.purpose, answer.signs.length)], answer.signs);
});
answers("subsets", (answer) => {
  assert.deepEqual([...subset(sequences(answer), answer.n, answer.k)], answer.positions);
});
answers("hadamard-blocks", ({ n, block, passes }) => assert.deepEqual(hadamardBlock(n), { block, passes }));
answers("bases", (answer) => {
  const { n, k, q, y, basis } = answer;
  const side = { n, k, vectors: 1, elements: n };
  let made;
  synthesizeSide(BASES[basis - 1], sequences(answer), side, [Int32Array.from(q)], (found) => (made = found.slice()));
  // The answers know no -0.
  assert.deepEqual(Array.from(made, (value) => value + 0), y);
});
answers("quantizers", ({ quantizer, symbols, count, points }) => {
  const coefficients = new Int32Array(count);
  addLayer(readQuantizer(quantizer, "test"), 1, Uint16Array.from(symbols), coefficients);
  assert.deepEqual([...coefficients], points);
});
answers("weights", ({ w, weight }) => assert.equal(weightOf(w), weight));

/** The symbols of a section, as one list. */
function decode(codec, models, { runs, section }) {
  const counts = new RunCounts(models.map((model) => ({ type: "codebook", ...model })));
  for (const [model, length] of runs) counts.add(model, length);
  const reader = new SymbolReader(codec, bytes(section), counts, FORMAT_LIMITS, { steps: 0 }, "test");
  const symbols = runs.flatMap(([model, length]) => [...reader.read(model, length)]);
  reader.finish();
  return symbols;
}
answers("packed", (answer) => {
  const models = answer.sizes.map((size) => ({ size, table: null }));
  assert.deepEqual(decode(0, models, answer), answer.symbols);
});
answers("rans", (answer) => {
  const models = answer.frequencies.map((table) => ({ size: table.length, table: Uint16Array.from(table) }));
  assert.deepEqual(decode(2, models, answer), answer.symbols);
});
answers("integers", ({ section, roles, integers }) => {
  const input = new IntegerReader(bytes(section), "test");
  assert.deepEqual(roles.map((role) => input.read(role)), integers);
  input.finish();
});
answers("scales", ({ y, code, exponent, results }) => {
  const out = new Int16Array(y.length);
  // Each number alone and all together: large ones decide how all of them are computed.
  scaleVector(Float64Array.from(y), makeScale(code, exponent, "test"), out, 0, 1);
  assert.deepEqual([...out], results);
  y.forEach((value, at) => scaleVector(Float64Array.of(value), makeScale(code, exponent, "test"), out, at, 1));
  assert.deepEqual([...out], results);
});
answers("references", ({ own, old, gain, exponent, exponent_of_reference: earlier, v }) => {
  const record = (values, e) => ({
    type: "vector",
    name: "a",
    kind: { shape: [values.length] },
    values: [Int16Array.from(values)],
    exponents: [e],
  });
  const made = record(own, exponent);
  addReference(made, { gains: [gain, 0] }, new Map([["a", record(old, earlier)]]));
  assert.deepEqual([...made.values[0]], v);
});
answers("mt19937", ({ seed, words: first, word_623, word_624, word_9999 }) => {
  const twister = new Twister(seed);
  const made = Array.from({ length: 10_000 }, () => twister.next());
  assert.deepEqual(made.slice(0, first.length), first);
  assert.deepEqual([made[623], made[624], made[9999]], [word_623, word_624, word_9999]);
  const skipping = new Twister(seed);
  skipping.skip(9999);
  assert.equal(skipping.next(), word_9999);
});
answers("draws", async (answer) => {
  const { dtypes, shape, method, digits, seed, start, axis, low, high, divisor } = answer;
  const floats = [low, high, divisor].map((text) => (text === null ? null : new Float(parseHexFloat(text))));
  const fields = [3, "a", dtypes, shape, method, digits, seed, start, axis, ...floats];
  const kind = readKind(fields, false, FORMAT_LIMITS, "test");
  assert.deepEqual(await drawTensor(kind, () => {}), bytes(answer.bytes));
});

/** A float as C's %a writes it. */
function parseHexFloat(text) {
  const [, sign, whole, fraction, exponent] = /^(-?)0x([0-9a-f]+)\.?([0-9a-f]*)p([+-]?\d+)$/.exec(text);
  const digits = parseInt(whole + fraction, 16) / 16 ** fraction.length;
  return (sign ? -1 : 1) * digits * 2 ** Number(exponent);
}

test("purposes have the numbers of the specification", () => {
  assert.deepEqual(PURPOSE, { signs: 0, secondSigns: 1, subset: 2, rademacher: 3, uniform: 4 });
});
