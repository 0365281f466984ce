/** SHA-256 (FIPS 180-4), fed piece by piece. `crypto.subtle` would want all bytes at once. */

const ROUND = constants(64, 1 / 3);
const START = constants(8, 1 / 2);

/** The first 32 bits of the fractional parts of a root of the first primes. */
function constants(count: number, power: number): Int32Array {
  const words = new Int32Array(count);
  for (let number = 2, found = 0; found < count; number++) {
    let prime = true;
    for (let factor = 2; factor * factor <= number; factor++) prime &&= number % factor !== 0;
    if (prime) words[found++] = ((number ** power) % 1) * 2 ** 32;
  }
  return words;
}

/** Hashes bytes that come in pieces. */
export class Sha256 {
  private readonly state = START.slice();
  private readonly schedule = new Int32Array(64);
  private readonly rest = new Uint8Array(64);
  private length = 0;

  /** Adds bytes and returns the hash object itself. */
  update(data: Uint8Array): this {
    let at = 0;
    let held = this.length % 64;
    this.length += data.length;
    if (held > 0) {
      const taken = Math.min(64 - held, data.length);
      this.rest.set(data.subarray(0, taken), held);
      at = taken;
      held += taken;
      if (held < 64) return this;
      this.compress(this.rest, 0, 1);
    }
    const blocks = Math.floor((data.length - at) / 64);
    this.compress(data, at, blocks);
    this.rest.set(data.subarray(at + 64 * blocks));
    return this;
  }

  /** The hash, 32 bytes. Nothing can be added afterwards. */
  digest(): Uint8Array {
    const bits = this.length * 8;
    const end = new Uint8Array(128);
    end[0] = 0x80;
    const view = new DataView(end.buffer);
    const size = this.length % 64 < 56 ? 64 - (this.length % 64) : 128 - (this.length % 64);
    view.setUint32(size - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(size - 4, bits >>> 0);
    this.update(end.subarray(0, size));
    const result = new Uint8Array(32);
    const out = new DataView(result.buffer);
    this.state.forEach((word, at) => out.setInt32(4 * at, word));
    return result;
  }

  private compress(data: Uint8Array, at: number, blocks: number): void {
    const w = this.schedule;
    const state = this.state;
    for (; blocks > 0; blocks--, at += 64) {
      for (let i = 0, p = at; i < 16; i++, p += 4) {
        w[i] = (data[p]! << 24) | (data[p + 1]! << 16) | (data[p + 2]! << 8) | data[p + 3]!;
      }
      for (let i = 16; i < 64; i++) {
        const x = w[i - 15]!;
        const y = w[i - 2]!;
        const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
        const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
        w[i] = (w[i - 16]! + s0 + w[i - 7]! + s1) | 0;
      }
      let a = state[0]!;
      let b = state[1]!;
      let c = state[2]!;
      let d = state[3]!;
      let e = state[4]!;
      let f = state[5]!;
      let g = state[6]!;
      let h = state[7]!;
      for (let i = 0; i < 64; i++) {
        const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
        const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND[i]! + w[i]!) | 0;
        const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
        const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        h = g;
        g = f;
        f = e;
        e = (d + t1) | 0;
        d = c;
        c = b;
        b = a;
        a = (t1 + t2) | 0;
      }
      state[0]! += a;
      state[1]! += b;
      state[2]! += c;
      state[3]! += d;
      state[4]! += e;
      state[5]! += f;
      state[6]! += g;
      state[7]! += h;
    }
  }
}

/** SHA-256 of the parts, one after the other. */
export function sha256(...parts: Uint8Array[]): Uint8Array {
  const hash = new Sha256();
  for (const part of parts) hash.update(part);
  return hash.digest();
}

/** Bytes as lowercase hexadecimal digits. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
