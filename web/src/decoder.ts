/** The whole decoder: rung by rung, it turns sections into records. */

import { readCarriedTensor } from "./carried.js";
import { synthesizeSide } from "./bases.js";
import { type DecodedCarried, type DecodedCoded, type DecodedDrawn, type DecodedRecord, hashRecord } from "./decoded.js";
import { type LaneBudget, RunCounts, SymbolReader } from "./entropy.js";
import { refuse } from "./errors.js";
import { makeScale, scaleVector } from "./factors.js";
import type { FileRecord, Header, Section } from "./header.js";
import { type CarriedKind, drawOf } from "./kinds.js";
import type { Limits } from "./limits.js";
import { addLayer } from "./quantizers.js";
import { hex, Sha256 } from "./sha256.js";
import { type Layer, UnitsReader, unitsOfSide } from "./units.js";

/** What the decoder needs from outside. */
export interface DecoderInput {
  header: Header;
  limits: Limits;
  /** The bytes of a section, whose CRC-32 was checked. */
  readSection(section: Section): Promise<Uint8Array>;
  /** Names of the records to decode; null stands for all. */
  names: ReadonlySet<string> | null;
  /** Records of the reference by name, if the file has one. */
  earlier: ReadonlyMap<string, DecodedRecord> | null;
  /** Called with 1 after each record, and with 0 in long work; it may throw, and it may wait. */
  step(records: number): Promise<void> | void;
  /** Called with the symbols of each run, in an array that is used again. */
  observe?: ((quantizer: number, symbols: Uint16Array) => void) | undefined;
}

/** The records of a rung, in order, and their SHA-256 in hexadecimal, which is null if some were left out. */
export interface DecodedRung {
  records: DecodedRecord[];
  sha256: string | null;
}

/** Decodes rungs 0, 1, ... one after the other. */
export class Decoder {
  private readonly units: UnitsReader;
  private readonly budget: LaneBudget = { steps: 0 };
  private rung = 0;
  /** By coded record and side the coefficients of its units so far, one after the other. Later rungs add to them. */
  private readonly coefficients: Int32Array[][];
  private others: (DecodedCarried | DecodedDrawn)[] | null = null;

  constructor(private readonly input: DecoderInput) {
    this.units = new UnitsReader(input.header, input.limits);
    this.coefficients = this.units.records.map(({ kind }) => kind.sides.map(() => new Int32Array(0)));
  }

  /** Reads the next rung without computing what it decodes to. */
  async skip(): Promise<void> {
    await this.readRung(false, false);
  }

  /** Decodes the next rung and checks its decoded SHA-256. `last` says that no further rung will be asked for. */
  async decode(last: boolean): Promise<DecodedRung> {
    const rung = this.rung;
    const coded = await this.readRung(true, last);
    await this.addReferences(coded);
    const others = (this.others ??= [...(await this.readCarried()), ...(await this.draw())]);
    const records: DecodedRecord[] = [...coded, ...others];
    if (this.input.names !== null) return { records, sha256: null };
    const hash = new Sha256();
    for (const record of records) hashRecord(hash, record);
    const sha256 = hex(hash.digest());
    const expected = hex(this.input.header.rungs[rung]!.sha256);
    if (sha256 !== expected) {
      refuse(
        "factors-checksum",
        `rung ${rung}: expected the decoded SHA-256 ${expected}, computed ${sha256}; the file was made wrongly`,
      );
    }
    return { records, sha256 };
  }

  /** Whether a record is asked for. */
  private wants({ name }: FileRecord): boolean {
    return this.input.names?.has(name) ?? true;
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
      const records = header.records.slice(first, first + header.blocks[block]!);
      if (records.some((record) => this.wants(record))) {
        const symbols = this.openBlock(section, await readSection(section), first, records.length, rung);
        for (const [place, record] of records.entries()) {
          const at = first + place;
          this.addLayers(at, rung, symbols);
          if (wanted && this.wants(record)) decoded.push(this.synthesize(at, rung));
          if (last) this.coefficients[at] = [];
          await this.input.step(1);
        }
        symbols.finish();
      }
      first += records.length;
    }
    return decoded;
  }

  /** Calls `use` with each layer that a rung brings to a record, in the order of the section. */
  private eachLayer(at: number, rung: number, use: (layer: Layer, side: number, place: number) => void): void {
    const record = this.units.records[at]!;
    for (let side = 0; side < record.kind.sides.length; side++) {
      const [first, stop] = unitsOfSide(record, side);
      for (let unit = first; unit < stop; unit++) {
        this.units.eachLayer(record, side, unit, rung, (layer) => use(layer, side, unit - first));
      }
    }
  }

  private openBlock(section: Section, data: Uint8Array, first: number, count: number, rung: number): SymbolReader {
    const { header, limits } = this.input;
    const runs = new RunCounts(header.quantizers);
    for (let at = first; at < first + count; at++) {
      const { sides } = this.units.records[at]!.kind;
      this.eachLayer(at, rung, ({ quantizer }, side) => runs.add(quantizer, sides[side]!.k));
    }
    return new SymbolReader(section.codec, data, runs, limits, this.budget, section.label);
  }

  /** Adds the layers of a rung to the coefficients of a record. */
  private addLayers(at: number, rung: number, symbols: SymbolReader): void {
    const { quantizers } = this.input.header;
    const record = this.units.records[at]!;
    const vectors = record.kind.sides.map(({ k }, side) => {
      const [first, stop] = unitsOfSide(record, side);
      const known = this.coefficients[at]![side]!;
      if (known.length === (stop - first) * k) return known;
      const grown = new Int32Array((stop - first) * k);
      grown.set(known);
      return (this.coefficients[at]![side] = grown);
    });
    this.eachLayer(at, rung, ({ quantizer, weight }, side, place) => {
      const { k } = record.kind.sides[side]!;
      const run = symbols.read(quantizer, k);
      this.input.observe?.(quantizer, run);
      addLayer(quantizers[quantizer]!, weight, run, vectors[side]!.subarray(place * k, (place + 1) * k));
    });
  }

  /** Makes the integers of a record from its coefficients. */
  private synthesize(at: number, rung: number): DecodedCoded {
    const { header } = this.input;
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
      // A vector without a layer is zero.
      const places = scales.flatMap((_, place) => (record.peaks[index]![first + place]! > 0 ? [place] : []));
      const q = this.coefficients[at]![index]!;
      const vectors = places.map((place) => q.subarray(place * side.k, (place + 1) * side.k));
      const sequences = { seed: header.seed, t: 2 * stream + index };
      // Vectors of lora_B are columns, those of lora_A are rows; one vector alone is the whole side.
      const columns = index === 0 && side.vectors > 1;
      synthesizeSide(kind.basis, sequences, side, vectors, (y, vector) => {
        const place = places[vector]!;
        const [start, stride] = columns ? [place, side.vectors] : [place * side.n, 1];
        scaleVector(y, scales[place]!, out, start, stride);
      });
      return out;
    });
    return { type: kind.type, name, kind, values, exponents: [...record.exponents] } as DecodedCoded;
  }

  private async addReferences(decoded: DecodedCoded[]): Promise<void> {
    const { earlier, header } = this.input;
    if (earlier === null || header.reference === null) return;
    const { addReference } = await import("./references.js"); // few files need it
    for (const record of decoded) addReference(record, header.reference, earlier);
  }

  private async readCarried(): Promise<DecodedCarried[]> {
    const { header, readSection, step } = this.input;
    const carried: DecodedCarried[] = [];
    for (const [at, section] of header.carriedSections.entries()) {
      const record = header.records[header.coded + at]!;
      if (!this.wants(record)) continue;
      const { name, kind } = record;
      const bytes = readCarriedTensor(section.codec, await readSection(section), kind as CarriedKind, section.label);
      carried.push({ type: "carried", name, kind: kind as CarriedKind, bytes });
      await step(1);
    }
    return carried;
  }

  private async draw(): Promise<DecodedDrawn[]> {
    const { header, step } = this.input;
    const drawn: DecodedDrawn[] = [];
    if (header.coded + header.carried === header.records.length) return drawn;
    const { drawTensor } = await import("./drawn.js"); // few files need it
    // The two draws that were used last are kept, since records of one family often repeat them.
    const latest = new Map<string, Uint8Array>();
    for (const record of header.records.slice(header.coded + header.carried)) {
      const { name, kind } = record;
      if (kind.type !== "drawn" || !this.wants(record)) continue;
      const key = drawOf(kind);
      const bytes = latest.get(key) ?? (await drawTensor(kind, () => step(0)));
      latest.delete(key);
      latest.set(key, bytes);
      if (latest.size > 2) latest.delete(latest.keys().next().value!);
      drawn.push({ type: "drawn", name, kind, bytes });
      await step(1);
    }
    return drawn;
  }
}
