/** Trellis quantizers: each step of one or two bits gives several coefficients, by a window of eight bits. */

/** One trellis: bits of a step, levels, and for each coefficient of a step its masks. */
export interface TrellisRule {
  bits: number;
  levels: readonly number[];
  masks: readonly (readonly number[])[];
  /** Coefficients of a step. */
  stride: number;
}

const TWO = [-1, 1];
const FOUR = [-10, -3, 3, 10];

/** `text` holds the masks in hexadecimal: one for each coefficient, or two joined by a plus sign. */
function rule(bits: number, levels: readonly number[], text: string): TrellisRule {
  const masks = text.split(" ").map((pair) => pair.split("+").map((mask) => parseInt(mask, 16)));
  return { bits, levels, masks, stride: masks.length };
}

export const TRELLISES: readonly TrellisRule[] = [
  rule(1, TWO, "d1 9d 85 f9 c7 b1 d1 97 a9 9f b5 d3 9d db c5 d9 91 af f7 d5 e1 ab d3 89"),
  rule(1, TWO, "9f e3 9b c7 c5 bd a3 d7 b9 a1 bb ed d3 af a7 81"),
  rule(1, TWO, "c9 e3 e7 f7 9b ed db bf cf 9b f3 89"),
  rule(1, TWO, "eb 87 89 c5 bb b1 e7 c7 dd b3"),
  rule(1, TWO, "99 a7 df e1 df b5 81 8d"),
  rule(1, TWO, "f7 a9 e5 e3 fb f9"),
  rule(1, TWO, "8b 99 9d db bd"),
  rule(1, TWO, "9f 8d ab b9"),
  rule(1, TWO, "dd bf 83"),
  rule(2, TWO, "ea 81 bd ce 77"),
  rule(1, TWO, "b9 e3"),
  rule(2, FOUR, "75+fb 67+95 d1+92"),
  rule(1, FOUR, "9d+fb"),
];

/** For each trellis the levels of a step by its window: 256 times `stride` numbers. */
const tables: (Int32Array | undefined)[] = [];

function tableOf(number: number): Int32Array {
  return (tables[number] ??= makeTable(TRELLISES[number]!));
}

function makeTable({ levels, masks, stride }: TrellisRule): Int32Array {
  const table = new Int32Array(256 * stride);
  for (let window = 0; window < 256; window++) {
    masks.forEach((pair, at) => {
      let index = 0;
      for (const mask of pair) {
        let parity = 0;
        for (let rest = window & mask; rest > 0; rest >>= 1) parity ^= rest & 1;
        index = 2 * index + parity;
      }
      table[window * stride + at] = levels[index]!;
    });
  }
  return table;
}

/** Adds the levels of a layer, times its weight, to the coefficients. Surplus levels of the last step are dropped. */
export function addTrellis(
  number: number,
  weight: number,
  symbols: Uint16Array,
  coefficients: Int32Array,
): void {
  const { bits, stride } = TRELLISES[number]!;
  const table = tableOf(number);
  const k = coefficients.length;
  const steps = Math.ceil(k / stride);
  // The bits form a ring: before the first step come the last ones, going round again if there are few.
  let window = 0;
  for (let before = 8 / bits; before > 0; before--) {
    const step = (((steps - before) % steps) + steps) % steps;
    window = (window << bits) | symbols[step]!;
  }
  let at = 0;
  for (let step = 0; step < steps; step++) {
    window = ((window << bits) | symbols[step]!) & 255;
    const row = window * stride;
    const count = Math.min(stride, k - at);
    for (let i = 0; i < count; i++, at++) coefficients[at]! += weight * table[row + i]!;
  }
}
