/** How the library is bundled; `build.js` writes it, `size.js` measures it. */

import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = dirname(fileURLToPath(import.meta.url));

/** Options of esbuild for everything that is built here. */
export const COMMON = { absWorkingDir: ROOT, format: "esm", target: "es2022", legalComments: "none" };
export const BUNDLED = { ...COMMON, bundle: true, minify: true, loader: { ".bin": "binary" } };

/** The library. What few callers or few files need is in chunks, which it imports when they are needed. */
export const LIBRARY = {
  ...BUNDLED,
  entryPoints: ["src/index.ts"],
  outdir: "dist",
  platform: "neutral",
  splitting: true,
  chunkNames: "[name]-[hash]",
};
