/** Every file of the conformance kit: what valid files decode to, and the codes of invalid ones. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { openNola } from "../dist/index.js";
import { digestsOf } from "../build/modules/digests.js";
import { KIT, read, readJson } from "./support.js";

const { valid, invalid } = readJson(`${KIT}files.json`);

/** What the reader says of a file: an item for each rung. */
async function rungsOf({ file, references = [] }) {
  const below = await Promise.all(references.map((path) => openNola(read(KIT + path))));
  const rungs = [];
  await (await openNola(read(KIT + file))).verify({
    references: below,
    onRung: (decoded) => rungs.push({ decoded_sha256: decoded.sha256, tensors: digestsOf(decoded) }),
  });
  return rungs;
}

for (const item of valid) test(item.file, async () => assert.deepEqual(await rungsOf(item), item.rungs));
for (const item of invalid) {
  test(`${item.file} (${item.code})`, () =>
    assert.rejects(rungsOf(item), (error) => {
      assert.equal(error.name, "NolaError", error.stack);
      assert.equal(error.code, item.code, error.message);
      return true;
    }));
}
