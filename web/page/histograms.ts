/** Counts the symbols of each quantizer while a file is decoded. */

import type { Quantizer } from "../src/index.js";
import type { Histogram } from "./messages.js";

/** At most so many bars are drawn for a quantizer. */
const BARS = 65;
const TOTAL = 4096;

export class SymbolCounts {
  private readonly counts: Float64Array[];

  constructor(private readonly quantizers: readonly Quantizer[]) {
    this.counts = quantizers.map(({ size }) => new Float64Array(size));
  }

  add(quantizer: number, symbols: Uint16Array): void {
    const counts = this.counts[quantizer]!;
    for (let i = 0; i < symbols.length; i++) counts[symbols[i]!]!++;
  }

  /** One histogram for each quantizer that was used, the most used first. */
  histograms(): Histogram[] {
    return this.quantizers
      .map((quantizer, index) => makeHistogram(quantizer, index, this.counts[index]!))
      .filter(({ count }) => count > 0)
      .sort((a, b) => b.count - a.count);
  }
}

function makeHistogram(quantizer: Quantizer, index: number, counts: Float64Array): Histogram {
  const count = counts.reduce((a, b) => a + b, 0);
  let entropy = 0;
  let paid = 0;
  counts.forEach((own, symbol) => {
    if (own === 0) return;
    entropy -= (own / count) * Math.log2(own / count);
    if (quantizer.table) paid -= (own / count) * Math.log2(quantizer.table[symbol]! / TOTAL);
  });
  if (!quantizer.table) paid = Math.max(1, Math.ceil(Math.log2(quantizer.size)));
  // The bits of a trellis are all equally frequent, so that a picture would say nothing.
  if (quantizer.type === "trellis") return { label: labelOf(quantizer, index), count, paid, entropy, bars: [] };
  const merged = Math.ceil(counts.length / BARS);
  const bars: Histogram["bars"] = [];
  for (let from = 0; from < counts.length; from += merged) {
    const stop = Math.min(from + merged, counts.length);
    const first = pointOf(quantizer, from);
    const last = pointOf(quantizer, stop - 1);
    bars.push({ label: merged === 1 ? first : `${first} to ${last}`, count: counts.subarray(from, stop).reduce((a, b) => a + b, 0) });
  }
  return { label: labelOf(quantizer, index), count, paid, entropy, bars };
}

function labelOf(quantizer: Quantizer, index: number): string {
  if (quantizer.type === "trellis") return `Quantizer ${index}: trellis ${quantizer.number}, steps`;
  const kind = quantizer.type === "codebook" ? quantizer.name : "dependent";
  return `Quantizer ${index}: ${kind}, ${quantizer.size} ${quantizer.size === 1 ? "level" : "levels"}`;
}

/** What a symbol stands for. */
function pointOf(quantizer: Exclude<Quantizer, { type: "trellis" }>, symbol: number): string {
  if (quantizer.type === "codebook") return String(quantizer.points[symbol]);
  return `level ${symbol - (quantizer.size >> 1)}`;
}
