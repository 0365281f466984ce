/** What the tests share. */

import { readFileSync } from "node:fs";

/** The repository, from which the tests read the files that every reader must decode. */
export const ROOT = new URL("../../", import.meta.url);

export const read = (path) => new Uint8Array(readFileSync(new URL(path, ROOT)));
export const readJson = (path) => JSON.parse(readFileSync(new URL(path, ROOT), "utf8"));

/** The conformance kit of the specification. */
export const KIT = "spec/conformance/";
export const GOLDEN = `${KIT}valid/`;
/** What the kit says of the files that an encoder made, by name: those of `valid/` that are not random and not signed. */
export const MANIFEST = Object.fromEntries(
  readJson(`${KIT}files.json`)
    .valid.map((entry) => [entry.file.replace(/^valid\/|\.nola$/g, ""), entry.rungs.at(-1)])
    .filter(([name]) => !/^(random-|signed)/.test(name)),
);
export const golden = (name) => read(`${GOLDEN}${name}.nola`);

/** A predicate for assert.rejects and assert.throws: a NolaError of this code. */
export const refusedFor = (code) => (error) => error.name === "NolaError" && error.code === code;

/** Pseudo-random numbers of 32 bits for the tests (mulberry32), the same in each run. */
export function randomWords(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  };
}

/** Known answers of tests/kat. Seeds may have 64 bits, so they come as strings of digits. */
export function readAnswers(name) {
  const text = readFileSync(new URL(`tests/kat/${name}.json`, ROOT), "utf8");
  return JSON.parse(text.replace(/"seed": (\d+)/g, '"seed": "$1"'));
}
