/** A decoded file as a safetensors file, in a chunk of its own. */

import type { DecodedRecord } from "./decoded.js";
import { exportTensors } from "./dialects.js";
import type { Header } from "./header.js";
import { writeSafetensors } from "./safetensors.js";

export function exportFile(header: Header, records: readonly DecodedRecord[]): Uint8Array {
  return writeSafetensors(exportTensors(header, records), header.metadata);
}
