/** Kinds: what the records of one family share. */

import { refuse } from "./errors.js";
import { asArray, asFloat, asId, asInteger, asShape, asShortString, asTuple, product } from "./fields.js";
import { checkLimit, type Limits } from "./limits.js";
import type { Value } from "./msgpack.js";

export const BASES = ["hadamard", "rademacher", "uniform"] as const;
export const FORMS = ["component", "factor", "difference"] as const;
export const LAYOUTS = ["linear", "convolution", "embedding"] as const;
export const FACTOR_DTYPES = ["F32", "F16", "BF16"] as const;
export const CARRIED_DTYPES = [
  ...(["F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64"] as const),
  ...(["F8_E4M3", "F8_E5M2"] as const),
];
const CARRIED_BYTES = [4, 2, 2, 8, 8, 4, 2, 1, 1, 1, 2, 4, 8, 1, 1];

export type Basis = (typeof BASES)[number];
export type Form = (typeof FORMS)[number];
export type FactorDtype = (typeof FACTOR_DTYPES)[number];

/** One side of a coded kind: `vectors` vectors of `n` elements, each made from `k` coefficients. */
export interface Side {
  /** Length of a vector. */
  n: number;
  /** Coefficients of a vector. */
  k: number;
  /** Vectors of the side: the rank, or 1. */
  vectors: number;
  /** Elements of the whole side. */
  elements: number;
}

interface CodedKind {
  template: string;
  /** Dtype of the tensors before they were encoded. Decoding does not depend on it. */
  dtype: FactorDtype;
  basis: Basis;
  form: Form;
  /** Side 0 is lora_B or the vector, side 1 is lora_A. */
  sides: Side[];
  rank: number;
}

export interface LowRankKind extends CodedKind {
  type: "low-rank";
  layout: (typeof LAYOUTS)[number];
  scaling: number;
  fanInFanOut: boolean;
  /** Shape of lora_B: (out, r) or (out, r, 1, 1...). */
  bShape: number[];
  /** Shape of lora_A: (r, in) or (r, in, k...). */
  aShape: number[];
}

export interface VectorKind extends CodedKind {
  type: "vector";
  shape: number[];
}

export interface CarriedKind {
  type: "carried";
  template: string;
  dtype: (typeof CARRIED_DTYPES)[number];
  shape: number[];
  /** Bytes of an element. */
  elementBytes: number;
  /** Bytes of the tensor. */
  bytes: number;
}

/** A tensor that is drawn again from a seed, see `drawn.ts`. */
export interface DrawnKind {
  type: "drawn";
  template: string;
  /** The dtype that is drawn, then those that it is cast to. */
  dtypes: FactorDtype[];
  /** The last dtype, which is the tensor's. */
  dtype: FactorDtype;
  shape: number[];
  method: "uniform" | "fused" | "ternary";
  digits: number;
  seed: number;
  /** Number of words before those of the tensor. */
  start: number;
  axis: 0 | 1;
  low: number;
  high: number;
  divisor: number | null;
  elements: number;
  bytes: number;
}

export type Kind = LowRankKind | VectorKind | CarriedKind | DrawnKind;

/** The order in which records of these types come. */
export const TYPE_ORDER = { "low-rank": 0, vector: 1, carried: 2, drawn: 3 } as const;

/** Whether the records of a kind have coefficients. */
export function isCoded(kind: Kind): kind is LowRankKind | VectorKind {
  return kind.type === "low-rank" || kind.type === "vector";
}

/** Reads one kind of the header. `differences` says whether the difference form may occur. */
export function readKind(value: Value, differences: boolean, limits: Limits, what: string): Kind {
  const type = asInteger(asArray(value, what)[0], 0, 3, `${what}: record type`);
  if (type === 0) return readLowRank(asTuple(value, 11, what), differences, limits, what);
  if (type === 1) return readCarried(asTuple(value, 4, what), limits, what);
  if (type === 2) return readVector(asTuple(value, 6, what), limits, what);
  return readDrawn(asTuple(value, 12, what), limits, what);
}

function readLowRank(fields: Value[], differences: boolean, limits: Limits, what: string): LowRankKind {
  const form = FORMS[asInteger(fields[7], 0, differences ? 2 : 1, `${what}: form`)]!;
  const basis = BASES[asId(fields[6], [1, 2, 3], `${what}: basis`, "basis") - 1]!;
  const bShape = asShape(fields[9], 1, limits, `${what}: b_shape`);
  const aShape = asShape(fields[10], 1, limits, `${what}: a_shape`);
  const [rows, rank] = bShape;
  if (rows === undefined || rank === undefined || aShape.length < 2 || aShape[0] !== rank) {
    refuse("header", `${what}: expected shapes (out, r, 1...) and (r, in...), found (${bShape}) and (${aShape})`);
  }
  if (bShape.slice(2).some((size) => size !== 1)) refuse("header", `${what}: b_shape has a dimension that is not 1`);
  checkLimit(limits, "rank", rank, `${what}: rank`);
  const columns = product(aShape.slice(1));
  const lengths = form === "factor" ? [rows * rank, rank * columns] : [rows, columns];
  const given = fields[8] === null ? [null, null] : asTuple(fields[8], 2, `${what}: num_basis`);
  const sides = lengths.map((n, side) =>
    makeSide(n, form === "factor" ? 1 : rank, given[side]!, basis, limits, `${what}: ${side ? "lora_A" : "lora_B"}`),
  );
  return {
    type: "low-rank",
    template: asShortString(fields[1], limits, `${what}: template`),
    layout: LAYOUTS[asInteger(fields[2], 0, 2, `${what}: layout`)]!,
    scaling: asFloat(fields[3], `${what}: scaling`),
    fanInFanOut: asInteger(fields[4], 0, 1, `${what}: fan_in_fan_out`) === 1,
    dtype: FACTOR_DTYPES[asInteger(fields[5], 0, 2, `${what}: dtype`)]!,
    basis,
    form,
    sides,
    rank,
    bShape,
    aShape,
  };
}

function readVector(fields: Value[], limits: Limits, what: string): VectorKind {
  const basis = BASES[asId(fields[3], [1, 2, 3], `${what}: basis`, "basis") - 1]!;
  const shape = asShape(fields[5], 1, limits, `${what}: shape`);
  return {
    type: "vector",
    template: asShortString(fields[1], limits, `${what}: template`),
    dtype: FACTOR_DTYPES[asInteger(fields[2], 0, 2, `${what}: dtype`)]!,
    basis,
    form: "component",
    sides: [makeSide(product(shape), 1, fields[4]!, basis, limits, what)],
    rank: 1,
    shape,
  };
}

function makeSide(n: number, vectors: number, given: Value, basis: Basis, limits: Limits, what: string): Side {
  checkLimit(limits, "elements", n * vectors, `${what}: elements`);
  const k = given === null ? n : asInteger(given, 1, 2 ** 31, `${what}: num_basis`);
  if (basis === "hadamard" && k > n) refuse("header", `${what}: num_basis ${k} is above the vector's ${n} elements`);
  return { n, k, vectors, elements: n * vectors };
}

function readCarried(fields: Value[], limits: Limits, what: string): CarriedKind {
  const dtype = asInteger(fields[2], 0, CARRIED_DTYPES.length - 1, `${what}: dtype`);
  const shape = asShape(fields[3], 0, limits, `${what}: shape`);
  const bytes = product(shape) * CARRIED_BYTES[dtype]!;
  checkLimit(limits, "tensorBytes", bytes, `${what}: bytes`);
  return {
    type: "carried",
    template: asShortString(fields[1], limits, `${what}: template`),
    dtype: CARRIED_DTYPES[dtype]!,
    shape,
    elementBytes: CARRIED_BYTES[dtype]!,
    bytes,
  };
}

function readDrawn(fields: Value[], limits: Limits, what: string): DrawnKind {
  const dtypes = asArray(fields[2], `${what}: dtypes`).map(
    (dtype) => FACTOR_DTYPES[asInteger(dtype, 0, 2, `${what}: dtypes`)]!,
  );
  if (dtypes.length < 1 || dtypes.length > 4) refuse("header", `${what}: expected 1 to 4 dtypes, found ${dtypes.length}`);
  const dtype = dtypes[dtypes.length - 1]!;
  const shape = asShape(fields[3], 1, limits, `${what}: shape`);
  const digits = asInteger(fields[5], 8, 24, `${what}: digits`);
  if (digits !== 8 && digits !== 11 && digits !== 24) refuse("header", `${what}: digits are 8, 11 or 24, not ${digits}`);
  const low = asSingle(fields[9], -(2 ** 32), 2 ** 32, `${what}: low`);
  const elements = product(shape);
  const bytes = elements * CARRIED_BYTES[CARRIED_DTYPES.indexOf(dtype)]!;
  checkLimit(limits, "tensorBytes", bytes, `${what}: bytes`);
  return {
    type: "drawn",
    template: asShortString(fields[1], limits, `${what}: template`),
    dtypes,
    dtype,
    shape,
    method: (["uniform", "fused", "ternary"] as const)[asInteger(fields[4], 0, 2, `${what}: method`)]!,
    digits,
    seed: asInteger(fields[6], 0, 2 ** 32 - 1, `${what}: seed`),
    start: asInteger(fields[7], 0, 2 ** 34, `${what}: start`),
    axis: asInteger(fields[8], 0, shape.length > 1 ? 1 : 0, `${what}: axis`) as 0 | 1,
    low,
    high: asSingle(fields[10], low, 2 ** 32, `${what}: high`),
    divisor: fields[11] === null ? null : asSingle(fields[11], 2 ** -32, 2 ** 32, `${what}: divisor`),
    elements,
    bytes,
  };
}

/** A float that is a number of binary32, from `low` to `high`. */
function asSingle(value: Value | undefined, low: number, high: number, what: string): number {
  const found = asFloat(value, what);
  if (Math.fround(found) !== found || found < low || found > high) {
    refuse("header", `${what}: expected a number of binary32 from ${low} to ${high}, found ${found}`);
  }
  return found;
}

/** A text that is equal for two kinds if they mean the same. JSON writes -0 as 0. */
export function identityOf(kind: Kind): string {
  return JSON.stringify(kind);
}

/** A text that is equal for two drawn kinds with the same elements. */
export function drawOf(kind: DrawnKind): string {
  return identityOf({ ...kind, template: "" });
}
