/**
 * Prints the minified bytes of the library: what opening and decoding a usual file loads, and the chunks that other uses load.
 * With --json as JSON.
 */

import { pathToFileURL } from "node:url";
import { build } from "esbuild";
import { LIBRARY } from "./bundle.js";

/** The bytes by what they are for. `reader` is what the entry loads at once, without the two parts below it. */
export async function measure() {
  const { metafile } = await build({ ...LIBRARY, write: false, metafile: true });
  const [entry] = Object.entries(metafile.outputs).find(([, { entryPoint }]) => entryPoint === "src/index.ts");
  const sizes = { reader: 0, zstd: 0, dictionary: 0, chunks: {} };
  const seen = new Set();
  const load = (name) => {
    if (seen.has(name)) return;
    seen.add(name);
    const { bytes, inputs, imports } = metafile.outputs[name];
    sizes.reader += bytes;
    for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
      const part = path.endsWith(".bin") ? "dictionary" : path.startsWith("src/zstd/") ? "zstd" : null;
      if (part === null) continue;
      sizes[part] += bytesInOutput;
      sizes.reader -= bytesInOutput;
    }
    for (const { path, kind, external } of imports) if (kind === "import-statement" && !external) load(path);
  };
  load(entry);
  for (const [name, { bytes }] of Object.entries(metafile.outputs)) if (!seen.has(name)) sizes.chunks[name] = bytes;
  return sizes;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { chunks, ...parts } = await measure();
  if (process.argv.includes("--json")) console.log(JSON.stringify({ ...parts, chunks }));
  else console.table({ ...parts, ...chunks });
}
