// What a sweep gave: the verdict, curves over one parameter or a grid of two, and a table of answers whose settings can be taken over.

import { Heat } from "../charts/heat.js";
import { chartMarkup } from "../charts/per_token.js";
import { h, put, show } from "../core/dom.js";
import { fixed, formatBytes, formatMs, formatPercent } from "../core/format.js";
import { applyPolicy } from "../core/page.js";
import { drawKeys, tableElement, tableWhenOpen } from "../core/panels.js";
import { TEXT } from "../text.js";
import { SHADES, cellsOf, curves, fromDifference, placeOf, shortened } from "./data.js";

/** @typedef {import("./data.js").Row} Row */
/** @typedef {import("./data.js").Sweep} Sweep */

const ANSWER = 90; // characters of an answer in the table
const SHARE = 10, SOONEST = 400;
const CLOSE = 8; // curves with fewer points have them marked

export const RESULTS = `<div data-id="sweepResult" hidden>
<p class="avl-note" data-id="sweepOf"></p>
<p class="avl-verdict" data-id="sweepVerdict"></p>
<div class="avl-columns" data-id="sweepCurves">
  <div class="avl-column"><div>${chartMarkup("sweepMemory", TEXT.sweepMemory, "h3")}</div></div>
  <div class="avl-column"><div>${chartMarkup("sweepTime", TEXT.sweepTime, "h3")}</div></div>
</div>
<div data-id="sweepGrid">
  <div class="avl-tools"><label>${TEXT.sweepGridShows} <select class="avl-select" data-id="sweepShade"></select></label></div>
  <canvas class="avl-heat" data-id="sweepHeat" role="img" aria-label="${TEXT.sweepGridLabel}"></canvas>
  <details class="avl-table" data-id="sweepHeatTable"><summary>${TEXT.table}</summary><div tabindex="0"></div></details>
</div>
<div class="avl-scroll avl-nowrap avl-sweep-rows" tabindex="0" role="region" aria-label="${TEXT.sweepRows}" data-id="sweepRows"></div>
<p class="avl-note" data-id="sweepApplied" role="status"></p>
<div class="avl-downloads" data-id="sweepDownloads">
  <button type="button" class="avl-btn" data-id="sweepCsv">${TEXT.sweepCsv}</button>
  <button type="button" class="avl-btn" data-id="sweepJson">${TEXT.sweepJson}</button>
</div>
<ul class="avl-warnings" data-id="sweepNotes"></ul>
</div>`;

/**
 * @param {Record<string, any>} $ parts
 * @param {{ chart: (node: any, options: any) => any, colors: () => { text: string, muted: string } }} tools
 */
export function sweepResults($, tools) {
  const memoryOptions = { x: "", unit: "MiB", hover: ".2f", height: 200 }, timeOptions = { x: "", unit: "ms", hover: ".2f", height: 190 };
  const memory = tools.chart($.sweepMemory, memoryOptions), time = tools.chart($.sweepTime, timeOptions);
  tableWhenOpen($.sweepMemoryTable, () => memory.table(), (value) => fixed(value, 2));
  tableWhenOpen($.sweepTimeTable, () => time.table(), (value) => fixed(value, 2));
  const heat = new Heat($.sweepHeat, (row, col) => {
    const point = sweep && sweep.axes.length === 2 ? /** @type {Row | null} */ (cellsOf(sweep.axes, sweep.points)(row, col)) : null, line = point && lines.get(point.point ?? -1);
    if (line) line.scrollIntoView({ block: "nearest" });
  });
  $.sweepShade.append(...Object.keys(SHADES).map((key) => h("option", { value: key }, TEXT.sweepShades[/** @type {keyof typeof SHADES} */ (key)])));
  $.sweepShade.addEventListener("change", () => draw());
  const fillTable = () => {
    const table = $.sweepHeatTable.open ? heat.table() : null;
    $.sweepHeatTable.querySelector("div").replaceChildren(table ? tableElement(table, formatPercent) : "");
  };
  $.sweepHeatTable.addEventListener("toggle", fillTable);
  /** @type {Sweep | null} */ let sweep = null;
  /** @type {Map<number, any>} */ let lines = new Map();
  /** @type {any} */ let body = null;

  function begin(/** @type {Sweep} */ next) {
    sweep = next;
    lines = new Map();
    body = h("tbody", {});
    const names = next.axes.map((axis) => h("th", { scope: "col", title: axis.label }, axis.name));
    $.sweepRows.replaceChildren(h("table", { class: "avl-results" }, h("thead", {}, h("tr", {}, names, TEXT.sweepHeads.map((text) => h("th", { scope: "col" }, text)))), body));
    put($.sweepApplied, "");
    show($.sweepResult, true);
  }

  // one line per point, in their order; a repeat replaces it
  function place(/** @type {number} */ at) {
    const row = sweep && sweep.rows.get(at), old = lines.get(at);
    if (!sweep || !row) return;
    const line = lineOf(sweep, row);
    if (old) {
      const open = old.querySelector("details[open]");
      if (open && line.querySelector("details")) line.querySelector("details").open = true;
      old.replaceWith(line);
    } else body.append(line); // points come in their order
    lines.set(at, line);
  }

  function lineOf(/** @type {Sweep} */ of, /** @type {Row} */ row) {
    const isFull = row.point === null, short = isFull || !of.full ? shortened(row.text, ANSWER) : fromDifference(row.text, of.full.text, ANSWER);
    // an answer that is the same need not be read again
    const answer = row.same && !isFull ? null : short === row.text.trim() ? h("p", {}, short || TEXT.noText) : h("details", {}, h("summary", {}, short), h("p", {}, row.text));
    return h("tr", { class: isFull ? "avl-sweep-full" : row.same ? "avl-sweep-same" : "", "data-point": String(row.point ?? -1) },
      isFull ? h("th", { scope: "row", colspan: String(of.axes.length) }, TEXT.sweepFull) :
        of.axes.map((axis, index) => h(index ? "td" : "th", index ? {} : { scope: "row" }, String(row.values[axis.name] ?? TEXT.off))),
      h("td", { class: "avl-wide-cell avl-sweep-answer" },
        h("b", {}, isFull ? TEXT.sweepTokens(row.tokens.length) : row.same ? TEXT.sweepSame : TEXT.sweepDiffers(row.identical + 1)), answer, row.notes.length ? h("small", {}, row.notes.join(" ")) : null),
      h("td", {}, formatBytes(row.stored_bytes), h("small", {}, ` ${formatPercent(row.stored_share)}`)),
      h("td", {}, formatBytes(row.read_bytes), h("small", {}, ` ${formatPercent(row.read_share)}`)),
      h("td", {}, formatMs(row.ttft_ms)), h("td", {}, formatMs(row.median_ms)),
      h("td", {}, isFull ? null : h("button", { type: "button", class: "avl-btn avl-small", title: TEXT.sweepUseOf(row.label), "aria-label": TEXT.sweepUseOf(row.label), onclick: () => use(row) }, TEXT.sweepUse)));
  }

  function use(/** @type {Row} */ row) {
    const number = applyPolicy(row.policy);
    put($.sweepApplied, number ? TEXT.sweepApplied(number, row.label) : TEXT.sweepNotApplied);
  }

  // charts take a small part of the time: a fast sweep gets fewer redraws, never a growing backlog
  let timer = 0, allowed = 0;
  function drawSoon() {
    if (!timer) timer = window.setTimeout(draw, Math.max(0, allowed - performance.now()));
  }

  function draw() {
    clearTimeout(timer);
    timer = 0;
    if (!sweep || !sweep.start) return;
    const began = performance.now();
    const { start, end, axes } = sweep;
    put($.sweepOf, TEXT.sweepOf(start.title, start.question, start.repeats));
    put($.sweepVerdict, end ? end.text : "");
    show($.sweepDownloads, Boolean(end));
    show($.sweepCurves, axes.length === 1 && sweep.rows.size);
    show($.sweepGrid, axes.length === 2 && sweep.rows.size);
    if (axes.length === 1 && sweep.rows.size) drawCurves(sweep);
    if (axes.length === 2 && sweep.rows.size) drawGrid(sweep);
    for (const [at, line] of lines) line.classList.toggle("avl-sweep-best", Boolean(end) && end.cheapest === at);
    if (end) $.sweepNotes.replaceChildren(...start.notes.map((/** @type {string} */ text) => h("li", {}, text))); else $.sweepNotes.replaceChildren();
    allowed = performance.now() + Math.max(SOONEST, SHARE * (performance.now() - began));
  }

  function drawCurves(/** @type {Sweep} */ of) {
    const [axis] = of.axes, found = curves(of);
    memoryOptions.x = timeOptions.x = TEXT.sweepAxisOf(axis.name, axis.label, axis.unit);
    Object.assign(memoryOptions, { unit: found.unit, hover: found.unit === "KiB" ? ".0f" : ".2f" });
    const full = { name: TEXT.sweepFull, color: "--avl-a", dash: "dash", width: 1.6, markers: false };
    const memoryLines = [full, { name: TEXT.kvStored, color: "--avl-b", dash: "", width: 2.4, markers: false }, { name: TEXT.kvRead, color: "--avl-b", dash: "dot", width: 1.6, markers: false },
      { name: found.same[0].length ? TEXT.sweepSameMark : "", color: "--avl-good", dash: "", width: 1, markers: true }];
    memory.reset(memoryLines, [found.full, found.stored, found.read, found.same]);
    drawKeys($.sweepMemoryKeys, memoryLines.filter((line) => line.name));
    put($.sweepMemoryNote, TEXT.memoryNote(found.unit, of.start.batch));
    setTimeout(() => drawTimes(of, found, full)); // a task each: the page answers in between
  }

  function drawTimes(/** @type {Sweep} */ of, /** @type {ReturnType<typeof curves>} */ found, /** @type {import("../charts/line.js").Line} */ full) {
    // few points are seen better with a mark each
    const timeLines = [full, { name: of.start.title, color: "--avl-b", dash: "", width: 2.4, markers: false }, { name: "", color: "--avl-b", dash: "", width: 1, markers: true }];
    time.reset(timeLines, [found.fullMs, found.ms, of.points.length < CLOSE ? found.ms : [[], []]]);
    drawKeys($.sweepTimeKeys, timeLines.filter((line) => line.name));
    put($.sweepTimeNote, of.start.repeats > 1 ? TEXT.medianOfRuns(of.start.repeats) : TEXT.latencyNote);
  }

  function drawGrid(/** @type {Sweep} */ of) {
    const [down, across] = of.axes, cell = cellsOf(of.axes, of.points), shade = SHADES[/** @type {keyof typeof SHADES} */ ($.sweepShade.value)];
    const best = of.end && of.end.cheapest !== null ? of.start.points[of.end.cheapest].values : of.progress && of.progress.point !== null ? of.start.points[of.progress.point].values : null;
    heat.draw({
      rows: down.values.length, cols: across.values.length, value: (row, col) => { const found = /** @type {Row | null} */ (cell(row, col)); return found ? shade(found, of.full) : null; },
      rowTitle: down.name, colTitle: across.name, axis: TEXT.sweepHeatAxis($.sweepShade.selectedOptions[0].textContent, across.name, down.name),
      rowName: (row) => down.values[row] ?? TEXT.off, colName: (col) => across.values[col] ?? TEXT.off, mark: placeOf(of.axes, best),
    }, tools.colors());
    fillTable();
  }

  return { begin, place, draw, drawSoon };
}
