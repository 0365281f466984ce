/** A decoded rung, and its form as a safetensors file. */

import type { DecodedRecord } from "./decoded.js";
import type { Header } from "./header.js";

export class Decoded {
  constructor(
    readonly header: Header,
    /** Number of the rung. */
    readonly rung: number,
    /** All records, in order. */
    readonly records: DecodedRecord[],
    /** Decoded SHA-256, in hexadecimal. It is equal to that of the header, and null if only some records were decoded. */
    readonly sha256: string | null,
  ) {}

  /**
   * The bytes of a safetensors file with all tensors, under the keys of the file's dialect. Factors and vectors are
   * F32, which holds them exactly. A low-rank record of a dialect without keys for factors is written as
   * `NAME.lora_A` and `NAME.lora_B`.
   */
  async toSafetensors(): Promise<Uint8Array> {
    const { exportFile } = await import("./export.js"); // who only reads numbers does not load it
    return exportFile(this.header, this.records);
  }
}
