/** CRC-32, SHA-256 and XXH64 give the published answers. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { crc32 } from "../build/modules/crc32.js";
import { hex, Sha256, sha256 } from "../build/modules/sha256.js";
import { xxh64 } from "../build/modules/zstd/xxh64.js";
import { randomWords } from "./support.js";

const bytes = (text) => new TextEncoder().encode(text);

test("CRC-32 of the usual text, in one piece and in two", () => {
  assert.equal(crc32(bytes("123456789")), 0xcbf43926);
  assert.equal(crc32(bytes("12345"), bytes("6789")), 0xcbf43926);
  assert.equal(crc32(new Uint8Array(0)), 0);
});

test("SHA-256 agrees with node's at every length around a block, in any pieces", () => {
  const word = randomWords(1);
  const data = Uint8Array.from({ length: 300 }, () => word());
  for (let length = 0; length <= data.length; length++) {
    const part = data.subarray(0, length);
    const expected = createHash("sha256").update(part).digest("hex");
    assert.equal(hex(sha256(part)), expected);
    const cut = word() % (length + 1);
    assert.equal(hex(new Sha256().update(part.subarray(0, cut)).update(part.subarray(cut)).digest()), expected);
  }
});

test("XXH64 of published inputs", () => {
  assert.equal(xxh64(new Uint8Array(0)), 0xef46db3751d8e999n);
  assert.equal(xxh64(bytes("a")), 0xd24ec4f1a98c6e5bn);
  assert.equal(xxh64(bytes("abc")), 0x44bc2cf5ad770999n);
});
