/** Reads .nola files: adapters of neural networks that decode to the same bits everywhere. */

export { NolaError, type ErrorCode } from "./errors.js";
export { DEFAULT_LIMITS, FORMAT_LIMITS, type Limits } from "./limits.js";
export { type Source, type SourceLike } from "./source.js";
export {
  openNola,
  NolaFile,
  type DecodeOptions,
  type OpenOptions,
  type TensorInfo,
  type Verification,
  type VerifyOptions,
} from "./file.js";
export { Decoded } from "./result.js";
export {
  toFloat32,
  type DecodedCarried,
  type DecodedCoded,
  type DecodedDrawn,
  type DecodedLowRank,
  type DecodedRecord,
  type DecodedVector,
} from "./decoded.js";
export type { Base, FileRecord, Header, Reference, Rung, Section } from "./header.js";
export type { CarriedKind, DrawnKind, Kind, LowRankKind, Side, VectorKind } from "./kinds.js";
export type { Signature } from "./signature.js";
export type { Quantizer } from "./quantizers.js";
export { Float, type Value, type ValueMap } from "./msgpack.js";
