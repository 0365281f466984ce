/** The command prints JSON by the protocol of the conformance kit. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { GOLDEN, MANIFEST, ROOT } from "./support.js";

const path = (name) => fileURLToPath(new URL(name, ROOT));

function run(...args) {
  const { status, stdout } = spawnSync(process.execPath, [path("web/dist/cli.js"), ...args], { encoding: "utf8" });
  return { status, stdout };
}

test("a good file, one with a reference, and one that is no file of the format", () => {
  const good = run(path(`${GOLDEN}nmse.nola`));
  assert.equal(good.status, 0);
  const { rungs } = JSON.parse(good.stdout);
  assert.equal(rungs.at(-1).decoded_sha256, MANIFEST.nmse.decoded_sha256);
  assert.ok(Object.keys(rungs[0].tensors).some((name) => name.endsWith(".lora_B")));
  const below = run(path(`${GOLDEN}reference.nola`), path(`${GOLDEN}vectors.nola`));
  assert.equal(JSON.parse(below.stdout).rungs.length, 1);
  const bad = run(path("LICENSE"));
  assert.equal(bad.status, 0);
  assert.equal(JSON.parse(bad.stdout).refused, "magic");
  assert.equal(JSON.parse(run(path("no-such-file")).stdout).refused, "source");
  assert.equal(run().status, 2);
});

test("--batch answers each line", () => {
  const lines = [["nmse"], ["reference", "vectors"], ["vectors"]];
  const input = lines.map((names) => JSON.stringify(names.map((name) => path(`${GOLDEN}${name}.nola`)))).join("\n");
  const { stdout } = spawnSync(process.execPath, [path("web/dist/cli.js"), "--batch"], { encoding: "utf8", input });
  const answers = stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(answers.length, lines.length);
  assert.ok(answers.every(({ rungs }) => rungs.length > 0));
});
