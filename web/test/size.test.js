/** What a page loads to open and decode a usual file stays small; parts that few files or callers need come later. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { measure } from "../size.js";

test("the reader is under 48 KB minified, and export, drawn tensors and references are in chunks", async () => {
  const { reader, zstd, dictionary, chunks } = await measure();
  assert.ok(reader < 48_000 && reader > 20_000, `${reader} bytes`);
  assert.ok(zstd > 5_000 && zstd < 10_000 && dictionary > 5_000, `${zstd} and ${dictionary} bytes`);
  const names = Object.keys(chunks).map((name) => /^dist\/(\w+)-/.exec(name)[1]);
  for (const part of ["drawn", "export", "references"]) assert.ok(names.includes(part), names.join());
});
