/**
 * Checks the types, then writes dist/ (what is published: the library, its types and the command) and build/modules/ (each
 * module by itself, for the tests of the parts).
 */

import { execFileSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = dirname(fileURLToPath(import.meta.url));
const compiler = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");
try {
  execFileSync(process.execPath, [compiler, "--project", root], { stdio: "inherit" });
} catch {
  process.exit(1);
}

const common = { absWorkingDir: root, format: "esm", target: "es2022", legalComments: "none" };
const bundled = { ...common, bundle: true, minify: true, loader: { ".bin": "binary" } };
await build({ ...bundled, entryPoints: ["src/index.ts"], outfile: "dist/index.js", platform: "neutral" });
// The command uses the library beside it.
const library = {
  name: "library",
  setup: (b) => b.onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: "./index.js", external: true })),
};
const banner = { js: "#!/usr/bin/env node" };
await build({
  ...bundled,
  entryPoints: ["src/cli.ts"],
  outfile: "dist/cli.js",
  platform: "node",
  banner,
  plugins: [library],
});
const sources = readdirSync(join(root, "src"), { recursive: true }).filter((name) => /(?<!\.d)\.ts$/.test(name));
await build({ ...common, entryPoints: sources.map((name) => `src/${name}`), outdir: "build/modules" });
