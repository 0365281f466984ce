/** Random123's own vectors of philox4x32-10. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { philox } from "../build/modules/generators.js";
import { ROOT } from "./support.js";

test("philox4x32-10 gives the published words", () => {
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
