/** The header: everything about a file except its symbols and the bytes that it carries. */

import { refuse } from "./errors.js";
import {
  asArray, asBytes, asFloat, asId, asInteger, asMap, asShortString, asString, asTuple, codePoints,
} from "./fields.js";
import { drawOf, identityOf, isCoded, type Kind, readKind, TYPE_ORDER } from "./kinds.js";
import { checkLimit, type Limits } from "./limits.js";
import type { Value, ValueMap } from "./msgpack.js";
import { cutTemplate, NameReader } from "./names.js";
import { DRAWN_FLAG, REFERENCE_FLAG } from "./prelude.js";
import { type Quantizer, readQuantizer } from "./quantizers.js";

/** One tensor, or one pair of factors, with a name. */
export interface FileRecord {
  name: string;
  kind: Kind;
  /** Index of the kind. */
  kindIndex: number;
  /** Stream of a coded record; records of equal stream share their bases. */
  stream: number;
}

export interface Rung {
  /** Decoded SHA-256 of the rung. */
  sha256: Uint8Array;
  /** What the encoder measured, by key. */
  measured: Record<string, number>;
}

export interface Section {
  codec: number;
  length: number;
  crc: number;
  /** Offset in the file. */
  offset: number;
  /** What it is, for messages. */
  label: string;
}

export interface Reference {
  sha256: Uint8Array;
  /** Number of files that are decoded before this one; 0 if the reference was never coded. */
  files: number;
  /** Gains of lora_B and vector records, and of lora_A. */
  gains: [number, number];
  name: string;
}

/** The base model that an adapter was trained on. Decoding does not depend on it. */
export interface Base {
  name: string;
  revision: string;
  /** SHA-256 over names, dtypes and shapes of the model's tensors and over the first bytes of some. */
  fingerprint: Uint8Array;
}

export interface Header {
  amplitudeSlope: number;
  blocks: number[];
  config: ValueMap | null;
  dialect: string;
  generator: "philox4x32-10";
  kinds: Kind[];
  metadata: Record<string, string>;
  quantizers: Quantizer[];
  records: FileRecord[];
  /** Number of coded records, which come first, and of carried records, which come next. */
  coded: number;
  carried: number;
  rungs: Rung[];
  seed: bigint;
  writer: string;
  reference: Reference | null;
  /** The base model that the adapter was trained on. */
  base: Base | null;
  /** Units section and block sections of each rung. */
  rungSections: { units: Section; blocks: Section[] }[];
  /** Sections of the carried records, in order. */
  carriedSections: Section[];
  /** Length of the whole file. */
  fileLength: number;
}

const KEYS = [
  ...["amplitude_slope", "blocks", "config", "dialect", "generator", "kinds", "metadata", "numbers", "quantizers"],
  ...["records", "rungs", "sections", "seed", "streams", "writer"],
];

/** Reads the header from its MessagePack value. `flags` are the required ones; `start` is where section 0 begins. */
export function readHeader(value: Value, flags: number, start: number, limits: Limits): Header {
  const map = asMap(value, "header");
  const hasReference = (flags & REFERENCE_FLAG) !== 0;
  const keys = [...KEYS, ...(hasReference ? ["reference"] : []), ...(map.has("base") ? ["base"] : [])];
  for (const key of map.keys()) if (!keys.includes(key)) refuse("header", `header: the key ${key} is unknown`);
  for (const key of keys) if (!map.has(key)) refuse("header", `header: the key ${key} is missing`);
  const get = (key: string): Value => map.get(key)!;

  const reference = hasReference ? readReference(get("reference"), limits) : null;
  const base = map.has("base") ? readBase(get("base"), limits) : null;
  const kinds = readKinds(get("kinds"), reference !== null, limits);
  const rungs = asArray(get("rungs"), "rungs");
  if (rungs.length < 1 || rungs.length > 64) refuse("header", `rungs: expected 1 to 64, found ${rungs.length}`);
  const quantizers = asArray(get("quantizers"), "quantizers");
  checkLimit(limits, "quantizers", quantizers.length, "quantizers");
  const { records, coded, carried } = readRecords(map, kinds, limits);
  if (records.length > coded + carried !== ((flags & DRAWN_FLAG) !== 0)) {
    refuse("header", "records: bit 1 of the required flags does not say whether there are drawn records");
  }
  const dialect = asShortString(get("dialect"), limits, "dialect");
  checkWork(kinds, records, coded, rungs.length, dialect, limits);

  const blocks = asArray(get("blocks"), "blocks").map((count) => asInteger(count, 1, 131072, "blocks"));
  const sum = blocks.reduce((a, b) => a + b, 0);
  if (sum !== coded) refuse("header", `blocks: they hold ${sum} records, the file has ${coded} coded records`);
  const sections = readSections(get("sections"), rungs.length, blocks.length, carried, start, limits);
  asId(get("generator"), [1], "generator", "generator");
  return {
    amplitudeSlope: asInteger(get("amplitude_slope"), -64, 64, "amplitude_slope"),
    blocks,
    config: get("config") === null ? null : asMap(get("config"), "config"),
    dialect,
    generator: "philox4x32-10",
    kinds,
    metadata: readMetadata(get("metadata"), limits),
    quantizers: quantizers.map((quantizer, at) => readQuantizer(quantizer, `quantizer ${at}`)),
    records,
    coded,
    carried,
    rungs: rungs.map(readRung),
    seed: readSeed(get("seed")),
    writer: asShortString(get("writer"), limits, "writer"),
    reference,
    base,
    ...sections,
  };
}

function readSeed(value: Value): bigint {
  if (typeof value === "bigint" && value >= 0n) return value;
  return BigInt(asInteger(value, 0, Number.MAX_SAFE_INTEGER, "seed"));
}

function readBase(value: Value, limits: Limits): Base {
  const [name, revision, fingerprint] = asTuple(value, 3, "base");
  return {
    name: asShortString(name, limits, "base: name"),
    revision: asShortString(revision, limits, "base: revision"),
    fingerprint: asBytes(fingerprint, 32, "base: fingerprint"),
  };
}

function readReference(value: Value, limits: Limits): Reference {
  const [sha256, files, gains, name] = asTuple(value, 4, "reference");
  const [b, a] = asTuple(gains, 2, "reference: gains");
  const text = asShortString(name, limits, "reference: name");
  if (/[/\\\0]/.test(text) || text === "." || text === "..") {
    refuse("header", "reference: the name must be that of a file, without a directory");
  }
  const count = asInteger(files, 0, 2 ** 31 - 1, "reference: files");
  checkLimit(limits, "referenceFiles", count, "reference: files");
  return {
    sha256: asBytes(sha256, 32, "reference: SHA-256"),
    files: count,
    gains: [asInteger(b, 0, 32767, "reference: gains"), asInteger(a, 0, 32767, "reference: gains")],
    name: text,
  };
}

function readKinds(value: Value, differences: boolean, limits: Limits): Kind[] {
  const items = asArray(value, "kinds");
  checkLimit(limits, "kinds", items.length, "kinds");
  const kinds = items.map((item, at) => readKind(item, differences, limits, `kind ${at}`));
  if (new Set(kinds.map(identityOf)).size < kinds.length) refuse("header", "kinds: two kinds are the same");
  return kinds;
}

function readRecords(map: ValueMap, kinds: Kind[], limits: Limits): Pick<Header, "records" | "coded" | "carried"> {
  const items = asArray(map.get("records"), "records");
  checkLimit(limits, "records", items.length, "records");
  const most = 1e9 - 1;
  const numbers = asArray(map.get("numbers"), "numbers").map((n) => asInteger(n, -most, most, "numbers"));
  const names = new NameReader(kinds.map((kind) => cutTemplate(kind.template)), numbers);
  const records: FileRecord[] = [];
  const known = new Set<string>();
  let [used, order, coded, carried, characters] = [0, 0, 0, 0, 0];
  for (const item of items) {
    const kindIndex = asInteger(item, 0, kinds.length - 1, "records");
    if (kindIndex > used) refuse("header", "kinds: they must stand in the order in which records first use them");
    if (kindIndex === used) used++;
    const kind = kinds[kindIndex]!;
    if (TYPE_ORDER[kind.type] < order) refuse("header", `records: a ${kind.type} record comes too late`);
    order = TYPE_ORDER[kind.type];
    if (isCoded(kind)) coded++;
    else if (kind.type === "carried") carried++;
    const name = names.next(kindIndex);
    const length = codePoints(name);
    checkLimit(limits, "nameLength", length, "name of a record");
    checkLimit(limits, "allNames", (characters += length), "names of all records");
    if (known.has(name)) refuse("header", `records: two have the name ${name}`);
    known.add(name);
    records.push({ name, kind, kindIndex, stream: records.length });
  }
  names.finish();
  if (used < kinds.length) refuse("header", `kinds: kind ${used} is not used`);
  const streams = map.get("streams")!;
  if (streams !== null) {
    asTuple(streams, coded, "streams").forEach((stream, at) => {
      records[at]!.stream = asInteger(stream, 0, 2 ** 31 - 1, "streams");
    });
  }
  return { records, coded, carried };
}

/** The work budget: what the header alone says about the memory and the time that decoding takes. */
function checkWork(
  kinds: Kind[],
  records: FileRecord[],
  coded: number,
  rungs: number,
  dialect: string,
  limits: Limits,
): void {
  const counts = kinds.map(() => 0);
  for (const { kindIndex } of records) counts[kindIndex]!++;
  let [elements, bytes, coefficients, dense, products] = [0, 0, 0, 0, 0];
  kinds.forEach((kind, at) => {
    const count = counts[at]!;
    if (!isCoded(kind)) {
      bytes += count * kind.bytes;
      return;
    }
    for (const side of kind.sides) {
      elements += count * side.elements;
      coefficients += count * side.vectors * side.k;
      if (kind.basis !== "hadamard") dense += count * side.vectors * side.k * side.n;
    }
    if (kind.type === "low-rank" && dialect === "delta") {
      products += count * (kind.sides[0]!.elements / kind.rank) * (kind.sides[1]!.elements / kind.rank);
    }
  });
  checkLimit(limits, "words", countWords(records), "header: words of the drawn records");
  checkLimit(limits, "recordsTimesRungs", coded * rungs, "header: coded records times rungs");
  checkLimit(limits, "allElements", elements + bytes, "header: elements and bytes of all records");
  checkLimit(limits, "elementsTimesRungs", (elements + bytes) * rungs, "header: elements and bytes times rungs");
  checkLimit(limits, "coefficients", coefficients * rungs, "header: coefficients times rungs");
  checkLimit(limits, "denseWork", dense * rungs, "header: work of the dense bases");
  checkLimit(limits, "products", products, "header: elements of the products");
}

/** Words of MT19937 that the drawn records take. One that repeats one of the two draws that were used last takes none. */
function countWords(records: readonly FileRecord[]): number {
  let words = 0;
  let latest: string[] = [];
  for (const { kind } of records) {
    if (kind.type !== "drawn") continue;
    const draw = drawOf(kind);
    if (!latest.includes(draw)) words += kind.start + kind.elements;
    latest = [draw, ...latest.filter((other) => other !== draw)].slice(0, 2);
  }
  return words;
}

function readMetadata(value: Value, limits: Limits): Record<string, string> {
  const entries = [...asMap(value, "metadata")].map(([key, item]) => {
    const text = asString(item, "metadata");
    checkLimit(limits, "metadataValue", codePoints(text), `metadata: ${key.slice(0, 40)}`);
    return [key, text] as const;
  });
  return Object.fromEntries(entries);
}

function readRung(value: Value, at: number): Rung {
  const [sha256, measured] = asTuple(value, 2, `rung ${at}`);
  const entries = [...asMap(measured, `rung ${at}: measured`)];
  return {
    sha256: asBytes(sha256, 32, `rung ${at}: decoded SHA-256`),
    measured: Object.fromEntries(entries.map(([key, item]) => [key, asFloat(item, `rung ${at}: ${key.slice(0, 40)}`)])),
  };
}

/** Reads the section table: units and blocks of rung 0, the carried tensors, then units and blocks of later rungs. */
function readSections(
  value: Value,
  rungs: number,
  blocks: number,
  carried: number,
  start: number,
  limits: Limits,
): Pick<Header, "rungSections" | "carriedSections" | "fileLength"> {
  const items = asArray(value, "sections");
  checkLimit(limits, "sections", items.length, "sections");
  const expected = rungs * (1 + blocks) + carried;
  if (items.length !== expected) refuse("header", `sections: expected ${expected}, found ${items.length}`);
  let at = 0;
  let offset = start;
  const next = (label: string): Section => {
    const [codec, length, crc] = asTuple(items[at++], 3, "sections");
    const section = {
      codec: asInt63(codec),
      length: asInt63(length),
      crc: asInteger(crc, 0, 2 ** 32 - 1, "sections: crc32"),
      offset,
      label,
    };
    offset += section.length;
    return section;
  };
  const rungSections: Header["rungSections"] = [];
  const carriedSections: Section[] = [];
  for (let rung = 0; rung < rungs; rung++) {
    const units = next(`units of rung ${rung}`);
    rungSections.push({ units, blocks: Array.from({ length: blocks }, (_, b) => next(`block ${b} of rung ${rung}`)) });
    if (rung > 0) continue;
    for (let c = 0; c < carried; c++) carriedSections.push(next(`carried tensor ${c}`));
  }
  return { rungSections, carriedSections, fileLength: offset };
}

/** A number below 2^63. Above 2^53 it may be rounded; such a file is refused for its length or its codec. */
function asInt63(value: Value | undefined): number {
  if (typeof value === "bigint" && value >= 0n && value < 2n ** 63n) return Number(value);
  return asInteger(value, 0, Number.MAX_SAFE_INTEGER, "sections");
}
