/** The worker of the page: opens, checks and decodes files, so that the page never waits. */

import { type Decoded, NolaError, type NolaFile, openNola } from "../src/index.js";
import { SymbolCounts } from "./histograms.js";
import type { Order, Report } from "./messages.js";
import { summarize } from "./summary.js";

const send = (report: Report, transfer: Transferable[] = []): void => postMessage(report, { transfer });

let name = "adapter";
let decoded: Decoded | null = null;

self.onmessage = async ({ data }: MessageEvent<Order>): Promise<void> => {
  try {
    if (data.type === "open") await open(data.files, data.urls);
    else await save();
  } catch (error) {
    const code = error instanceof NolaError ? error.code : "internal";
    send({ type: "failed", code, message: error instanceof Error ? error.message : String(error) });
  }
};

/** Opens the first file, or the one that is coded against the others, and checks it. */
async function open(files: File[], urls: string[]): Promise<void> {
  const started = performance.now();
  const opened: { name: string; file: NolaFile }[] = [];
  for (const url of urls) opened.push({ name: nameOf(url), file: await openNola(url) });
  for (const file of files) opened.push({ name: file.name, file: await openNola(file) });
  opened.sort((a, b) => (b.file.header.reference?.files ?? -1) - (a.file.header.reference?.files ?? -1));
  const { file, name: ownName } = opened[0]!;
  name = ownName.replace(/\.nola$/, "");
  send({ type: "opened", summary: summarize(ownName, file) });
  const counts = new SymbolCounts(file.header.quantizers);
  const verification = await file.verify({
    references: opened.slice(1).map((other) => other.file),
    onProgress: throttle((share) => send({ type: "progress", share })),
    onSymbols: (quantizer, symbols) => counts.add(quantizer, symbols),
  });
  decoded = verification.decoded;
  const { contentSha256, rungs, signed } = verification;
  const milliseconds = performance.now() - started;
  send({ type: "verified", contentSha256, rungs, signed, histograms: counts.histograms(), milliseconds });
}

/** The last part of an address, as people write it. */
function nameOf(url: string): string {
  const part = url.split(/[/?#]/).filter(Boolean).at(-1) ?? url;
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a percent sign that escapes nothing
  }
}

async function save(): Promise<void> {
  if (decoded === null) return;
  const bytes = (await decoded.toSafetensors()) as Uint8Array<ArrayBuffer>;
  send({ type: "saved", name: `${name}.safetensors`, bytes }, [bytes.buffer]);
}

/** Passes on a call at most every 50 ms. */
function throttle(call: (share: number) => void): (share: number) => void {
  let next = 0;
  return (share) => {
    const now = performance.now();
    if (now < next && share < 1) return;
    next = now + 50;
    call(share);
  };
}
