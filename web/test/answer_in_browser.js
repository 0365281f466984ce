/**
 * Answers each line of the standard input, a JSON array of paths (a file and its references), by the library in headless
 * Chromium. Ends with status 3 if there is no browser.
 */

import { createInterface } from "node:readline";
import { answerInBrowser, launchBrowser, openLibrary } from "./browser.js";

const browser = await launchBrowser();
if (browser === null) process.exit(3);
const page = await openLibrary(browser);
for await (const line of createInterface({ input: process.stdin })) {
  const [answer] = await answerInBrowser(page, [JSON.parse(line)]);
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
