/** MessagePack in canonical form: one byte string for one value. Every other form is refused. */

import { refuse } from "./errors.js";
import { checkLimit, type Limits } from "./limits.js";

/** A float, so that 1.0 is not taken for the integer 1. */
export class Float {
  constructor(readonly value: number) {}
}

/** Integers beyond 2^53 are bigint, all others are number. */
export type Value = null | boolean | number | bigint | Float | string | Uint8Array | Value[] | ValueMap;
export type ValueMap = Map<string, Value>;

/** Nesting of arrays and maps; the outermost map has depth 1. */
const MAX_DEPTH = 32;

/** Decodes the plain header. Floats are finite, except inside the value of the outermost map's key `config`. */
export function decodeMessagePack(data: Uint8Array, limits: Limits): Value {
  const decoder = new Decoder(data, limits);
  const value = decoder.value(1);
  if (decoder.at !== data.length) {
    refuse("header", `header: ${data.length - decoder.at} bytes follow the MessagePack value`);
  }
  return value;
}

class Decoder {
  at = 0;
  private values = 0;
  private inConfig = false;
  private readonly view: DataView;
  private readonly text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(
    private readonly data: Uint8Array,
    private readonly limits: Limits,
  ) {
    this.view = new DataView(data.buffer, data.byteOffset, data.length);
  }

  value(depth: number): Value {
    if (++this.values > this.limits.headerValues) checkLimit(this.limits, "headerValues", this.values, "header: values");
    const type = this.unsigned(1);
    if (type < 0x80) return type;
    if (type < 0x90) return this.map(type & 15, depth);
    if (type < 0xa0) return this.array(type & 15, depth);
    if (type < 0xc0) return this.string(type & 31);
    if (type >= 0xe0) return type - 256;
    switch (type) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
        return this.bytes(this.length(1, 0));
      case 0xc5:
        return this.bytes(this.length(2, 2 ** 8));
      case 0xc6:
        return this.bytes(this.length(4, 2 ** 16));
      case 0xcb:
        return this.float();
      case 0xcc:
        return this.length(1, 2 ** 7);
      case 0xcd:
        return this.length(2, 2 ** 8);
      case 0xce:
        return this.length(4, 2 ** 16);
      case 0xcf:
        return this.integer64((value) => value >= 2n ** 32n, true);
      case 0xd0:
        return this.negative(1, 2 ** 5);
      case 0xd1:
        return this.negative(2, 2 ** 7);
      case 0xd2:
        return this.negative(4, 2 ** 15);
      case 0xd3:
        return this.integer64((value) => value < -(2n ** 31n), false);
      case 0xd9:
        return this.string(this.length(1, 2 ** 5));
      case 0xda:
        return this.string(this.length(2, 2 ** 8));
      case 0xdb:
        return this.string(this.length(4, 2 ** 16));
      case 0xdc:
        return this.array(this.length(2, 2 ** 4), depth);
      case 0xdd:
        return this.array(this.length(4, 2 ** 16), depth);
      case 0xde:
        return this.map(this.length(2, 2 ** 4), depth);
      case 0xdf:
        return this.map(this.length(4, 2 ** 16), depth);
      default:
        return refuse("header", `header: byte ${type} begins no MessagePack type that this format uses`);
    }
  }

  /** Takes so many bytes and returns where they begin. */
  private take(count: number): number {
    if (count > this.data.length - this.at) refuse("header", "header: the MessagePack value is cut short");
    const at = this.at;
    this.at += count;
    return at;
  }

  private unsigned(bytes: 1 | 2 | 4): number {
    const at = this.take(bytes);
    return bytes === 1 ? this.data[at]! : bytes === 2 ? this.view.getUint16(at) : this.view.getUint32(at);
  }

  /** An unsigned number of so many bytes; those below `least` have a shorter form. */
  private length(bytes: 1 | 2 | 4, least: number): number {
    const value = this.unsigned(bytes);
    return value < least ? this.notShortest() : value;
  }

  /** A negative number of so many bytes; those from `-least` up have a shorter form. */
  private negative(bytes: 1 | 2 | 4, least: number): number {
    const shift = 32 - 8 * bytes;
    const value = (this.unsigned(bytes) << shift) >> shift;
    return value >= -least ? this.notShortest() : value;
  }

  private integer64(isShortest: (value: bigint) => boolean, unsigned: boolean): number | bigint {
    const at = this.take(8);
    const value = unsigned ? this.view.getBigUint64(at) : this.view.getBigInt64(at);
    if (!isShortest(value)) this.notShortest();
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }

  private notShortest(): never {
    return refuse("header", `header: the number or length before byte ${this.at} is not in its shortest form`);
  }

  private float(): Float {
    const value = this.view.getFloat64(this.take(8));
    if (!this.inConfig && !Number.isFinite(value)) refuse("header", "header: a float is not finite");
    return new Float(value);
  }

  private bytes(count: number): Uint8Array {
    const at = this.take(count);
    return this.data.slice(at, at + count);
  }

  private string(count: number): string {
    const at = this.take(count);
    try {
      return this.text.decode(this.data.subarray(at, at + count));
    } catch {
      return refuse("header", `header: the string at byte ${at} is not UTF-8`);
    }
  }

  private checkDepth(depth: number): void {
    if (depth > MAX_DEPTH) refuse("header", `header: arrays and maps are nested more than ${MAX_DEPTH} deep`);
  }

  private array(count: number, depth: number): Value[] {
    this.checkDepth(depth);
    const items: Value[] = [];
    for (let i = 0; i < count; i++) items.push(this.value(depth + 1));
    return items;
  }

  private map(count: number, depth: number): ValueMap {
    this.checkDepth(depth);
    const items: ValueMap = new Map();
    let before: Uint8Array | null = null;
    for (let i = 0; i < count; i++) {
      const at = this.at;
      const key = this.value(depth + 1);
      if (typeof key !== "string") refuse("header", "header: a key is not a string");
      // Forms are the shortest ones, so that the first byte tells how many bytes come before the text.
      const type = this.data[at]!;
      const own = this.data.subarray(at + (type < 0xc0 ? 1 : [2, 3, 5][type - 0xd9]!), this.at);
      if (before !== null && compareBytes(before, own) >= 0) {
        refuse("header", `header: the key ${key} does not come after the key before it`);
      }
      before = own;
      const isConfig = depth === 1 && key === "config";
      this.inConfig ||= isConfig;
      items.set(key, this.value(depth + 1));
      if (isConfig) this.inConfig = false;
    }
    return items;
  }
}

/** Below zero if `a` comes before `b`, zero if they are equal. */
function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return a.length - b.length;
}
