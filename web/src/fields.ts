/** Checks of the types and ranges of values of the header. Each returns the value, or refuses the file with `header`. */

import { type ErrorCode, refuse } from "./errors.js";
import { checkLimit, type Limits } from "./limits.js";
import { Float, type Value, type ValueMap } from "./msgpack.js";

/** An integer from `low` to `high`. */
export function asInteger(value: Value | undefined, low: number, high: number, what: string): number {
  if (typeof value !== "number" || value < low || value > high) {
    return refuse("header", `${what}: expected an integer from ${low} to ${high}, found ${show(value)}`);
  }
  return value;
}

/** One of the integers from 0 up that have a meaning; `code` is the reject code of any other from 0 to 255. */
export function asId(value: Value | undefined, known: readonly number[], what: string, code: ErrorCode): number {
  const id = asInteger(value, 0, 255, what);
  return known.includes(id) ? id : refuse(code, `${what}: ${id} is unknown; known are ${known.join(", ")}`);
}

/** A float; the caller has refused those that are not finite. */
export function asFloat(value: Value | undefined, what: string): number {
  return value instanceof Float ? value.value : refuse("header", `${what}: expected a float, found ${show(value)}`);
}

export function asString(value: Value | undefined, what: string): string {
  return typeof value === "string" ? value : refuse("header", `${what}: expected a string, found ${show(value)}`);
}

/** A string of limited length, counted in code points. */
export function asShortString(value: Value | undefined, limits: Limits, what: string): string {
  const text = asString(value, what);
  checkLimit(limits, "nameLength", codePoints(text), what);
  return text;
}

export function asArray(value: Value | undefined, what: string): Value[] {
  return Array.isArray(value) ? value : refuse("header", `${what}: expected an array, found ${show(value)}`);
}

/** An array of exactly `length` values. */
export function asTuple(value: Value | undefined, length: number, what: string): Value[] {
  const items = asArray(value, what);
  if (items.length !== length) refuse("header", `${what}: expected an array of ${length}, found one of ${items.length}`);
  return items;
}

export function asMap(value: Value | undefined, what: string): ValueMap {
  return value instanceof Map ? value : refuse("header", `${what}: expected a map, found ${show(value)}`);
}

/** Bytes of exactly `length`. */
export function asBytes(value: Value | undefined, length: number, what: string): Uint8Array {
  if (!(value instanceof Uint8Array) || value.length !== length) {
    return refuse("header", `${what}: expected ${length} bytes, found ${show(value)}`);
  }
  return value;
}

/** A shape: dimensions from `low` to 2^31. */
export function asShape(value: Value | undefined, low: number, limits: Limits, what: string): number[] {
  const shape = asArray(value, what);
  checkLimit(limits, "dimensions", shape.length, `${what}: dimensions`);
  return shape.map((size) => asInteger(size, low, 2 ** 31, what));
}

/** The product of a shape. It may be rounded where it is far above every limit, but it is never too small. */
export function product(shape: readonly number[]): number {
  return shape.includes(0) ? 0 : shape.reduce((a, b) => a * b, 1);
}

/** The number of code points of a text. */
export function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) === 0xdc00) count--;
  return count;
}

/** A short text for a value in a message. */
function show(value: Value | undefined): string {
  if (value === undefined) return "nothing";
  if (value === null) return "nil";
  if (value instanceof Float) return `the float ${value.value}`;
  if (typeof value === "string") return `the string ${JSON.stringify(value.slice(0, 40))}`;
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (value instanceof Map) return `a map of ${value.size}`;
  return String(value);
}
