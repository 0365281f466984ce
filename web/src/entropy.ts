/** Entropy codecs of block sections: raw and rans. Symbols are read run by run. */

import { refuse } from "./errors.js";
import { checkLimit, type Limits } from "./limits.js";
import { countSymbols, type Quantizer, TOTAL } from "./quantizers.js";

/** The symbols of a section by quantizer, and how they end. A run is the symbols of one layer. */
export class RunCounts {
  /** By quantizer the number of symbols. */
  readonly symbols = new Map<number, number>();
  /** Symbols of the longest run. */
  longest = 0;
  /** Symbols of quantizers with a table, and the last of these quantizers. */
  tabled = 0;
  lastTabled = -1;

  constructor(readonly quantizers: readonly Quantizer[]) {}

  /** Counts the run that k coefficients take. */
  add(quantizer: number, k: number): void {
    const count = countSymbols(this.quantizers[quantizer]!, k);
    this.symbols.set(quantizer, (this.symbols.get(quantizer) ?? 0) + count);
    this.longest = Math.max(this.longest, count);
    if (this.quantizers[quantizer]!.table === null) return;
    this.tabled += count;
    this.lastTabled = quantizer;
  }
}

/** Counts the steps of rans lanes of a file. */
export interface LaneBudget {
  steps: number;
}

const RAW = 0;
const RANS = 2;

/** Reads the symbols of a section, run by run. */
export class SymbolReader {
  private readonly packed: PackedSymbols;
  private readonly lanes: RansLanes | null = null;
  private readonly scratch: Uint16Array;

  constructor(
    codec: number,
    data: Uint8Array,
    private readonly runs: RunCounts,
    limits: Limits,
    budget: LaneBudget,
    where: string,
  ) {
    if (codec !== RAW && codec !== RANS) refuse("codec", `${where}: the codec ${codec} is unknown`);
    this.packed = new PackedSymbols(runs, codec === RANS, where);
    const { bytes } = this.packed;
    if (codec === RAW ? data.length !== bytes : data.length < bytes) {
      refuse("symbols", `${where}: expected ${bytes} bytes of packed symbols, found ${data.length}`);
    }
    this.packed.open(data.subarray(0, bytes));
    if (codec === RANS) {
      this.lanes = new RansLanes(data.subarray(bytes), where);
      budget.steps += Math.ceil(runs.tabled / this.lanes.lanes);
      checkLimit(limits, "laneSteps", budget.steps, `${where}: steps of lanes`);
    }
    this.scratch = new Uint16Array(runs.longest);
  }

  /** The symbols of the next run, which k coefficients take, in an array that the next call uses again. */
  read(quantizer: number, k: number): Uint16Array {
    const model = this.runs.quantizers[quantizer]!;
    const target = this.scratch.subarray(0, countSymbols(model, k));
    if (this.lanes !== null && model.table !== null) this.lanes.read(target, quantizer, model.table);
    else this.packed.read(target, quantizer);
    return target;
  }

  /** Checks that nothing is left. */
  finish(): void {
    if (this.lanes === null) return;
    const { tabled, lastTabled, quantizers } = this.runs;
    // Symbols that fill up the last row of lanes are thrown away.
    const filling = (this.lanes.lanes - (tabled % this.lanes.lanes)) % this.lanes.lanes;
    if (filling > 0) this.lanes.read(new Uint16Array(filling), lastTabled, quantizers[lastTabled]!.table!);
    this.lanes.finish();
  }
}

/** Symbols packed at fixed widths, those of each model together, the least significant bit first. */
class PackedSymbols {
  /** Bytes that all models take. */
  readonly bytes: number;
  private data: Uint8Array = new Uint8Array(0);
  /** By quantizer: the width of a symbol, and the bit at which the next symbol begins. */
  private readonly models = new Map<number, { width: number; bit: number; size: number; end: number }>();

  constructor(
    { symbols, quantizers }: RunCounts,
    withoutTables: boolean,
    private readonly where: string,
  ) {
    let bytes = 0;
    for (const [quantizer, count] of [...symbols].sort(([a], [b]) => a - b)) {
      const { size, table } = quantizers[quantizer]!;
      if (withoutTables && table !== null) continue;
      const width = Math.max(1, 32 - Math.clz32(size - 1));
      this.models.set(quantizer, { width, bit: 8 * bytes, size, end: 8 * bytes + count * width });
      bytes += Math.ceil((count * width) / 8);
    }
    this.bytes = bytes;
  }

  /** Takes the bytes and checks that the unused bits are zero. */
  open(data: Uint8Array): void {
    this.data = data;
    for (const { end } of this.models.values()) {
      if (end % 8 !== 0 && data[Math.floor(end / 8)]! >> (end % 8) !== 0) {
        refuse("symbols", `${this.where}: unused bits of packed symbols are not zero`);
      }
    }
  }

  read(target: Uint16Array, quantizer: number): void {
    const model = this.models.get(quantizer)!;
    const { width, size } = model;
    const { data } = this;
    const mask = (1 << width) - 1;
    let bit = model.bit;
    let largest = 0;
    for (let i = 0; i < target.length; i++, bit += width) {
      const byte = Math.floor(bit / 8);
      const word = data[byte]! | ((data[byte + 1] ?? 0) << 8) | ((data[byte + 2] ?? 0) << 16);
      const symbol = (word >>> (bit & 7)) & mask;
      target[i] = symbol;
      if (symbol > largest) largest = symbol;
    }
    model.bit = bit;
    if (largest >= size) refuse("symbols", `${this.where}: the symbol ${largest} is not below ${size}`);
  }
}

/** rANS: lanes that take turns, and share a stream of 16-bit words. */
class RansLanes {
  readonly lanes: number;
  private readonly states: Uint32Array;
  private readonly words: Uint16Array;
  private word = 0;
  private lane = 0;
  /** By quantizer: for each slot the symbol, its frequency, and the slot's place within the symbol. */
  private readonly tables = new Map<number, SlotTable>();

  constructor(
    data: Uint8Array,
    private readonly where: string,
  ) {
    const log = data[0];
    if (log === undefined || log > 12) refuse("symbols", `${where}: the number of rans lanes is missing or wrong`);
    this.lanes = 2 ** log;
    const start = 1 + 4 * this.lanes;
    if (data.length < start || (data.length - start) % 2 !== 0) {
      refuse("symbols", `${where}: the rans states are cut short, or the words are not whole`);
    }
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    this.states = Uint32Array.from({ length: this.lanes }, (_, lane) => view.getUint32(1 + 4 * lane, true));
    this.words = new Uint16Array((data.length - start) / 2);
    for (let i = 0, at = start; i < this.words.length; i++, at += 2) this.words[i] = data[at]! | (data[at + 1]! << 8);
  }

  read(target: Uint16Array, quantizer: number, frequencies: Uint16Array): void {
    let table = this.tables.get(quantizer);
    if (table === undefined) this.tables.set(quantizer, (table = makeSlotTable(frequencies)));
    const { symbols, frequency, place } = table;
    const { states, words } = this;
    const mask = this.lanes - 1;
    let { lane, word } = this;
    for (let i = 0; i < target.length; i++) {
      const x = states[lane]!;
      const slot = x & (TOTAL - 1);
      target[i] = symbols[slot]!;
      let y = (Math.imul(frequency[slot]!, x >>> 12) + place[slot]!) >>> 0;
      if (y < 65536) {
        if (word >= words.length) refuse("symbols", `${this.where}: the rans words run out`);
        y = ((y << 16) | words[word++]!) >>> 0;
      }
      states[lane] = y;
      lane = (lane + 1) & mask;
    }
    this.lane = lane;
    this.word = word;
  }

  finish(): void {
    if (this.word !== this.words.length || this.states.some((state) => state !== 65536)) {
      refuse("symbols", `${this.where}: rans words are left over, or a state at the end is not 2^16`);
    }
  }
}

interface SlotTable {
  symbols: Uint8Array;
  frequency: Uint16Array;
  place: Uint16Array;
}

function makeSlotTable(frequencies: Uint16Array): SlotTable {
  const table = { symbols: new Uint8Array(TOTAL), frequency: new Uint16Array(TOTAL), place: new Uint16Array(TOTAL) };
  let slot = 0;
  frequencies.forEach((count, symbol) => {
    for (let place = 0; place < count; place++, slot++) {
      table.symbols[slot] = symbol;
      table.frequency[slot] = count;
      table.place[slot] = place;
    }
  });
  return table;
}
