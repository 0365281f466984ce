/** The page in headless Chromium. Without any, these tests are skipped and say so; with REQUIRE_CHROMIUM they fail. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { answerInBrowser, launchBrowser, openLibrary } from "./browser.js";
import { GOLDEN, golden, KIT, MANIFEST, readJson, ROOT } from "./support.js";

const browser = await launchBrowser();
const options = { skip: browser ? false : "there is no Chromium here; set CHROMIUM to its path" };
const page_url = new URL("web/dist/reader.html", ROOT).href;
const path = (name) => fileURLToPath(new URL(`${GOLDEN}${name}.nola`, ROOT));

after(() => browser?.close());

/** A new page; what it logs as an error fails the test. */
async function openPage(context, settings = {}) {
  const page = await browser.newPage(settings);
  context.after(() => page.close());
  page.on("pageerror", (error) => assert.fail(error.stack));
  await page.goto(page_url);
  return page;
}

const passed = (page) => page.getByText(/all checks passed/).waitFor();

test("a chosen file is checked, and saved as safetensors", options, async (context) => {
  const page = await openPage(context);
  await page.setInputFiles("#file", path("effective"));
  await passed(page);
  const expected = MANIFEST.effective.decoded_sha256;
  await page.getByText(expected).waitFor();
  const waiting = page.waitForEvent("download");
  await page.getByRole("button", { name: "Save as safetensors" }).click();
  const saved = readFileSync(await (await waiting).path());
  const length = Number(saved.readBigUInt64LE(0));
  assert.ok(Object.keys(JSON.parse(saved.subarray(8, 8 + length).toString())).length > 2);
});

test("a dropped file is checked", options, async (context) => {
  const page = await openPage(context);
  const transfer = await page.evaluateHandle((bytes) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "rungs.nola"));
    return data;
  }, [...golden("rungs")]);
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
  await passed(page);
  assert.equal(await page.locator("ul.good li").count(), 5);
});

test("a file and the version that it is coded against are chosen together", options, async (context) => {
  const page = await openPage(context);
  await page.setInputFiles("#file", [path("vectors"), path("reference")]);
  await passed(page);
  await page.setInputFiles("#file", path("reference"));
  await page.getByText(/Refused \(reference\)/).waitFor();
});

test("keys alone reach everything", options, async (context) => {
  const page = await openPage(context);
  // The listener is there before the key, since a chooser that nobody waits for opens as a window.
  const chooser = new Promise((resolve) => page.on("filechooser", resolve));
  await page.keyboard.press("Tab");
  await page.waitForFunction(() => document.activeElement.id === "file");
  await page.keyboard.press("Space");
  await (await chooser).setFiles(path("effective"));
  await passed(page);
  const reached = new Set();
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
  }
  for (const id of ["url", "save", "filter"]) assert.ok(reached.has(id), `${id} of ${[...reached].join()}`);
});

test("a hostile file is refused within a second, with its code", options, async (context) => {
  const page = await openPage(context);
  const data = golden("nmse");
  data[200] ^= 1;
  const started = performance.now();
  await page.setInputFiles("#file", { name: "bad.nola", mimeType: "", buffer: Buffer.from(data) });
  await page.getByText(/Refused \((header|section)-checksum\)/).waitFor();
  assert.ok(performance.now() - started < 3000);
});

test("the library passes the conformance kit in the browser", options, async (context) => {
  const page = await openLibrary(browser);
  context.after(() => page.close());
  const { valid, invalid } = readJson(`${KIT}files.json`);
  const place = (file) => fileURLToPath(new URL(KIT + file, ROOT));
  const lists = [...valid, ...invalid].map(({ file, references = [] }) => [file, ...references].map(place));
  const answers = (await answerInBrowser(page, lists)).map(({ rungs, refused }) => rungs ?? refused);
  const expected = [...valid.map(({ rungs }) => rungs.map((rung) => rung.decoded_sha256)), ...invalid.map(({ code }) => code)];
  assert.deepEqual(answers, expected);
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds no violation, and nothing is wider than the page (${colorScheme})`, options, async (context) => {
    const page = await openPage(context, { colorScheme });
    await page.setInputFiles("#file", path("effective"));
    await passed(page);
    await page.evaluate(readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
    const { violations } = await page.evaluate(() => window.axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes[0].html]), []);
    for (const width of [80, 320, 1280, 2560]) {
      await page.setViewportSize({ width, height: 800 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} at ${width}`);
      if (process.env.SCREENSHOTS) {
        await page.screenshot({ path: `${process.env.SCREENSHOTS}/${colorScheme}-${width}.png`, fullPage: true });
      }
    }
  });
}
