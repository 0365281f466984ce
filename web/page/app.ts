/** The page: takes a file or an address, hands it to the worker, and shows what comes back. */

import type { Order, Report, Summary } from "./messages.js";
import { element, renderSummary, renderVerified, size } from "./render.js";

/** The text of the worker's program, which the build puts here. */
declare const WORKER: string;

const find = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const [status, result, work] = [find("status"), find("result"), find("work")];
const [bar, input, address] = [find<HTMLProgressElement>("bar"), find<HTMLInputElement>("file"), find<HTMLInputElement>("url")];

const program = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
let worker: Worker | null = null;
let summary: Summary | null = null;

/** Ends the work that goes on, and begins with another file. */
function open(files: File[], urls: string[]): void {
  stop();
  result.replaceChildren();
  say("", "");
  summary = null;
  worker = new Worker(program);
  worker.onmessage = ({ data }: MessageEvent<Report>) => receive(data);
  worker.onerror = () => fail("internal", "The reader stopped unexpectedly.");
  bar.removeAttribute("value");
  work.hidden = false;
  order({ type: "open", files, urls });
}

const order = (message: Order): void => worker?.postMessage(message);

function stop(): void {
  worker?.terminate();
  worker = null;
  work.hidden = true;
}

function say(text: string, kind: "good" | "bad" | ""): void {
  status.textContent = text;
  status.className = kind;
}

function fail(code: string, message: string): void {
  stop();
  say(`Refused (${code}): ${message}`, "bad");
}

function receive(report: Report): void {
  switch (report.type) {
    case "opened":
      summary = report.summary;
      result.append(...renderSummary(summary));
      break;
    case "progress":
      bar.value = report.share;
      break;
    case "verified": {
      work.hidden = true;
      const save = element("button", { type: "button", id: "save" }, "Save as safetensors");
      save.addEventListener("click", () => order({ type: "save" }));
      result.prepend(...renderVerified(report, summary!, save));
      say(`${summary!.name}, ${size(summary!.size)}: all checks passed.`, "good");
      break;
    }
    case "saved": {
      const link = element("a", { href: URL.createObjectURL(new Blob([report.bytes])), download: report.name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      say(`Saved ${report.name}, ${size(report.bytes.length)}.`, "good");
      break;
    }
    case "failed":
      fail(report.code, report.message);
  }
}

input.addEventListener("change", () => {
  if (input.files?.length) open([...input.files], []);
  input.value = "";
});
find("address").addEventListener("submit", (event) => {
  event.preventDefault();
  open([], [address.value]);
});
find("cancel").addEventListener("click", () => {
  stop();
  say("Cancelled.", "");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const files = [...(event.dataTransfer?.files ?? [])];
  if (files.length > 0) open(files, []);
});

const query = new URLSearchParams(location.search);
const given = query.getAll("url");
// A server of this machine lets the page load its own files only.
if (query.has("local")) find("address").hidden = true;
else address.value = given[0] ?? "";
if (given.length > 0) open([], given.map((url) => new URL(url, location.href).href));
