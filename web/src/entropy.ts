/** Entropy codecs of block sections: raw and rans. Symbols are read run by run. */

import { refuse } from "./errors.js";
import { checkLimit, type Limits } from "./limits.js";
import { type Quantizer, TOTAL } from "./quantizers.js";

/** Consecutive symbols of one model, which is that of a quantizer. */
export interface Run {
  quantizer: number;
  count: number;
}

/** Counts the steps of rans lanes of a file. */
export interface LaneBudget {
  steps: number;
}

const RAW = 0;
const RANS = 2;

/** Reads the symbols of a section. The runs must be asked for in their order. */
export class SymbolReader {
  private readonly packed: PackedSymbols;
  private readonly lanes: RansLanes | null;
  private readonly scratch: Uint16Array;
  /** The symbols that fill up the last row of lanes. */
  private readonly filling: Run = { quantizer: -1, count: 0 };
  private next = 0;

  constructor(
    codec: number,
    data: Uint8Array,
    private readonly runs: readonly Run[],
    private readonly quantizers: readonly Quantizer[],
    limits: Limits,
    budget: LaneBudget,
    where: string,
  ) {
    if (codec !== RAW && codec !== RANS) refuse("codec", `${where}: the codec ${codec} is unknown`);
    const withTable = (run: Run): boolean => codec === RANS && quantizers[run.quantizer]!.table !== null;
    const plain = runs.filter((run) => !withTable(run));
    this.packed = new PackedSymbols(plain, quantizers, where);
    if (codec === RAW && data.length !== this.packed.bytes) {
      refuse("symbols", `${where}: expected ${this.packed.bytes} bytes of symbols, found ${data.length}`);
    }
    if (data.length < this.packed.bytes) refuse("symbols", `${where}: the packed symbols are cut short`);
    this.packed.open(data.subarray(0, this.packed.bytes));
    this.lanes = null;
    if (codec === RANS) {
      let count = 0;
      let last = -1;
      for (const run of runs) {
        if (!withTable(run)) continue;
        count += run.count;
        last = run.quantizer;
      }
      const lanes = new RansLanes(data.subarray(this.packed.bytes), where);
      checkLimit(limits, "laneSteps", (budget.steps += Math.ceil(count / lanes.lanes)), `${where}: steps of lanes`);
      this.lanes = lanes;
      this.filling = { count: (lanes.lanes - (count % lanes.lanes)) % lanes.lanes, quantizer: last };
    }
    this.scratch = new Uint16Array(runs.reduce((most, run) => Math.max(most, run.count), 0));
  }

  /** The symbols of the next run, in an array that the next call uses again. */
  read(): Uint16Array {
    const { quantizer, count } = this.runs[this.next++]!;
    const target = this.scratch.subarray(0, count);
    const { table } = this.quantizers[quantizer]!;
    if (this.lanes !== null && table !== null) this.lanes.read(target, quantizer, table);
    else this.packed.read(target, quantizer);
    return target;
  }

  /** Checks that nothing is left. */
  finish(): void {
    if (this.lanes === null) return;
    const { count, quantizer } = this.filling;
    if (count > 0) this.lanes.read(new Uint16Array(count), quantizer, this.quantizers[quantizer]!.table!);
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
    runs: readonly Run[],
    quantizers: readonly Quantizer[],
    private readonly where: string,
  ) {
    const counts = new Map<number, number>();
    for (const { quantizer, count } of runs) counts.set(quantizer, (counts.get(quantizer) ?? 0) + count);
    let bytes = 0;
    for (const [quantizer, count] of [...counts].sort(([a], [b]) => a - b)) {
      const { size } = quantizers[quantizer]!;
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
