/** The header of a file as texts and numbers for the page. */

import { Float, type NolaFile, type Section, type Value } from "../src/index.js";
import { hex } from "../src/sha256.js";
import type { Share, Summary } from "./messages.js";

export function summarize(name: string, file: NolaFile): Summary {
  const { header, prelude } = file;
  const types = { "low-rank": 0, vector: 0, carried: 0, drawn: 0 };
  for (const { kind } of header.records) types[kind.type]++;
  const facts: [string, string][] = [
    ["Format", `version ${prelude.version}, revision ${prelude.revision}`],
    ["Written by", header.writer],
    ["Dialect", header.dialect],
    ["Records", `${types["low-rank"]} low-rank, ${types.vector} vectors, ${types.carried} carried, ${types.drawn} drawn`],
    ["Generator", `${header.generator}, seed ${header.seed}`],
    ["Rungs", String(header.rungs.length)],
    ["Content SHA-256", hex(prelude.contentSha256)],
  ];
  if (header.reference !== null) {
    const { name: earlier, sha256 } = header.reference;
    facts.push(["Coded against", `${earlier || "an earlier version"}, decoded SHA-256 ${hex(sha256)}`]);
  }
  if (header.base !== null) {
    const { name: base, revision, fingerprint } = header.base;
    facts.push(["Base model", `${[base, revision].filter(Boolean).join(", revision ")}, fingerprint ${hex(fingerprint)}`]);
  }
  const start = 38 + prelude.stored;
  let end = start + sum(header.carriedSections);
  const measured = header.rungs.map((rung, at) => {
    const { units, blocks } = header.rungSections[at]!;
    end += units.length + sum(blocks);
    return { bytes: end, values: Object.entries(rung.measured) };
  });
  return {
    name,
    size: file.size,
    facts,
    shares: sharesOf(file),
    measured,
    tensors: file.tensors,
    metadata: Object.entries(header.metadata),
    config: header.config === null ? null : JSON.stringify(toJson(header.config), null, 2),
  };
}

const sum = (sections: readonly Section[]): number => sections.reduce((bytes, { length }) => bytes + length, 0);

/** Where the bytes of the file go. */
function sharesOf({ header, prelude }: NolaFile): Share[] {
  const shares = [
    { label: "Prelude", bytes: 38 },
    { label: "Header", bytes: prelude.stored },
    { label: "Units", bytes: sum(header.rungSections.map(({ units }) => units)) },
    { label: "Coefficients", bytes: sum(header.rungSections.flatMap(({ blocks }) => blocks)) },
    { label: "Carried tensors", bytes: sum(header.carriedSections) },
  ];
  return shares.filter(({ bytes }) => bytes > 0);
}

/** A value as JSON knows it; bytes become hexadecimal digits. */
function toJson(value: Value): unknown {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, toJson(item)]));
  if (Array.isArray(value)) return value.map(toJson);
  if (value instanceof Uint8Array) return hex(value);
  if (value instanceof Float) return Number.isFinite(value.value) ? value.value : String(value.value);
  return typeof value === "bigint" ? String(value) : value;
}
