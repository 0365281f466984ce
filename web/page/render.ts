/** Puts what the worker found on the page. Texts of files are set as text, never as markup. */

import type { Verification } from "../src/index.js";
import type { Histogram, Report, Summary } from "./messages.js";

type Child = Node | string;

/** Rows that a table shows at first, and that a button adds. */
const ROWS = 100;
const HISTOGRAMS = 12;

/** An element with attributes and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const count = (value: number): string => value.toLocaleString("en");

/** A size for people, and exactly. */
export function size(bytes: number): string {
  const unit = bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : bytes >= 1e3 ? `${(bytes / 1e3).toFixed(1)} KB` : "";
  return unit ? `${unit} (${count(bytes)} bytes)` : `${count(bytes)} bytes`;
}

let sections = 0;

/** A section with a heading that names it. */
function section(title: string, ...children: Child[]): HTMLElement {
  const id = `section-${sections++}`;
  return element("section", { "aria-labelledby": id }, element("h2", { id }, title), ...children);
}

/** A table of two columns, with the names of the rows in the first. */
function pairs(caption: string, rows: readonly (readonly [string, Child])[]): HTMLElement {
  const body = rows.map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
  );
  return element("table", {}, element("caption", {}, caption), element("tbody", {}, ...body));
}

/** What the header says. */
export function renderSummary(summary: Summary): HTMLElement[] {
  const largest = Math.max(...summary.shares.map(({ bytes }) => bytes));
  const bytes = summary.shares.map(({ label, bytes: own }): [string, Child] => {
    const meter = element("meter", { min: "0", max: String(largest), value: String(own), "aria-hidden": "true" });
    const share = ((100 * own) / summary.size).toFixed(1);
    return [label, element("span", {}, meter, ` ${count(own)} bytes, ${share}%`)];
  });
  const parts = [
    element(
      "div",
      { class: "columns" },
      section("What the file says", pairs(`${summary.name}, ${size(summary.size)}`, summary.facts)),
      section("Where the bytes go", pairs("Bytes of the file by purpose", bytes), renderMeasured(summary)),
    ),
    renderTensors(summary),
  ];
  if (summary.config !== null) {
    parts.push(section("Configuration", element("pre", { tabindex: "0", role: "region", "aria-label": "Configuration" }, summary.config)));
  }
  if (summary.metadata.length > 0) parts.push(section("Metadata", pairs("Metadata of the source", summary.metadata)));
  return parts;
}

function renderMeasured({ measured }: Summary): HTMLElement {
  const rows = measured.map(({ bytes, values }, rung): [string, Child] => [
    `Rung ${rung}`,
    [`${count(bytes)} bytes`, ...values.map(([name, value]) => `${name} ${value.toPrecision(3)}`)].join(", "),
  ]);
  return pairs("What the encoder measured: bytes up to the rung, and its errors", rows);
}

/** All tensors, with a filter. Only some rows are made at a time, so that the page stays quick. */
function renderTensors({ tensors }: Summary): HTMLElement {
  const body = element("tbody");
  const more = element("button", { type: "button" });
  const filter = element("input", { type: "search", id: "filter" });
  const found = element("p", { class: "note", role: "status" });
  let matching = tensors;
  let shown = 0;
  const show = (): void => {
    const next = matching.slice(shown, shown + (shown === 0 ? ROWS : 5 * ROWS));
    body.append(
      ...next.map(({ name, type, shapes, dtype }) => {
        const shape = shapes.map((dimensions) => `(${dimensions.join(", ")})`).join(" ");
        const cells = [type, shape, dtype].map((text) => element("td", {}, text));
        return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
      }),
    );
    shown += next.length;
    more.hidden = shown >= matching.length;
    more.textContent = `Show more (${count(matching.length - shown)} left)`;
    found.textContent = `${count(matching.length)} of ${count(tensors.length)} tensors`;
  };
  filter.addEventListener("input", () => {
    const text = filter.value.toLowerCase();
    matching = tensors.filter(({ name }) => name.toLowerCase().includes(text));
    shown = 0;
    body.replaceChildren();
    show();
  });
  more.addEventListener("click", show);
  show();
  const titles = ["Name", "Type", "Shape (lora_B and lora_A)", "Dtype of the source"];
  const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
  const table = element("table", {}, element("thead", {}, head), body);
  const scroll = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of tensors" }, table);
  const form = element("p", { class: "choices" }, element("label", { for: "filter" }, "Names with"), filter);
  return section("Tensors", form, found, scroll, more);
}

/** What the checks found, and the histograms. */
export function renderVerified(
  report: Extract<Report, { type: "verified" }>,
  summary: Summary,
  save: HTMLButtonElement,
): HTMLElement[] {
  const checks = [
    "The checksums of the header and of all sections are right.",
    `The content SHA-256 is right: ${report.contentSha256}`,
    ...report.rungs.map((sha256, rung) => `Rung ${rung} decodes to what it should: SHA-256 ${sha256}`),
  ];
  const list = element("ul", { class: "good" }, ...checks.map((text) => element("li", {}, text)));
  const { signed } = report;
  const signature = signed && element("p", { class: signed.valid === false ? "bad" : "note" }, describeSignature(signed));
  const done = `${count(summary.tensors.length)} records, ${count(Math.round(report.milliseconds))} ms`;
  const parts = [list, ...(signature ? [signature] : []), element("p", { class: "note" }, done), save];
  return [section("Checks", ...parts), renderHistograms(report.histograms)];
}

function describeSignature({ publicKey, valid }: NonNullable<Verification["signed"]>): string {
  if (valid === false) return `The signature is WRONG for this file. It names the public key ${publicKey}`;
  if (valid === null) return `The file is signed, but this browser cannot check it. The public key is ${publicKey}`;
  return `The file is signed, and the signature is right. Is this the maker's public key? ${publicKey}`;
}

function renderHistograms(histograms: Histogram[]): HTMLElement {
  const grid = element("div", { class: "histograms" });
  const drawn = histograms.filter(({ bars }) => bars.length > 0);
  const more = element("button", { type: "button" }, `Show all ${drawn.length}`);
  const show = (some: Histogram[]): void => grid.append(...some.map(renderHistogram));
  more.hidden = drawn.length <= HISTOGRAMS;
  more.addEventListener("click", () => {
    more.hidden = true;
    show(drawn.slice(HISTOGRAMS));
  });
  const rows = histograms
    .filter(({ bars }) => bars.length === 0)
    .map((each): [string, Child] => [each.label, describe(each)]);
  const note = drawn.length > 0 ? "Shares of the symbols of each quantizer, the most used first." : "";
  const plain = rows.length > 0 ? [pairs("Quantizers whose symbols are plain bits", rows)] : [];
  show(drawn.slice(0, HISTOGRAMS));
  return section("Coefficients", element("p", { class: "note" }, note), grid, more, ...plain);
}

function describe({ count: all, paid, entropy }: Histogram): string {
  return `${count(all)} symbols, ${paid.toFixed(2)} bits each in the file, entropy ${entropy.toFixed(2)} bits`;
}

function renderHistogram(histogram: Histogram): HTMLElement {
  const { label, count: all, bars } = histogram;
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const largest = Math.max(...bars.map(({ count: own }) => own));
  svg.setAttribute("viewBox", `0 0 ${bars.length} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const top = bars.reduce((a, b) => (b.count > a.count ? b : a));
  svg.setAttribute("aria-label", `${label}. The most frequent is ${top.label}, ${((100 * top.count) / all).toFixed(1)}%.`);
  bars.forEach(({ label: own, count: times }, at) => {
    const height = (100 * times) / largest;
    const bar = document.createElementNS(namespace, "rect");
    for (const [name, value] of Object.entries({ x: at + 0.1, y: 100 - height, width: 0.8, height })) {
      bar.setAttribute(name, String(value));
    }
    const title = document.createElementNS(namespace, "title");
    title.textContent = `${own}: ${count(times)}`;
    bar.append(title);
    svg.append(bar);
  });
  return element("figure", {}, svg, element("figcaption", {}, element("strong", {}, label), element("br"), describe(histogram)));
}
