/** The whole decoder: rung by rung, it turns sections into records. */

import { readCarriedTensor } from "./carried.js";
import { synthesizeSide } from "./bases.js";
import { type DecodedCarried, type DecodedCoded, type DecodedRecord, hashRecord } from "./decoded.js";
import { type LaneBudget, type Run, SymbolReader } from "./entropy.js";
import { refuse } from "./errors.js";
import { makeScale, scaleVector } from "./factors.js";
import type { Header, Section } from "./header.js";
import type { CarriedKind } from "./kinds.js";
import type { Limits } from "./limits.js";
import { addLayer, countSymbols } from "./quantizers.js";
import { addReference } from "./references.js";
import { hex, Sha256 } from "./sha256.js";
import { type CodedRecord, type Layer, UnitsReader, unitsOfSide } from "./units.js";

/** What the decoder needs from outside. */
export interface DecoderInput {
  header: Header;
  limits: Limits;
  /** The bytes of a section, whose CRC-32 was checked. */
  readSection(section: Section): Promise<Uint8Array>;
  /** Records of the reference by name, if the file has one. */
  earlier: ReadonlyMap<string, DecodedRecord> | null;
  /** Called after each record; it may throw, and it may wait. */
  step(): Promise<void> | void;
}

/** The records of a rung, in order, and their SHA-256. */
export interface DecodedRung {
  records: DecodedRecord[];
  sha256: Uint8Array;
}

/** Decodes rungs 0, 1, ... one after the other. */
export class Decoder {
  private readonly units: UnitsReader;
  private readonly budget: LaneBudget = { steps: 0 };
  private rung = 0;
  /** By coded record, side and unit: the coefficients so far. They are kept while rungs may follow. */
  private readonly coefficients: Map<number, Int32Array>[][];
  private carried: DecodedCarried[] | null = null;

  constructor(private readonly input: DecoderInput) {
    this.units = new UnitsReader(input.header, input.limits);
    this.coefficients = this.units.records.map(({ kind }) => kind.sides.map(() => new Map()));
  }

  /** Reads the next rung without computing what it decodes to. */
  async skip(): Promise<void> {
    await this.readRung(false, false);
  }

  /** Decodes the next rung and checks its decoded SHA-256. `last` says that no further rung will be asked for. */
  async decode(last: boolean): Promise<DecodedRung> {
    const rung = this.rung;
    const coded = await this.readRung(true, last);
    const records: DecodedRecord[] = [...coded, ...(await this.readCarried())];
    const hash = new Sha256();
    for (const record of records) hashRecord(hash, record);
    const sha256 = hash.digest();
    const expected = this.input.header.rungs[rung]!.sha256;
    if (hex(sha256) !== hex(expected)) {
      refuse(
        "factors-checksum",
        `rung ${rung}: expected the decoded SHA-256 ${hex(expected)}, computed ${hex(sha256)}; the file was made wrongly`,
      );
    }
    return { records, sha256 };
  }

  private async readRung(wanted: boolean, last: boolean): Promise<DecodedCoded[]> {
    const { header, readSection } = this.input;
    const rung = this.rung++;
    const { units, blocks } = header.rungSections[rung]!;
    if (units.codec !== 3) refuse("codec", `${units.label}: the codec ${units.codec} is unknown here`);
    this.units.readRung(await readSection(units));
    const decoded: DecodedCoded[] = [];
    let first = 0;
    for (const [block, section] of blocks.entries()) {
      const stop = first + header.blocks[block]!;
      const layers = this.units.records
        .slice(first, stop)
        .map((record) => record.kind.sides.map((_, side) => this.layersOfSide(record, side, rung)));
      const symbols = this.openBlock(section, await readSection(section), layers, first);
      for (let at = first; at < stop; at++) {
        this.addLayers(at, layers[at - first]!, symbols);
        if (wanted) decoded.push(this.synthesize(at, rung));
        if (last) this.coefficients[at]!.forEach((side) => side.clear());
        await this.input.step();
      }
      symbols.finish();
      first = stop;
    }
    return decoded;
  }

  /** The layers that a rung brings to each unit of a side, with the numbers of the units. */
  private layersOfSide(record: CodedRecord, side: number, rung: number): [number, Layer[]][] {
    const [first, stop] = unitsOfSide(record, side);
    return Array.from({ length: stop - first }, (_, at) => {
      const unit = first + at;
      return [unit, this.units.layers(record, side, unit, rung)];
    });
  }

  private openBlock(section: Section, data: Uint8Array, layers: [number, Layer[]][][][], first: number): SymbolReader {
    const { header, limits } = this.input;
    const runs: Run[] = [];
    layers.forEach((sides, at) => {
      sides.forEach((units, side) => {
        const { k } = this.units.records[first + at]!.kind.sides[side]!;
        for (const [, added] of units) {
          for (const { quantizer } of added) {
            runs.push({ quantizer, count: countSymbols(header.quantizers[quantizer]!, k) });
          }
        }
      });
    });
    return new SymbolReader(section.codec, data, runs, header.quantizers, limits, this.budget, section.label);
  }

  private addLayers(at: number, sides: [number, Layer[]][][], symbols: SymbolReader): void {
    const { kind } = this.units.records[at]!;
    sides.forEach((units, side) => {
      const known = this.coefficients[at]![side]!;
      for (const [unit, layers] of units) {
        if (layers.length === 0) continue;
        let q = known.get(unit);
        if (q === undefined) known.set(unit, (q = new Int32Array(kind.sides[side]!.k)));
        for (const { quantizer, weight } of layers) {
          addLayer(this.input.header.quantizers[quantizer]!, weight, symbols.read(), q);
        }
      }
    });
  }

  /** Makes the integers of a record from its coefficients. */
  private synthesize(at: number, rung: number): DecodedCoded {
    const { header, earlier } = this.input;
    const record = this.units.records[at]!;
    const { name, stream } = header.records[at]!;
    const { kind } = record;
    const values = kind.sides.map((side, index) => {
      const out = new Int16Array(side.elements);
      const code = kind.type === "vector" || kind.form === "difference" ? 2 : 1;
      const exponent = record.exponents[index]!;
      const [first, stop] = unitsOfSide(record, index);
      const scales = record.amplitudes
        .slice(first, stop)
        .map((amplitude) => makeScale(code * amplitude, exponent, `rung ${rung}: ${name}`));
      const known = [...this.coefficients[at]![index]!].sort(([a], [b]) => a - b);
      const sequences = { generator: header.generator, seed: header.seed, t: 2 * stream + index };
      // Vectors of lora_B are columns, those of lora_A are rows; one vector alone is the whole side.
      const columns = index === 0 && side.vectors > 1;
      synthesizeSide(kind.basis, sequences, side, known.map(([, q]) => q), (y, vector) => {
        const place = known[vector]![0] - first;
        const [start, stride] = columns ? [place, side.vectors] : [place * side.n, 1];
        scaleVector(y, scales[place]!, out, start, stride);
      });
      return out;
    });
    const decoded = { type: kind.type, name, kind, values, exponents: [...record.exponents] } as DecodedCoded;
    if (earlier !== null && header.reference !== null) addReference(decoded, header.reference, earlier);
    return decoded;
  }

  private async readCarried(): Promise<DecodedCarried[]> {
    if (this.carried !== null) return this.carried;
    const { header, readSection, step } = this.input;
    const carried: DecodedCarried[] = [];
    for (const [at, section] of header.carriedSections.entries()) {
      const { name, kind } = header.records[header.coded + at]!;
      const bytes = readCarriedTensor(section.codec, await readSection(section), kind as CarriedKind, section.label);
      carried.push({ type: "carried", name, kind: kind as CarriedKind, bytes });
      await step();
    }
    return (this.carried = carried);
  }
}
