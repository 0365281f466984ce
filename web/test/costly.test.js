/** Small files that ask for much work are refused, or done in a bounded time and memory. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { FORMAT_LIMITS, openNola } from "../dist/index.js";
import { Float, makeFile, packIntegers } from "./forge.js";

/** Seconds of processor time, and megabytes of the whole process, that a refusal may take. */
const SECONDS = 5;
const MEGABYTES = 1000;

/** Points of a codebook of one point take no bytes in codec 2. */
const FREE = [0, [1], [4096]];
/** One lane whose state stays 2^16, and no words. */
const NOTHING = [2, Uint8Array.of(0, 0, 0, 1, 0)];

/** A file of `count` records of a kind, all of whose units start at the last of the rungs. */
function makeCostly(count, rank, out, into, { rungs = 1, basis = 1, num = null, ...fields } = {}) {
  const sections = [];
  for (let rung = 0; rung < rungs; rung++) {
    const kind = rung === 0 ? [[12, 0], [12, 0], [13, 0], [13, 0], [14, 0]] : [];
    const table = [[0, 1], [1, -1000], [2, 0], [3, 0]];
    const last = rung === rungs - 1;
    // At rung 0 a count is predicted by that of the record before, later by the record's own.
    const counts = Array.from({ length: count }, (_, at) => {
      if (rung === 0 && at > 0 && last) return [4 + Math.min(2, rank), 0];
      return [4, last ? rank : 0];
    });
    sections.push([3, packIntegers([...kind, ...table, ...counts])], NOTHING);
  }
  return makeFile(
    {
      blocks: [count],
      kinds: [[0, "m#", 0, new Float(1), 0, 0, basis, 0, num, [out, rank], [rank, into]]],
      records: Array(count).fill(0),
      numbers: [0, ...Array(count - 1).fill(1)],
      quantizers: [FREE],
      rungs: Array.from({ length: rungs }, () => [new Uint8Array(32), {}]),
      ...fields,
    },
    sections,
  );
}

async function refuse(file, code, limits) {
  const before = process.cpuUsage();
  await assert.rejects(
    async () => (await openNola(file, { limits })).decode(),
    (error) => {
      assert.equal(error.code, code, error.stack);
      return true;
    },
  );
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < SECONDS * 1e6, `${user + system} microseconds`);
  const memory = process.resourceUsage().maxRSS / 1024;
  assert.ok(memory < MEGABYTES, `${memory} MB`);
}

test("a small file of this forge is decoded up to its hash", () =>
  refuse(makeCostly(3, 2, 5, 4), "factors-checksum", FORMAT_LIMITS));

const CASES = {
  "units that start at the last of many rungs": makeCostly(16, 65536, 1, 1, { rungs: 64 }),
  "more coefficients than memory": makeCostly(1000, 1024, 1024, 1024),
  "elements of one point": makeCostly(1, 1, 2 ** 31, 1, { num: [1, 1] }),
  "a dense basis": makeCostly(1, 1, 2 ** 20, 1, { basis: 2, num: [2 ** 20, 1] }),
  "a product of a delta": makeCostly(1, 1, 2 ** 20, 2 ** 20, { dialect: "delta" }),
  "a header of maps": makeCostly(1, 1, 1, 1, { config: { a: Array(2 ** 19).fill({}) } }),
};
for (const [name, file] of Object.entries(CASES)) test(`${name} is over a limit`, () => refuse(file, "limit"));

test("a dense basis of many coefficients for one element is decoded row by row", () =>
  refuse(makeCostly(1, 1, 1, 1, { basis: 3, num: [2 ** 22, 1] }), "factors-checksum"));
test("many units of one element are decoded", () => refuse(makeCostly(1, 65536, 1, 1, { rungs: 4 }), "factors-checksum"));

test("a draw that repeats one of the two that were used last takes no words", async () => {
  const drawn = (seed) => [3, `#d${seed}`, [0], [4], 0, 24, seed, 0, 0, new Float(0), new Float(1), null];
  const records = [0, 1, 0, 2, 0];
  const fields = { kinds: [1, 2, 3].map(drawn), records, numbers: [0, 0, 1, 0, 1] };
  const file = makeFile(fields, [[3, new Uint8Array(0)]], 2);
  await refuse(file, "limit", { words: 11 });
  await refuse(file, "factors-checksum", { words: 12 });
  await assert.rejects((await openNola(file)).decode({ names: ["3d1"] }), { code: "usage" });
  const { records: made } = await (await openNola(file)).decode({ names: ["0d1", "2d1"] });
  assert.deepEqual(made[0].bytes, made[1].bytes);
});
