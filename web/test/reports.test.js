/** The reports of docs/reports/ in headless Chromium. Without any, these tests are skipped and say so. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism, loadavg } from "node:os";
import { after, test } from "node:test";
import { launchBrowser } from "./browser.js";
import { ROOT } from "./support.js";

const browser = await launchBrowser();
const options = { skip: browser ? false : "there is no Chromium here; set CHROMIUM to its path" };
const folder = new URL("docs/reports/", ROOT);
const pages = readdirSync(folder).filter((name) => name.endsWith(".html"));
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TRIES = 5;
const MOST_MS = 1000;
const isBusy = () => loadavg()[0] > availableParallelism(); // times then say more of the machine than of the page

after(() => browser?.close());

/** Milliseconds to the first paint of a page from disk. */
async function firstPaint(url) {
  const page = await browser.newPage();
  await page.goto(url);
  const read = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
  const time = await (await page.waitForFunction(read)).jsonValue();
  await page.close();
  return time;
}

assert.ok(pages.length > 0);
for (const name of pages) {
  const url = new URL(name, folder).href;

  test(`${name}: the first paint comes within a second`, options, async (context) => {
    const times = [];
    while (times.length < TRIES && !times.some((time) => time < MOST_MS)) times.push(await firstPaint(url));
    context.diagnostic(`first paint after ${times.map((time) => time.toFixed(0)).join(", ")} ms`);
    if (isBusy()) return context.skip("the machine is busy");
    assert.ok(Math.min(...times) < MOST_MS, `${times.join(", ")} ms`);
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`${name}: axe finds no violation, and nothing is wider than the page (${colorScheme})`, options, async (context) => {
      const page = await browser.newPage({ colorScheme, bypassCSP: true });
      context.after(() => page.close());
      await page.goto(url);
      for (const width of [80, 360, 1600, 2560]) {
        await page.setViewportSize({ width, height: 900 });
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
        assert.ok(overflow <= 0, `${overflow} pixels wider than ${width}`);
        if (process.env.SCREENSHOTS) {
          await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}-${colorScheme}-${width}.png`, fullPage: true });
        }
      }
      await page.evaluate(AXE);
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].html.slice(0, 200)}`), []);
    });
  }
}
