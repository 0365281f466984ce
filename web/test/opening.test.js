/** Opening from bytes, Blobs and URLs; limits, progress and cancelling; writing safetensors. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";
import { openNola, toFloat32 } from "../dist/index.js";
import { golden, refusedFor } from "./support.js";

/** Serves bytes, with or without ranges, and counts the requests. */
async function serve(data, ranges) {
  let requests = 0;
  const server = createServer((request, response) => {
    requests++;
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    if (!ranges || !range) return response.end(data);
    const end = Math.min(Number(range[2]) + 1, data.length);
    response.writeHead(206, { "Content-Range": `bytes ${range[1]}-${end - 1}/${data.length}` });
    return response.end(data.subarray(Number(range[1]), end));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}/a.nola`;
  return { url, count: () => requests, close: () => server.close() };
}

test("a Blob and an ArrayBuffer open like bytes", async () => {
  const data = golden("effective");
  const expected = (await (await openNola(data)).decode()).sha256;
  for (const from of [new Blob([data]), data.slice().buffer]) {
    assert.equal((await (await openNola(from)).decode()).sha256, expected);
  }
});

test("a URL is opened by one request, and by one more for each section beyond the first bytes", async () => {
  for (const ranges of [true, false]) {
    const server = await serve(golden("rungs"), ranges);
    try {
      const file = await openNola(server.url);
      assert.equal(server.count(), 1);
      assert.equal((await file.verify()).rungs.length, 3);
      assert.equal(server.count(), 1);
    } finally {
      server.close();
    }
  }
});

test("a server that does not answer is a source error", async () => {
  await assert.rejects(openNola("http://127.0.0.1:1/a.nola"), refusedFor("source"));
});

test("what cannot be opened is a usage error", async () => {
  for (const from of [5, null, undefined, {}]) await assert.rejects(openNola(from), refusedFor("usage"));
  await assert.rejects(openNola(golden("nmse"), { limits: { zoom: 1 } }), refusedFor("usage"));
});

test("limits are kept, and raised by the caller", async () => {
  const data = golden("effective");
  for (const name of ["records", "coefficients", "allElements", "storedHeader", "plainHeader", "headerValues", "rank"]) {
    await assert.rejects(openNola(data, { limits: { [name]: 1 } }), refusedFor("limit"), name);
  }
  const file = await openNola(data, { limits: { units: 1 } });
  await assert.rejects(file.decode(), refusedFor("limit"));
});

test("progress rises to 1, and a signal stops the work", async () => {
  const file = await openNola(golden("rungs"));
  const shares = [];
  await file.decode({ onProgress: (share) => shares.push(share) });
  assert.deepEqual(shares, [...shares].sort((a, b) => a - b));
  assert.equal(shares.at(-1), 1);
  const stop = new AbortController();
  const work = file.decode({ signal: stop.signal, onProgress: (share) => share > 0.3 && stop.abort() });
  await assert.rejects(work, { name: "AbortError" });
});

test("single records are decoded alone, and blocks without them are not read", async () => {
  const data = golden("rungs");
  let bytes = 0;
  const source = {
    size: data.length,
    read: async (start, end) => {
      bytes += end - start;
      return data.subarray(start, end);
    },
  };
  const whole = await (await openNola(data)).decode();
  const file = await openNola(source);
  const opening = bytes;
  for (const { name, values, exponents } of whole.records) {
    const { records, sha256 } = await file.decode({ names: [name] });
    assert.deepEqual(records.map((record) => [record.name, record.values, record.exponents]), [[name, values, exponents]]);
    assert.equal(sha256, null);
  }
  bytes = 0;
  assert.deepEqual((await file.decode({ names: [] })).records, []);
  const sections = file.header.rungSections.reduce((sum, { units }) => sum + units.length, 0);
  assert.equal(bytes, sections);
  assert.ok(opening >= 38);
  await assert.rejects(file.decode({ names: ["no such record"] }), refusedFor("usage"));
});

test("a safetensors file holds the factors under the keys of the dialect", async () => {
  const decoded = await (await openNola(golden("effective"))).decode();
  const data = await decoded.toSafetensors();
  const length = Number(new DataView(data.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(data.subarray(8, 8 + length)));
  const record = decoded.records.find(({ type }) => type === "low-rank");
  const entry = header[`${record.name}.lora_B.weight`];
  assert.equal(entry.dtype, "F32");
  assert.deepEqual(entry.shape, record.kind.bShape);
  const [start, end] = entry.data_offsets;
  const stored = new Float32Array(data.slice(8 + length + start, 8 + length + end).buffer);
  assert.deepEqual(stored, toFloat32(record.values[0], record.exponents[0]));
});
