/** Signatures: 104 bytes behind the last section that say who made a file. No hash of the file covers them. */

import type { Source } from "./source.js";

const BYTES = 104;
const MAGIC = [0x89, 0x4e, 0x4c, 0x53, 0x0d, 0x0a, 0x1a, 0x0a];
const PURPOSE = new TextEncoder().encode("nola signature\0");

export interface Signature {
  /** Public key of Ed25519, 32 bytes. Anybody can sign with a key of their own: compare it with one that you know. */
  publicKey: Uint8Array<ArrayBuffer>;
  signature: Uint8Array<ArrayBuffer>;
}

/** The signature that follows the last section, or null if other bytes do. */
export async function readSignature(source: Source, end: number, signal?: AbortSignal): Promise<Signature | null> {
  if (source.size !== end + BYTES) return null;
  const data = await source.read(end, end + BYTES, signal);
  if (MAGIC.some((byte, at) => data[at] !== byte)) return null;
  return { publicKey: new Uint8Array(data.subarray(8, 40)), signature: new Uint8Array(data.subarray(40)) };
}

/** Whether the signature is right for the content SHA-256, all 32 bytes of it. Null where Ed25519 is not at hand. */
export async function checkSignature({ publicKey, signature }: Signature, content: Uint8Array): Promise<boolean | null> {
  try {
    const key = await crypto.subtle.importKey("raw", publicKey, { name: "Ed25519" }, false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", key, signature, Uint8Array.of(...PURPOSE, ...content));
  } catch {
    return null;
  }
}
