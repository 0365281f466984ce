/** The example of the README runs. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { golden } from "./support.js";

test("the example of the README decodes a file", async (context) => {
  const text = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const snippet = /```js\n(.*?)```/s.exec(text)[1];
  const library = new URL("../dist/index.js", import.meta.url).href;
  const code = snippet.replace('from "nola-codec"', `from "${library}"`);
  const directory = mkdtempSync(join(tmpdir(), "nola-"));
  context.after(() => rmSync(directory, { recursive: true }));
  const path = join(directory, "example.mjs");
  writeFileSync(path, `${code}\nexport { bytes };\n`);
  context.mock.method(globalThis, "fetch", async () => new Response(golden("effective")));
  const lines = [];
  context.mock.method(console, "log", (...items) => lines.push(items.join(" ")));
  const { bytes } = await import(pathToFileURL(path));
  assert.ok(lines.some((line) => line.startsWith("decoded SHA-256")));
  assert.ok(bytes.length > 1000);
});
