/** The command: checks a file completely and prints what it found as JSON. */

import { readFile } from "node:fs/promises";
import { NolaError, openNola } from "./index.js";

const [path, ...references] = process.argv.slice(2);
if (path === undefined || path === "-h" || path === "--help") {
  process.stderr.write("usage: nola-read FILE [REFERENCE...]\n");
  process.exit(path === undefined ? 2 : 0);
}
try {
  const file = await openNola(await readFile(path));
  const below = await Promise.all(references.map(async (name) => openNola(await readFile(name))));
  const { contentSha256, rungs, signed } = await file.verify({ references: below });
  print({ ok: true, content_sha256: contentSha256, rungs, signed });
} catch (error) {
  if (!(error instanceof NolaError)) throw error;
  print({ ok: false, code: error.code, message: error.message });
  process.exitCode = 1;
}

function print(result: object): void {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
