/** Golden files decode to the tensors that the conformance kit names, on every way to open them. */

import assert from "node:assert/strict";
import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { test } from "node:test";
import { openNola } from "../dist/index.js";
import { golden, MANIFEST, randomWords, refusedFor } from "./support.js";

const NAMES = Object.keys(MANIFEST);
const open = (name) => openNola(golden(name));

/** The files that a file with a reference may need. */
const references = await Promise.all(NAMES.map(open));

for (const name of NAMES) {
  const { decoded_sha256: expected, tensors } = MANIFEST[name];
  const names = [...new Set(Object.keys(tensors).map((key) => key.replace(/\.(exponents|lora_A|lora_B|vector)$/, "")))];
  test(`${name} decodes exactly, at every rung`, async () => {
    const file = await open(name);
    assert.deepEqual(file.tensors.map((tensor) => tensor.name), names);
    const { rungs } = await file.verify({ references });
    assert.equal(rungs.at(-1), expected);
    for (const [rung, sha256] of rungs.entries()) {
      assert.equal((await file.decode({ rung, references })).sha256, sha256);
    }
  });
}

test("a file whose reference is missing is refused", async () => {
  await assert.rejects((await open("reference")).decode(), refusedFor("reference"));
});

test("every cut of a file is refused as truncated, and a byte more as trailing", async () => {
  const data = golden("nmse");
  for (let length = 0; length < data.length; length += 7) {
    await assert.rejects(openNola(data.subarray(0, length)), refusedFor("truncated"));
  }
  await assert.rejects(openNola(Uint8Array.of(...data, 0)), refusedFor("trailing"));
});

test("a signature behind a file is checked, and changes nothing else; other bytes are trailing", async () => {
  const data = golden("nmse");
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const content = createHash("sha256").update(data.subarray(0, 18)).update(data.subarray(38)).digest();
  const own = sign(null, Buffer.concat([Buffer.from("nola signature\0"), content]), privateKey);
  const key = publicKey.export({ type: "spki", format: "der" }).subarray(-32);
  const signature = Buffer.concat([Uint8Array.of(0x89, 0x4e, 0x4c, 0x53, 0x0d, 0x0a, 0x1a, 0x0a), key, own]);
  const check = async (tail) => (await openNola(Uint8Array.of(...data, ...tail))).verify();
  const [signed, plain] = [await check(signature), await check([])];
  assert.deepEqual([signed.rungs, signed.contentSha256], [plain.rungs, plain.contentSha256]);
  assert.deepEqual(signed.signed, { publicKey: key.toString("hex"), valid: true });
  assert.equal(plain.signed, null);
  signature[103] ^= 1;
  assert.equal((await check(signature)).signed.valid, false);
  for (const tail of [signature.subarray(1), new Uint8Array(104)]) {
    await assert.rejects(check(tail), refusedFor("trailing"));
  }
});

test("every changed bit is found", async () => {
  const data = golden("vectors-rungs");
  const word = randomWords(3);
  const codes = new Set();
  for (let i = 0; i < 400; i++) {
    const damaged = data.slice();
    damaged[word() % damaged.length] ^= 1 << (word() % 8);
    await assert.rejects(
      async () => (await openNola(damaged)).verify(),
      (error) => {
        assert.equal(error.name, "NolaError", error.stack);
        codes.add(error.code);
        return true;
      },
    );
  }
  assert.ok(codes.has("header-checksum") && codes.has("section-checksum"), [...codes].join());
});
