/**
 * The command: checks a file completely and prints what it decodes to as JSON, by the protocol of spec/conformance. With
 * --batch it answers each line of its input, a JSON array of paths.
 */

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { digestsOf } from "./digests.js";
import { NolaError, openNola } from "./index.js";

const paths = process.argv.slice(2);
if (paths.length === 0 || paths.includes("-h") || paths.includes("--help")) {
  process.stderr.write("usage: nola-read FILE [REFERENCE...]\n       nola-read --batch < LINES\n");
  process.exit(paths.length === 0 ? 2 : 0);
}
if (paths[0] === "--batch") {
  for await (const line of createInterface({ input: process.stdin })) print(await answer(JSON.parse(line) as string[]));
} else {
  print(await answer(paths));
}

/** What a file decodes to at each rung, or the code for which it is refused. */
async function answer([path, ...references]: string[]): Promise<object> {
  try {
    const file = await openNola(await readFile(path!));
    const below = await Promise.all(references.map(async (name) => openNola(await readFile(name))));
    const rungs: object[] = [];
    const { contentSha256, signed } = await file.verify({
      references: below,
      onRung: (decoded) => rungs.push({ decoded_sha256: decoded.sha256, tensors: digestsOf(decoded) }),
    });
    return { content_sha256: contentSha256, signed, rungs };
  } catch (error) {
    if (error instanceof NolaError) return { refused: error.code, message: error.message };
    if (error instanceof Error && "path" in error) return { refused: "source", message: error.message };
    throw error;
  }
}

function print(result: object): void {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
