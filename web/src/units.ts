/** Units sections: for each rung its allocation tables, and the unit counts, exponents, precisions and amplitudes. */

import { refuse } from "./errors.js";
import { hadamardBlock } from "./hadamard.js";
import type { Header } from "./header.js";
import { IntegerReader } from "./integers.js";
import { isCoded, type LowRankKind, type VectorKind } from "./kinds.js";
import { checkLimit, type Limits } from "./limits.js";
import { MANTISSAS } from "./mantissas.js";

/** Roles of the integers of a units section. To that of a starting amplitude a quantizer is added, or -1. */
const ROLE = {
  rows: 0, rowPrecision: 1, rowQuantizer: 2, rowWeight: 3, count: 4, exponent: 7,
  precision: 8, laterAmplitude: 11, table: 12, shift: 13, kindAmplitude: 14, startingAmplitude: 16,
} as const;

/** A row of an allocation table. */
interface Row {
  /** Least precision, after the kind's shift, that the row is for. */
  precision: number;
  /** Index of a quantizer, or -1 for no layer. */
  quantizer: number;
  /** The integer that the layer's points are multiplied by. */
  weight: number;
}

/** What one rung adds to the coefficients of one vector. */
export interface Layer {
  quantizer: number;
  weight: number;
}

/** What the units sections say about a coded kind. */
interface KindUnits {
  tables: number[];
  shifts: number[];
  amplitude: number;
}

/** A coded record and its units at the rungs read so far. */
export interface CodedRecord {
  readonly kind: LowRankKind | VectorKind;
  readonly kindIndex: number;
  /** Number of units at the latest rung. */
  count: number;
  /** For each unit the rung at which it starts. */
  readonly starts: number[];
  readonly precisions: number[];
  readonly amplitudes: number[];
  /** Exponent of each side at the latest rung. */
  readonly exponents: number[];
  /** For each side and each unit the sum over the layers of the weight times the largest point. */
  readonly peaks: number[][];
}

/** The sides that a unit has: in the component form all of them, else one. */
export function sidesOfUnit(kind: LowRankKind | VectorKind, unit: number): readonly number[] {
  if (kind.form === "component") return kind.sides.length === 2 ? [0, 1] : [0];
  return kind.form === "factor" ? [unit] : [unit < kind.rank ? 0 : 1];
}

/** The units of a side, of those that the record has: the first one, and the one after the last. */
export function unitsOfSide({ kind, count }: CodedRecord, side: number): [number, number] {
  if (kind.form === "component" || count === 0) return [0, count];
  const half = count / 2;
  return [side * half, (side + 1) * half];
}

/** Reads the units sections of a file, which must come in the order of the rungs. */
export class UnitsReader {
  readonly records: CodedRecord[];
  private readonly kinds: KindUnits[] = [];
  /** Allocation tables by rung and number. */
  private readonly tables: Row[][][] = [];
  private allUnits = 0;
  private allLookUps = 0;

  constructor(
    private readonly header: Header,
    private readonly limits: Limits,
  ) {
    this.records = header.records.slice(0, header.coded).map(({ kind, kindIndex }) => {
      const coded = kind as LowRankKind | VectorKind;
      return {
        kind: coded,
        kindIndex,
        count: 0,
        starts: [],
        precisions: [],
        amplitudes: [],
        exponents: coded.sides.map(() => 0),
        peaks: coded.sides.map(() => []),
      };
    });
  }

  /** Reads the units section of the next rung, and checks that no sum can become too large. */
  readRung(data: Uint8Array): void {
    const rung = this.tables.length;
    const where = `units of rung ${rung}`;
    const input = new IntegerReader(data, where);
    const value = (role: number, prediction: number, low: number, high: number, what: string): number => {
      const found = prediction + input.read(role);
      return found < low || found > high ? refuse("units", `${where}: ${what} ${found} is not ${low} to ${high}`) : found;
    };
    if (rung === 0) this.readKinds(value);
    this.tables.push(this.readTables(value, where));
    this.readCounts(value, rung, where);
    const exponents = [0, 0];
    for (const record of this.records) {
      for (let side = 0; side < record.exponents.length; side++) {
        exponents[side] = value(ROLE.exponent, exponents[side]!, -120, 100, "exponent");
        record.exponents[side] = exponents[side]!;
      }
    }
    this.readPrecisions(input);
    this.readAmplitudes(value, rung);
    input.finish();
    for (const [at, record] of this.records.entries()) this.checkBound(record, rung, at);
  }

  /** Calls `use` with each layer that a rung brings to the vector of a unit on a side, in order. */
  eachLayer(record: CodedRecord, side: number, unit: number, rung: number, use: (layer: Layer) => void): void {
    for (let r = record.starts[unit] === rung ? 0 : rung; r <= rung; r++) {
      const row = this.row(record, side, unit, r);
      if (row.quantizer >= 0) use(row);
    }
  }

  private row({ kindIndex, precisions }: CodedRecord, side: number, unit: number, rung: number): Row {
    const kind = this.kinds[kindIndex]!;
    const rows = this.tables[rung]![kind.tables[side]!]!;
    const precision = precisions[unit]! + kind.shifts[side]!;
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle]!.precision <= precision) low = middle + 1;
      else high = middle;
    }
    return rows[low - 1] ?? refuse("units", `units of rung ${rung}: there is no row for the precision ${precision}`);
  }

  private readKinds(value: ReadValue): void {
    const tables = [0, 0];
    const shifts = [0, 0];
    let amplitude = 0;
    for (const kind of this.header.kinds) {
      if (!isCoded(kind)) continue;
      for (let s = 0; s < kind.sides.length; s++) tables[s] = value(ROLE.table, tables[s]!, 0, 255, "table");
      for (let s = 0; s < kind.sides.length; s++) shifts[s] = value(ROLE.shift, shifts[s]!, -1023, 1023, "shift");
      amplitude = value(ROLE.kindAmplitude, amplitude, -16384, 16384, "amplitude of a kind");
      const sides = kind.sides.length;
      this.kinds.push({ tables: tables.slice(0, sides), shifts: shifts.slice(0, sides), amplitude });
    }
  }

  private readTables(value: ReadValue, where: string): Row[][] {
    const count = this.kinds.length === 0 ? 0 : 1 + Math.max(...this.kinds.flatMap((kind) => kind.tables));
    const most = this.header.quantizers.length - 1;
    let all = 0;
    return Array.from({ length: count }, () => {
      const number = value(ROLE.rows, 0, 0, Infinity, "number of rows");
      checkLimit(this.limits, "rows", (all += number), `${where}: rows`);
      let [precision, quantizer, weight] = [-1, -1, 0];
      return Array.from({ length: number }, (_, at) => {
        const low = at > 0 ? precision + 1 : -16384;
        precision = value(ROLE.rowPrecision, precision + 1, low, 16384, "precision of a row");
        quantizer = value(ROLE.rowQuantizer, quantizer + 1, -1, most, "quantizer of a row");
        weight = value(ROLE.rowWeight, weight, 0, 127, "weight of a row");
        return { precision, quantizer, weight: weightOf(weight) };
      });
    });
  }

  private readCounts(value: ReadValue, rung: number, where: string): void {
    const counts = new Map<number, number>();
    for (const record of this.records) {
      const { kind, kindIndex } = record;
      const prediction = rung > 0 ? record.count : (counts.get(kindIndex) ?? 0);
      const most = kind.form === "component" ? kind.rank : kind.form === "factor" ? 2 : 2 * kind.rank;
      const count = value(ROLE.count + Math.min(2, prediction), prediction, record.count, most, "unit count");
      if (kind.form !== "component" && count !== 0 && count !== most) {
        refuse("units", `${where}: unit count ${count} is not 0 or ${most}`);
      }
      counts.set(kindIndex, count);
      checkLimit(this.limits, "units", (this.allUnits += count), `${where}: units`);
      // A unit that starts looks up a row of each rung so far, and another one of this rung.
      const sides = kind.form === "component" ? kind.sides.length : 1;
      this.allLookUps += sides * ((count - record.count) * (rung + 1) + record.count);
      checkLimit(this.limits, "lookUps", this.allLookUps, `${where}: rows that units look up`);
      for (let unit = record.count; unit < count; unit++) record.starts.push(rung);
      record.count = count;
    }
  }

  private readPrecisions(input: IntegerReader): void {
    // By kind the latest record that has units at this rung, and the latest of all kinds.
    const latest = new Map<number, CodedRecord>();
    let latestOfAll: CodedRecord | null = null;
    for (const record of this.records) {
      if (record.count === 0) continue;
      const same = latest.get(record.kindIndex);
      for (let unit = record.precisions.length; unit < record.count; unit++) {
        let prediction: number;
        if (record.kind.form === "component" && unit > 0) prediction = record.precisions[unit - 1]!;
        else prediction = same?.precisions[unit] ?? latestOfAll?.precisions[0] ?? 128;
        const number = input.read(ROLE.precision + Math.min(2, unit));
        record.precisions.push((((prediction + number) % 256) + 256) % 256);
      }
      latest.set(record.kindIndex, record);
      latestOfAll = record;
    }
  }

  private readAmplitudes(value: ReadValue, rung: number): void {
    for (const record of this.records) {
      for (let unit = 0; unit < record.count; unit++) {
        const starts = record.starts[unit] === rung;
        const sides = sidesOfUnit(record.kind, unit);
        let layers = 0;
        for (const side of sides) {
          let peak = starts ? 0 : record.peaks[side]![unit]!;
          for (let r = starts ? 0 : rung; r <= rung; r++) {
            const row = this.row(record, side, unit, r);
            if (row.quantizer < 0) continue;
            layers++;
            peak += row.weight * this.header.quantizers[row.quantizer]!.largest;
          }
          record.peaks[side]![unit] = peak;
        }
        if (starts) {
          const { amplitude } = this.kinds[record.kindIndex]!;
          const prediction = amplitude + this.header.amplitudeSlope * record.precisions[unit]!;
          const role = ROLE.startingAmplitude + this.row(record, sides[0]!, unit, rung).quantizer;
          record.amplitudes.push(value(role, prediction, -4096, 4095, "amplitude"));
        } else if (layers > 0) {
          record.amplitudes[unit] = value(ROLE.laterAmplitude, record.amplitudes[unit]!, -4096, 4095, "amplitude");
        }
      }
    }
  }

  /** Checks that sums of a record fit 46 bits, so that they can be scaled exactly. */
  private checkBound({ kind, peaks }: CodedRecord, rung: number, at: number): void {
    let peak = 0;
    for (const side of peaks) for (const own of side) if (own > peak) peak = own;
    const bounds = kind.sides.map(({ n, k }) => {
      if (kind.basis === "hadamard") {
        const { block, passes } = hadamardBlock(n);
        return peak * block ** passes;
      }
      return kind.basis === "rademacher" ? peak * k : peak * k * 2 ** 15;
    });
    if (peak >= 2 ** 31 || bounds.some((bound) => bound >= 2 ** 46)) {
      refuse("bound", `rung ${rung}: sums of ${this.header.records[at]!.name} may be too large to scale exactly`);
    }
  }
}

type ReadValue = (role: number, prediction: number, low: number, high: number, what: string) => number;

/** The integer that the weight of a row stands for. */
export function weightOf(weight: number): number {
  return Math.floor((MANTISSAS[4 * (weight % 8)]! * 2 ** (weight >> 3)) / 2 ** 15);
}
