/** Limits on what a file may ask for. They are checked before memory or time is spent on it. */

import { refuse } from "./errors.js";

/** The limits of the specification, each by a name of its own. */
export interface Limits {
  /** Bytes of the header as stored. */
  storedHeader: number;
  /** Bytes of the plain header. */
  plainHeader: number;
  /** MessagePack values in the plain header; a key counts as a value. */
  headerValues: number;
  records: number;
  kinds: number;
  sections: number;
  quantizers: number;
  /** Rows of the allocation tables of a rung. */
  rows: number;
  /** Units of all records, added over all rungs. */
  units: number;
  /** Rows of allocation tables that units look up, over all sides and rungs. */
  lookUps: number;
  recordsTimesRungs: number;
  /** Code points of a name, a template, the writer or the dialect. */
  nameLength: number;
  /** Code points of the names of all records. */
  allNames: number;
  /** Code points of a value of the metadata. */
  metadataValue: number;
  dimensions: number;
  rank: number;
  /** Elements of a factor or of a vector record. */
  elements: number;
  /** Bytes of a carried or drawn tensor. */
  tensorBytes: number;
  /** Elements of all factors and vectors and bytes of all other tensors, together. */
  allElements: number;
  elementsTimesRungs: number;
  /** Elements of the products of all pairs, if the dialect is `delta`. */
  products: number;
  /** Files below a file with a reference. */
  referenceFiles: number;
  /** Coefficients of all records, as if all units were kept, times rungs. */
  coefficients: number;
  /** Length times coefficients of all vectors in dense bases, as if all units were kept, times rungs. */
  denseWork: number;
  /** Words of MT19937 of all drawn records, but those that repeat one of the two draws used last. */
  words: number;
  /** Steps of the lanes of all rans sections. */
  laneSteps: number;
}

/** The limits that files for the public keep. */
export const FORMAT_LIMITS: Readonly<Limits> = Object.freeze({
  storedHeader: 2 ** 24,
  plainHeader: 2 ** 26,
  headerValues: 2 ** 21,
  records: 2 ** 17,
  kinds: 2 ** 16,
  sections: 2 ** 18,
  quantizers: 256,
  rows: 2 ** 14,
  units: 2 ** 24,
  lookUps: 2 ** 26,
  recordsTimesRungs: 2 ** 20,
  nameLength: 1024,
  allNames: 2 ** 24,
  metadataValue: 2 ** 24,
  dimensions: 8,
  rank: 2 ** 16,
  elements: 2 ** 31,
  tensorBytes: 2 ** 34,
  allElements: 2 ** 34,
  elementsTimesRungs: 2 ** 36,
  products: 2 ** 36,
  referenceFiles: 32,
  coefficients: 2 ** 34,
  denseWork: 2 ** 37,
  words: 2 ** 34,
  laneSteps: 2 ** 26,
});

/** The limits unless the caller gives others. With them no file takes more than about 2 GB or a minute. */
export const DEFAULT_LIMITS: Readonly<Limits> = Object.freeze({
  ...FORMAT_LIMITS,
  headerValues: 2 ** 19,
  units: 2 ** 21,
  lookUps: 2 ** 24,
  allElements: 2 ** 28,
  elementsTimesRungs: 2 ** 31,
  coefficients: 2 ** 28,
  denseWork: 2 ** 34,
  words: 2 ** 31,
});

/** The default limits with those of the caller in their place. */
export function makeLimits(own: Partial<Limits> = {}): Limits {
  for (const [name, value] of Object.entries(own)) {
    if (!(name in DEFAULT_LIMITS)) refuse("usage", `limits: there is no limit with the name ${name}`);
    if (typeof value !== "number" || !(value >= 0)) refuse("usage", `limits: ${name} must be a number from 0 up`);
  }
  return { ...DEFAULT_LIMITS, ...own };
}

/** Refuses `found` if it is above the limit, and says how to raise it. */
export function checkLimit(limits: Limits, name: keyof Limits, found: number, what: string): void {
  if (!(found <= limits[name])) {
    refuse("limit", `${what}: ${found} is above the limit ${name} of ${limits[name]}; if you trust the file, raise it`);
  }
}
