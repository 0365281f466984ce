/** The prelude: the first 38 bytes of a file. */

import { refuse } from "./errors.js";

export const PRELUDE_BYTES = 38;
export const FORMAT_VERSION = 0;
export const REVISION = 3;
/** Bit 0 of the required flags: the file is coded against a reference. */
export const REFERENCE_FLAG = 1;
/** Bit 1: it has drawn tensors. */
export const DRAWN_FLAG = 2;
const MAGIC = [0x89, 0x4e, 0x4c, 0x41, 0x0d, 0x0a, 0x1a, 0x0a];

export interface Prelude {
  version: number;
  revision: number;
  requiredFlags: number;
  /** Length of the header as stored, in bytes. */
  stored: number;
  /** First 16 bytes of the SHA-256 of bytes 0 to 17 and 38 to the end. */
  contentSha256: Uint8Array;
  /** CRC-32 of bytes 0 to 33 and of the stored header. */
  crc: number;
}

/** Reads the prelude from the beginning of a file. */
export function readPrelude(data: Uint8Array): Prelude {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  for (let at = 0; at < Math.min(MAGIC.length, data.length); at++) {
    if (data[at] !== MAGIC[at]) refuse("magic", "prelude: this is no .nola file, its first bytes are others");
  }
  if (data.length >= 12) {
    const [version, revision] = [view.getUint16(8, true), view.getUint16(10, true)];
    if (version !== FORMAT_VERSION || revision !== REVISION) {
      refuse(
        "version",
        `prelude: expected version ${FORMAT_VERSION}, revision ${REVISION}, found ${version}, ${revision}; ` +
          "read the file with the release that wrote it",
      );
    }
  }
  if (data.length < PRELUDE_BYTES) {
    refuse("truncated", `prelude: expected ${PRELUDE_BYTES} bytes, the file has ${data.length}`);
  }
  const requiredFlags = view.getUint16(12, true);
  if (requiredFlags & ~(REFERENCE_FLAG | DRAWN_FLAG)) {
    refuse("feature", `prelude: the file needs features that this reader does not know (flags ${requiredFlags})`);
  }
  return {
    version: FORMAT_VERSION,
    revision: REVISION,
    requiredFlags,
    stored: view.getUint32(14, true),
    contentSha256: data.slice(18, 34),
    crc: view.getUint32(34, true),
  };
}
