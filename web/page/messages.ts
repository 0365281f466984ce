/** What the page and its worker say to each other. Only plain values cross. */

import type { TensorInfo, Verification } from "../src/index.js";

/** From the page. */
export type Order =
  | { type: "open"; files: File[]; urls: string[] }
  | { type: "save" };

/** Bytes of a file by what they are for. */
export interface Share {
  label: string;
  bytes: number;
}

/** The header of a file, for people. */
export interface Summary {
  name: string;
  size: number;
  facts: [string, string][];
  shares: Share[];
  measured: { bytes: number; values: [string, number][] }[];
  tensors: TensorInfo[];
  metadata: [string, string][];
  config: string | null;
}

/** How often the symbols of a quantizer occur. */
export interface Histogram {
  label: string;
  count: number;
  /** Bits that a symbol takes in the file, and its entropy. */
  paid: number;
  entropy: number;
  /** Empty where a picture would say nothing. */
  bars: { label: string; count: number }[];
}

/** From the worker. */
export type Report =
  | { type: "opened"; summary: Summary }
  | { type: "progress"; share: number }
  | { type: "verified"; contentSha256: string; rungs: string[]; signed: Verification["signed"]; histograms: Histogram[]; milliseconds: number }
  | { type: "saved"; name: string; bytes: Uint8Array<ArrayBuffer> }
  | { type: "failed"; code: string; message: string };
