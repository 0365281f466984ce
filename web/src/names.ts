/** Names of records: a kind's template and the record's own numbers. */

import { refuse } from "./errors.js";

/** A template cut at each `#`. */
export function cutTemplate(template: string): string[] {
  return template.split("#").map((piece) => piece.replaceAll("%23", "#").replaceAll("%25", "%"));
}

/** Gives out the numbers of the header, each the difference from the previous record of the same kind. */
export class NameReader {
  private at = 0;
  private readonly latest: number[][] = [];

  constructor(
    private readonly pieces: readonly string[][],
    private readonly numbers: readonly number[],
  ) {}

  /** The name of the next record, whose kind has this index. */
  next(kind: number): string {
    const pieces = this.pieces[kind]!;
    const numbers = (this.latest[kind] ??= pieces.slice(1).map(() => 0));
    let name = pieces[0]!;
    for (let i = 0; i < numbers.length; i++) {
      const change = this.numbers[this.at++];
      if (change === undefined) refuse("header", "numbers: there are fewer than the names of the records have");
      const number = numbers[i]! + change;
      if (number < 0 || number >= 1e9) refuse("header", `numbers: ${number} is not from 0 to 10^9 - 1`);
      numbers[i] = number;
      name += `${number}${pieces[i + 1]!}`;
    }
    return name;
  }

  /** Checks that no number is left. */
  finish(): void {
    if (this.at !== this.numbers.length) refuse("header", "numbers: there are more than the names of the records have");
  }
}
