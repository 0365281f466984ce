/** The sequences section of a compressed zstd block: copies of literals and of what came before. */

import { refuse } from "../errors.js";
import { BackwardBits, type FseTable, makeFseTable, readFseTable } from "./bits.js";
import type { FrameState } from "./frame.js";

/** Tables that a later block may repeat, and the three latest offsets. */
export interface SequenceTables {
  tables: [FseTable | null, FseTable | null, FseTable | null];
  offsets: [number, number, number];
}

export function newSequenceTables(): SequenceTables {
  return { tables: [null, null, null], offsets: [1, 4, 8] };
}

const LITERAL_BITS = [...Array<number>(16).fill(0), 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const MATCH_BITS = [
  ...Array<number>(32).fill(0),
  ...[1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
];
const LITERAL_BASES = bases(LITERAL_BITS, 0);
const MATCH_BASES = bases(MATCH_BITS, 3);

/** Each code begins where the one before it ends. */
function bases(bits: readonly number[], first: number): number[] {
  let base = first;
  return bits.map((width) => {
    const own = base;
    base += 2 ** width;
    return own;
  });
}

const DEFAULT_TABLES: [FseTable, FseTable, FseTable] = [
  makeFseTable(
    [
      4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
    ],
    6,
  ),
  makeFseTable([1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1], 5),
  makeFseTable(
    [
      1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
      1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
    6,
  ),
];
/** Of literal lengths, offsets and match lengths: the largest table, and the largest code. */
const MAX_LOGS = [9, 8, 9];
const MAX_CODES = [35, 31, 52];

/** Decodes the sequences of a block and writes what they and the literals make to the output. */
export function decodeSequences(data: Uint8Array, literals: Uint8Array, state: FrameState, where: string): void {
  const damaged = (): never => refuse("zstd", `${where}: the sequences of a zstd block are damaged`);
  const first = data[0];
  if (first === undefined) return damaged();
  let count = first;
  let at = 1;
  if (first === 255) {
    if (data.length < 3) damaged();
    count = data[1]! + (data[2]! << 8) + 0x7f00;
    at = 3;
  } else if (first >= 128) {
    if (data.length < 2) damaged();
    count = ((first - 128) << 8) + data[1]!;
    at = 2;
  }
  const { output } = state;
  let literal = 0;
  let end = state.end;
  if (count > 0) {
    const modes = data[at++];
    if (modes === undefined || modes & 3) damaged();
    const used = state.tables.tables;
    for (let i = 0; i < 3; i++) {
      const mode = (modes! >> (6 - 2 * i)) & 3;
      if (mode === 0) {
        used[i] = DEFAULT_TABLES[i]!;
      } else if (mode === 1) {
        const code = data[at++];
        if (code === undefined || code > MAX_CODES[i]!) damaged();
        used[i] = { log: 0, symbols: Uint8Array.of(code!), bits: new Uint8Array(1), bases: new Uint16Array(1) };
      } else if (mode === 2) {
        const made = readFseTable(data.subarray(at), MAX_LOGS[i]!, MAX_CODES[i]!, where);
        used[i] = made.table;
        at += made.length;
      }
    }
    const [lengths, offsets, matches] = used;
    if (lengths === null || offsets === null || matches === null) return damaged();
    const input = new BackwardBits(data.subarray(at), where);
    let lengthState = input.read(lengths.log);
    let offsetState = input.read(offsets.log);
    let matchState = input.read(matches.log);
    const recent = state.tables.offsets;
    for (let i = 0; i < count; i++) {
      const offsetCode = offsets.symbols[offsetState]!;
      const matchCode = matches.symbols[matchState]!;
      const lengthCode = lengths.symbols[lengthState]!;
      const value = 2 ** offsetCode + input.read(offsetCode);
      const match = MATCH_BASES[matchCode]! + input.read(MATCH_BITS[matchCode]!);
      const run = LITERAL_BASES[lengthCode]! + input.read(LITERAL_BITS[lengthCode]!);
      const offset = takeOffset(recent, value, run === 0);
      if (i + 1 < count) {
        lengthState = lengths.bases[lengthState]! + input.read(lengths.bits[lengthState]!);
        matchState = matches.bases[matchState]! + input.read(matches.bits[matchState]!);
        offsetState = offsets.bases[offsetState]! + input.read(offsets.bits[offsetState]!);
      }
      if (input.left < 0 || literal + run > literals.length || end + run + match > output.length) damaged();
      output.set(literals.subarray(literal, literal + run), end);
      literal += run;
      end += run;
      if (offset <= 0 || offset > end) damaged();
      if (offset >= match) {
        output.copyWithin(end, end - offset, end - offset + match);
        end += match;
      } else {
        for (const stop = end + match; end < stop; end++) output[end] = output[end - offset]!;
      }
    }
    if (input.left !== 0) damaged();
  } else if (at !== data.length) {
    damaged();
  }
  const rest = literals.subarray(literal);
  if (end + rest.length > output.length) damaged();
  output.set(rest, end);
  state.end = end + rest.length;
}

/** The offset that a value stands for: 1 to 3 are the latest offsets, in an order that depends on the literals. */
function takeOffset(recent: [number, number, number], value: number, noLiterals: boolean): number {
  let offset: number;
  if (value > 3) {
    offset = value - 3;
  } else {
    const index = value - (noLiterals ? 0 : 1);
    if (index === 0) return recent[0];
    offset = index === 3 ? recent[0] - 1 : recent[index]!;
    if (index === 1) {
      recent[1] = recent[0];
      recent[0] = offset;
      return offset;
    }
  }
  recent[2] = recent[1];
  recent[1] = recent[0];
  recent[0] = offset;
  return offset;
}
