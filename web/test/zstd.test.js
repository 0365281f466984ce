/** zstd frames that the zstd library made, and damaged ones. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { hex, sha256 } from "../build/modules/sha256.js";
import { decompress } from "../build/modules/zstd/frame.js";
import { randomWords, readJson, refusedFor } from "./support.js";

const FRAMES = readJson("web/test/zstd-frames.json").map((item) => ({
  ...item,
  frame: new Uint8Array(Buffer.from(item.frame, "base64")),
}));

test("frames of all levels give their content", () => {
  for (const { content, size, sha256: expected, frame } of FRAMES) {
    assert.equal(hex(sha256(decompress(frame, size, content))), expected, content);
  }
});

test("another size, a byte more and every cut are refused", () => {
  for (const { size, frame, content } of FRAMES) {
    assert.throws(() => decompress(frame, size + 1, content), refusedFor("zstd"));
    assert.throws(() => decompress(Uint8Array.of(...frame, 0), size, content), refusedFor("zstd"));
    const step = Math.max(1, Math.floor(frame.length / 40));
    for (let length = 0; length < frame.length; length += step) {
      assert.throws(() => decompress(frame.subarray(0, length), size, content), refusedFor("zstd"));
    }
  }
});

test("a damaged frame is refused or gives other bytes of the same size; nothing else is thrown", () => {
  const word = randomWords(2);
  let refused = 0;
  for (const { size, frame, content, checksum, sha256: expected } of FRAMES) {
    for (let i = 0; i < 40; i++) {
      const damaged = frame.slice();
      damaged[word() % damaged.length] ^= 1 << (word() % 8);
      try {
        const made = decompress(damaged, size, content);
        assert.equal(made.length, size);
        if (checksum) assert.equal(hex(sha256(made)), expected);
      } catch (error) {
        assert.ok(refusedFor("zstd")(error), error.stack);
        refused++;
      }
    }
  }
  assert.ok(refused > 100);
});
