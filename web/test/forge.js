/** Makes files for the tests: a MessagePack encoder, adaptive integers, and a prelude with right checksums. */

import { createHash } from "node:crypto";
import { crc32 } from "../build/modules/crc32.js";

/** A number that is written as a float. */
export class Float {
  constructor(value) {
    this.value = value;
  }
}

const concat = (parts) => new Uint8Array(Buffer.concat(parts.map((part) => Uint8Array.from(part))));

function sized(length, small, codes, body) {
  if (length < small[1]) return concat([[small[0] + length], ...body]);
  const head = length < 256 && codes[0] ? [codes[0], length] : null;
  if (head) return concat([head, ...body]);
  const view = new DataView(new ArrayBuffer(length < 65536 ? 3 : 5));
  view.setUint8(0, length < 65536 ? codes[1] : codes[2]);
  if (length < 65536) view.setUint16(1, length);
  else view.setUint32(1, length);
  return concat([new Uint8Array(view.buffer), ...body]);
}

/** Canonical MessagePack of null, booleans, integers, Float, strings, bytes, arrays and objects. */
export function pack(value) {
  if (value === null) return Uint8Array.of(0xc0);
  if (typeof value === "boolean") return Uint8Array.of(value ? 0xc3 : 0xc2);
  if (value instanceof Float) {
    const view = new DataView(new ArrayBuffer(9));
    view.setUint8(0, 0xcb);
    view.setFloat64(1, value.value);
    return new Uint8Array(view.buffer);
  }
  if (typeof value === "number") {
    if (value >= 0) return sized(value, [0, 128], [0xcc, 0xcd, 0xce], []);
    if (value >= -32) return Uint8Array.of(256 + value);
    const bytes = value >= -128 ? 1 : value >= -32768 ? 2 : 4;
    const all = new Uint8Array(new Int32Array([value]).buffer).subarray(0, bytes).reverse();
    return concat([[{ 1: 0xd0, 2: 0xd1, 4: 0xd2 }[bytes]], all]);
  }
  if (typeof value === "string") {
    const text = new TextEncoder().encode(value);
    return sized(text.length, [0xa0, 32], [0xd9, 0xda, 0xdb], [text]);
  }
  if (value instanceof Uint8Array) return sized(value.length, [0, 0], [0xc4, 0xc5, 0xc6], [value]);
  if (Array.isArray(value)) return sized(value.length, [0x90, 16], [0, 0xdc, 0xdd], value.map(pack));
  const keys = Object.keys(value).sort();
  return sized(keys.length, [0x80, 16], [0, 0xde, 0xdf], keys.flatMap((key) => [pack(key), pack(value[key])]));
}

/** A section of adaptive integers [role, value]. Zeros that follow need not be given: they cost nothing. */
export function packIntegers(integers) {
  const contexts = new Map();
  let low = 0n;
  let range = 0xffffffff;
  let bytes = 4;
  const put = (key, bit) => {
    const context = contexts.get(key) ?? { p: 32768, n: 0 };
    contexts.set(key, context);
    const bound = (range >>> 16) * context.p;
    if (bit) {
      low += BigInt(bound);
      range -= bound;
      context.p -= Math.floor(context.p / (context.n + 2));
    } else {
      range = bound;
      context.p += Math.floor((65536 - context.p) / (context.n + 2));
    }
    context.n = Math.min(60, context.n + 1);
    for (; range < 2 ** 24; range *= 256, bytes++) low <<= 8n;
  };
  for (const [role, value] of integers) {
    const digits = value === 0 ? "" : Math.abs(value).toString(2);
    const bits = "1".repeat(digits.length) + "0" + (digits ? `${value < 0 ? 1 : 0}${digits.slice(1)}` : "");
    for (let at = 0; at < bits.length; at++) put(`${role} ${bits.slice(0, at)}`, bits[at] === "1");
  }
  const text = low.toString(16).padStart(2 * bytes, "0").replace(/(00)+$/, "");
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** A zstd frame of plain blocks, without magic number. */
export function frame(data) {
  const parts = [Uint8Array.of(0xa0), new Uint8Array(Uint32Array.of(data.length).buffer)];
  for (let at = 0; at < data.length; at += 1 << 16) {
    const block = data.subarray(at, at + (1 << 16));
    const word = (block.length << 3) | (at + block.length === data.length ? 1 : 0);
    parts.push(Uint8Array.of(word & 255, (word >> 8) & 255, word >> 16), block);
  }
  return concat(parts);
}

/** A file of these header fields and sections [codec, bytes]; what is not given is that of a file without records. */
export function makeFile(fields, sections, flags = 0) {
  const header = {
    amplitude_slope: 0, blocks: [], config: null, dialect: "peft", generator: 1, kinds: [], metadata: {}, numbers: [],
    quantizers: [], records: [], rungs: [[new Uint8Array(32), {}]], seed: 0, streams: null, writer: "test", ...fields,
  };
  header.sections = sections.map(([codec, data]) => [codec, data.length, crc32(data)]);
  const stored = frame(pack(header));
  const prelude = new DataView(new ArrayBuffer(38));
  [0x89, 0x4e, 0x4c, 0x41, 0x0d, 0x0a, 0x1a, 0x0a].forEach((byte, at) => prelude.setUint8(at, byte));
  prelude.setUint16(10, 3, true);
  prelude.setUint16(12, flags, true);
  prelude.setUint32(14, stored.length, true);
  const bytes = new Uint8Array(prelude.buffer);
  const body = concat(sections.map(([, data]) => data));
  const content = createHash("sha256").update(bytes.subarray(0, 18)).update(stored).update(body).digest();
  bytes.set(content.subarray(0, 16), 18);
  prelude.setUint32(34, crc32(bytes.subarray(0, 34), stored), true);
  return concat([bytes, stored, body]);
}
