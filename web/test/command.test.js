/** The command prints JSON and sets its exit status. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { GOLDEN, readJson, ROOT } from "./support.js";

const path = (name) => fileURLToPath(new URL(name, ROOT));

function run(...args) {
  const { status, stdout } = spawnSync(process.execPath, [path("web/dist/cli.js"), ...args], { encoding: "utf8" });
  return { status, stdout };
}

test("a good file, one with a reference, and one that is no file of the format", () => {
  const good = run(path(`${GOLDEN}nmse.nola`));
  assert.equal(good.status, 0);
  assert.equal(JSON.parse(good.stdout).rungs.at(-1), readJson(`${GOLDEN}manifest.json`)["nmse.nola"].factors_sha256);
  const below = run(path(`${GOLDEN}reference.nola`), path(`${GOLDEN}vectors.nola`));
  assert.equal(JSON.parse(below.stdout).ok, true);
  const bad = run(path("LICENSE"));
  assert.equal(bad.status, 1);
  assert.equal(JSON.parse(bad.stdout).code, "magic");
  assert.equal(run().status, 2);
});
