/**
 * Checks the types, then writes dist/ (what is published: the library with its types, the command, and the page) and
 * build/modules/ (each module by itself, for the tests of the parts).
 */

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { build } from "esbuild";
import { BUNDLED, COMMON, LIBRARY, ROOT } from "./bundle.js";

rmSync(join(ROOT, "dist"), { recursive: true, force: true }); // chunks of earlier builds have other names
const compiler = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin", "tsc");
for (const project of ["tsconfig.json", "tsconfig.page.json"]) {
  try {
    execFileSync(process.execPath, [compiler, "--project", join(ROOT, project)], { stdio: "inherit" });
  } catch {
    process.exit(1);
  }
}

await build(LIBRARY);

// The command uses the library beside it.
const library = {
  name: "library",
  setup: (b) => b.onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: "./index.js", external: true })),
};
await build({
  ...BUNDLED,
  entryPoints: ["src/cli.ts"],
  outfile: "dist/cli.js",
  platform: "node",
  banner: { js: "#!/usr/bin/env node" },
  plugins: [library],
});

// The page is one file that needs no server: styles, program and the worker's program are inside it.
const text = async (entry, define = {}) => {
  const { outputFiles } = await build({ ...BUNDLED, entryPoints: [entry], format: "iife", write: false, define });
  return outputFiles[0].text.replaceAll("</script", "<\\/script");
};
const worker = await text("page/worker.ts");
const app = await text("page/app.ts", { WORKER: JSON.stringify(worker) });
const page = readFileSync(join(ROOT, "page/index.html"), "utf8")
  .replace("/* style.css */", () => readFileSync(join(ROOT, "page/style.css"), "utf8"))
  .replace("/* app.js */", () => app);
writeFileSync(join(ROOT, "dist/reader.html"), page);

const sources = readdirSync(join(ROOT, "src"), { recursive: true }).filter((name) => /(?<!\.d)\.ts$/.test(name));
await build({ ...COMMON, entryPoints: sources.map((name) => `src/${name}`), outdir: "build/modules" });
