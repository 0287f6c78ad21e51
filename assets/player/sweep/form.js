// What to sweep: a policy, one or two of its parameters with a range each, repeats; and what that plan comes to, asked while it is edited.

import { Heat } from "../charts/heat.js";
import { debounce, h, put, show } from "../core/dom.js";
import { inputsNow, promptSize } from "../core/page.js";
import { drawKeys } from "../core/panels.js";
import { TEXT } from "../text.js";
import { defaults } from "../settings/arm.js";
import { cellsOf, named, parametersOf, range } from "./data.js";

const NUMBERS = /** @type {const} */ (["from", "to", "step"]);
const axisMarkup = (/** @type {number} */ number) => `<div class="avl-sweep-axis" role="group" aria-label="${TEXT.sweepAxis(number)}">
  <select class="avl-select" data-id="sweepName${number}" aria-label="${TEXT.sweepAxis(number)}"></select>
  <span class="avl-sweep-range" data-id="sweepRange${number}">${NUMBERS.map((name) => `<label>${TEXT.sweepRange[name]} <input type="number" class="avl-number" data-id="sweep-${name}${number}" step="any"></label>`).join("")}</span>
  <label class="avl-toggle" data-id="sweepOffBox${number}" title="${TEXT.sweepOffTitle}" hidden><input type="checkbox" data-id="sweepOff${number}"> ${TEXT.sweepOff}</label>
</div>`;

export const FORM = `<p class="avl-note">${TEXT.sweepLede}</p>
<div class="avl-sweep-form" data-id="sweepForm">
  <label>${TEXT.sweepPolicy} <select class="avl-select" data-id="sweepPolicy"></select></label>
  ${axisMarkup(1)}${axisMarkup(2)}
  <label>${TEXT.sweepRepeats} <input type="number" class="avl-number" data-id="sweepRepeats" min="1" max="20" step="1" value="1" title="${TEXT.sweepRepeatsTitle}"></label>
</div>
<p class="avl-note" data-id="sweepBase"></p>
<p class="avl-sweep-plan" data-id="sweepPlan" role="status"></p>
<div data-id="sweepPreview">
  <div class="avl-keys" data-id="sweepPlanKeys"></div>
  <div class="avl-plot avl-plot-small" data-id="sweepPlanChart"></div>
  <canvas class="avl-heat" data-id="sweepPlanHeat" role="img" aria-label="${TEXT.sweepPlanHeat}" hidden></canvas>
</div>
<details class="avl-table" data-id="sweepSkipped" hidden><summary data-id="sweepSkippedCount"></summary><div tabindex="0"><ul class="avl-warnings" data-id="sweepSkippedList"></ul></div></details>
<div class="avl-downloads"><button type="button" class="avl-btn avl-strong" data-id="sweepGo" disabled>${TEXT.sweepGo(0)}</button></div>
<p class="avl-alert" data-id="sweepProblem" role="alert" hidden></p>`;

/**
 * @param {Record<string, any>} $ parts
 * @param {{ catalog: any, server: any, chart: (node: any, options: any) => any, colors: () => { text: string, muted: string } }} tools
 * @param {(plan: any) => void} planned the plan changed, null while there is none
 */
export function sweepForm($, { catalog, server, chart: chartOn, colors }, planned) {
  const swept = (/** @type {string} */ policy) => catalog[policy].parameters.filter((/** @type {any} */ one) => !one.choices.length);
  const names = Object.keys(catalog).filter((name) => swept(name).length);
  const options = { x: "", unit: "%", hover: ".0f", height: 140 };
  const chart = chartOn($.sweepPlanChart, options), heat = new Heat($.sweepPlanHeat, () => {});
  $.sweepPolicy.append(...names.map((name) => h("option", { value: name, selected: name === "AVL" }, catalog[name].title)));
  /** @type {any} */ let plan = null;

  // the policy's other parameters are those of the settings, where one of its arms has it
  function base() {
    const policy = $.sweepPolicy.value, now = inputsNow(), arm = now && now.settings.arms.find((/** @type {any} */ one) => one.policy === policy);
    return { ...(arm || defaults(catalog, policy)) };
  }

  function axisNames() { return [1, 2].map((number) => $[`sweepName${number}`].value).filter(Boolean); }

  function fillRange(/** @type {number} */ number) {
    const chosen = $[`sweepName${number}`].value;
    const one = swept($.sweepPolicy.value).find((/** @type {any} */ parameter) => parameter.key === chosen);
    show($[`sweepRange${number}`], chosen);
    show($[`sweepOffBox${number}`], one && one.off);
    $[`sweepOff${number}`].checked = false;
    if (!chosen) return;
    const found = range(one, axisNames().length > 1 ? 6 : 12);
    for (const name of NUMBERS) $[`sweep-${name}${number}`].value = found[name];
  }

  function fillAxes() {
    const parameters = swept($.sweepPolicy.value);
    const list = () => parameters.map((/** @type {any} */ one) => h("option", { value: one.key }, `${one.key.length === 1 ? `${one.key} ` : ""}${one.label}`));
    $.sweepName1.replaceChildren(...list());
    $.sweepName2.replaceChildren(h("option", { value: "" }, TEXT.sweepNone), ...list());
    fillSecond();
    fillRange(1);
    fillRange(2);
  }

  function fillSecond() {
    for (const option of $.sweepName2.options) option.disabled = option.value !== "" && option.value === $.sweepName1.value;
    if ($.sweepName2.value === $.sweepName1.value) $.sweepName2.value = "";
  }

  /** What the server is asked to sweep. */
  function wanted() {
    const over = Object.fromEntries([1, 2].filter((number) => $[`sweepName${number}`].value).map((number) => [$[`sweepName${number}`].value,
      { ...Object.fromEntries(NUMBERS.map((name) => { const { value } = $[`sweep-${name}${number}`]; return [name, value.trim() === "" ? null : Number(value)]; })), off: $[`sweepOff${number}`].checked }]));
    const now = inputsNow(), tokens = now ? { max_new_tokens: now.settings.max_new_tokens } : {};
    return { policy: base(), over, repeats: Number($.sweepRepeats.value) || 0, prompt: promptSize(), ...tokens };
  }

  let asking = false;
  const ask = debounce(async () => {
    if (asking) return;
    asking = true;
    const sent = JSON.stringify(wanted()), found = await server.sweep_plan(JSON.parse(sent)).catch(() => ({ error: TEXT.noPrediction }));
    asking = false;
    if (sent !== JSON.stringify(wanted())) { ask(); return; }
    plan = found;
    draw();
  }, 120);

  function draw() {
    const { error = "", points = [], skipped = [], axes = [] } = plan || {}, others = parametersOf(catalog, base());
    for (const name of axisNames()) delete others[name];
    put($.sweepBase, Object.keys(others).length ? TEXT.sweepBase(named(others)) : "");
    const shares = (/** @type {string} */ key) => points.map((/** @type {any} */ one) => one[key]);
    const between = (/** @type {number[]} */ values) => (values.length ? TEXT.sweepBetween(Math.min(...values), Math.max(...values)) : "");
    put($.sweepPlan, error || TEXT.sweepPlan(points.length, between(shares("stored_share")), between(shares("read_share")), points.filter((/** @type {any} */ one) => one.lowered.length).length));
    $.sweepPlan.classList.toggle("avl-problem", Boolean(error));
    show($.sweepSkipped, skipped.length);
    put($.sweepSkippedCount, TEXT.sweepSkipped(skipped.length));
    $.sweepSkippedList.replaceChildren(...skipped.map((/** @type {any} */ one) => h("li", {}, TEXT.sweepSkippedOne(named(one.values), one.reason))));
    drawPreview(points, axes);
    planned(error ? null : plan);
  }

  function drawPreview(/** @type {any[]} */ points, /** @type {any[]} */ axes) {
    const one = axes.length === 1, two = axes.length === 2;
    show($.sweepPlanChart, one && points.length);
    show($.sweepPlanKeys, one && points.length);
    show($.sweepPlanHeat, two && points.length);
    if (two && points.length) {
      const cell = cellsOf(axes, points);
      heat.draw({
        rows: axes[0].values.length, cols: axes[1].values.length, value: (row, col) => { const found = /** @type {any} */ (cell(row, col)); return found ? found.stored_share : null; },
        rowTitle: axes[0].name, colTitle: axes[1].name, axis: TEXT.sweepHeatAxis(TEXT.sweepPredicted.stored, axes[1].name, axes[0].name),
        rowName: (row) => axes[0].values[row] ?? TEXT.off, colName: (col) => axes[1].values[col] ?? TEXT.off, mark: [-1, -1],
      }, colors());
    }
    if (!one || !points.length) return;
    options.x = TEXT.sweepAxisOf(axes[0].name, axes[0].label, axes[0].unit);
    const placed = points.filter((point) => point.values[axes[0].name] !== null); // off has no place on the axis
    const xs = placed.map((point) => point.values[axes[0].name]), lines = [
      { name: TEXT.sweepPredicted.stored, color: "--avl-b", dash: "", width: 2, markers: false }, { name: TEXT.sweepPredicted.read, color: "--avl-b", dash: "dot", width: 1.6, markers: false },
    ];
    chart.reset(lines, [[xs, placed.map((point) => 100 * point.stored_share)], [xs, placed.map((point) => 100 * point.read_share)]]);
    drawKeys($.sweepPlanKeys, lines);
  }

  $.sweepPolicy.addEventListener("change", () => { fillAxes(); ask(); });
  $.sweepName1.addEventListener("change", () => { fillSecond(); fillRange(1); ask(); });
  $.sweepName2.addEventListener("change", () => { fillRange(1); fillRange(2); ask(); });
  for (const number of [1, 2]) for (const field of [...NUMBERS.map((name) => `sweep-${name}${number}`), `sweepOff${number}`]) $[field].addEventListener("input", ask);
  $.sweepRepeats.addEventListener("input", ask);
  fillAxes();
  return { ask, wanted, draw };
}
