/** CRC-32 of zlib and PNG: polynomial 0xEDB88320, reflected, initial value and final XOR 0xFFFFFFFF. */

const TABLE = makeTable();

/** Table of 8 x 256 entries, so that eight bytes are taken at a time. */
function makeTable(): Int32Array {
  const table = new Int32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    table[byte] = value;
  }
  for (let at = 256; at < table.length; at++) {
    const before = table[at - 256]!;
    table[at] = (before >>> 8) ^ table[before & 255]!;
  }
  return table;
}

/** CRC-32 of the parts, one after the other, as an unsigned number. */
export function crc32(...parts: Uint8Array[]): number {
  let crc = -1;
  for (const data of parts) {
    let at = 0;
    for (const whole = data.length - 7; at < whole; at += 8) {
      crc ^= data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16) | (data[at + 3]! << 24);
      crc =
        TABLE[0x700 + (crc & 255)]! ^
        TABLE[0x600 + ((crc >>> 8) & 255)]! ^
        TABLE[0x500 + ((crc >>> 16) & 255)]! ^
        TABLE[0x400 + (crc >>> 24)]! ^
        TABLE[0x300 + data[at + 4]!]! ^
        TABLE[0x200 + data[at + 5]!]! ^
        TABLE[0x100 + data[at + 6]!]! ^
        TABLE[data[at + 7]!]!;
    }
    for (; at < data.length; at++) crc = (crc >>> 8) ^ TABLE[(crc ^ data[at]!) & 255]!;
  }
  return ~crc >>> 0;
}
