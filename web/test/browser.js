/** The library in headless Chromium: that of CHROMIUM, of the system or of Playwright. */

import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { ROOT } from "./support.js";

const NAMES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** Start a browser. Without any the result is null; with REQUIRE_CHROMIUM, as .ci/run sets it, that is an error. */
export async function launchBrowser() {
  const executablePath = [process.env.CHROMIUM, ...NAMES].find((path) => path && existsSync(path));
  return chromium.launch({ executablePath, args: ["--no-sandbox"] }).catch((error) => {
    if (executablePath || process.env.REQUIRE_CHROMIUM) throw error;
    return null;
  });
}

/** Open an empty page from which the library can be imported. The library imports chunks, so it needs an address. */
export async function openLibrary(browser) {
  const page = await browser.newPage();
  await page.route("https://library.test/**", (route) => {
    const path = fileURLToPath(new URL(`web/dist${new URL(route.request().url()).pathname}`, ROOT));
    return path.endsWith(".js") ? route.fulfill({ path }) : route.fulfill({ body: "", contentType: "text/html" });
  });
  await page.goto("https://library.test/");
  return page;
}

/**
 * What the library says in the browser of each list of paths, a file and its references: the SHA-256 of what each rung
 * decodes to and of the safetensors file that is saved, or the code for which the file is refused.
 */
export async function answerInBrowser(page, lists) {
  const answers = [];
  for (const paths of lists) {
    const files = paths.map((path) => readFileSync(path).toString("base64"));
    answers.push(await page.evaluate(async ([own, ...below]) => {
      const { openNola } = await import("/index.js");
      const open = (text) => openNola(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)));
      try {
        const references = await Promise.all(below.map(open));
        const file = await open(own);
        const rungs = (await file.verify({ references })).rungs;
        const saved = await (await file.decode({ references })).toSafetensors().catch(() => null);
        const hash = saved && new Uint8Array(await crypto.subtle.digest("SHA-256", saved));
        return { rungs, saved: hash && [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
      } catch (error) {
        return { refused: error.code ?? error.stack };
      }
    }, files));
  }
  return answers;
}
