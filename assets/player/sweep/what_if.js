// What a model would take on another GPU: predicted from sizes alone, asked while the fields are edited.

import { chartMarkup } from "../charts/per_token.js";
import { debounce, h, put, show } from "../core/dom.js";
import { DASH, fixed, formatBytes, formatMs } from "../core/format.js";
import { inputsNow } from "../core/page.js";
import { drawKeys, tableWhenOpen } from "../core/panels.js";
import { TEXT } from "../text.js";
import { listOfNumbers, named, parametersOf } from "./data.js";

const WORDS = TEXT.whatIf;
const number = (/** @type {"image" | "text" | "tokens"} */ name, /** @type {string} */ id, /** @type {string} */ more) => `<label>${WORDS[name]} <input type="number" class="avl-number" data-id="${id}" step="1" ${more}></label>`;

export const WHAT_IF = `<p class="avl-note">${WORDS.lede}</p>
<div class="avl-sweep-form">
  <label>${WORDS.model} <select class="avl-select" data-id="whatIfModel"></select></label>
  <label>${WORDS.gpu} <select class="avl-select" data-id="whatIfGpu"></select></label>
  <label>${WORDS.policy} <select class="avl-select" data-id="whatIfPolicy"></select></label>
  <label>${WORDS.batch} <input type="text" class="avl-number" data-id="whatIfBatch" value="1, 8, 32" inputmode="numeric"></label>
  ${number("image", "whatIfImage", `min="0"`)}
  ${number("text", "whatIfText", `min="1" value="65"`)}
  ${number("tokens", "whatIfTokens", `min="2" value="128"`)}
</div>
<p class="avl-problem" data-id="whatIfProblem" role="status"></p>
<div data-id="whatIfFound" hidden>
  <p class="avl-verdict" data-id="whatIfLargest" role="status"></p>
  <div class="avl-scroll avl-nowrap" tabindex="0" role="region" aria-label="${WORDS.rows}" data-id="whatIfRows"></div>
  <div class="avl-columns">
    <div class="avl-column"><div>${chartMarkup("whatIfMs", WORDS.ms, "h3")}</div></div>
    <div class="avl-column"><div>${chartMarkup("whatIfSpeedup", WORDS.speedup, "h3")}</div></div>
  </div>
  <ul class="avl-warnings" data-id="whatIfNotes"></ul>
</div>`;

/**
 * @param {Record<string, any>} $ parts
 * @param {{ catalog: any, server: any, chart: (node: any, options: any) => any }} tools
 */
export function whatIf($, { catalog, server, chart: chartOn }) {
  const overBatch = chartOn($.whatIfMs, { x: WORDS.batchAxis, unit: "ms", hover: ".2f", height: 200, log: true });
  const overImage = chartOn($.whatIfSpeedup, { x: WORDS.image, unit: "×", hover: ".2f", height: 200 });
  tableWhenOpen($.whatIfMsTable, () => overBatch.table(), (value) => fixed(value, 2));
  tableWhenOpen($.whatIfSpeedupTable, () => overImage.table(), (value) => fixed(value, 2));
  /** @type {any} */ let choices = null;
  /** @type {any[]} */ let arms = [];

  async function begin() {
    if (choices) { fillPolicies(); ask(); return; }
    choices = await server.what_if_choices({}).catch(() => null);
    if (!choices) { put($.whatIfProblem, TEXT.noPrediction); return; }
    $.whatIfModel.append(...choices.models.map((/** @type {any} */ one) => h("option", { value: one.name, selected: one.name === choices.model }, one.label)));
    $.whatIfGpu.append(...choices.machines.map((/** @type {any} */ one) => h("option", { value: one.name, selected: one.name === choices.machine, title: one.source }, one.label)));
    fillPolicies();
    drawPlaceholder();
    ask();
  }

  // the policies of the settings, A-VL first, and the paper's
  function fillPolicies() {
    const now = inputsNow(), kept = $.whatIfPolicy.value;
    arms = now ? now.settings.arms.filter((/** @type {any} */ arm) => arm.policy !== "Full").sort((/** @type {any} */ a, /** @type {any} */ b) => Number(b.policy === "AVL") - Number(a.policy === "AVL")) : [];
    const words = arms.map((arm) => `${catalog[arm.policy].title} ${named(parametersOf(catalog, arm))}`);
    $.whatIfPolicy.replaceChildren(...words.map((text, index) => h("option", { value: String(index) }, text)), h("option", { value: "paper" }, WORDS.paper));
    $.whatIfPolicy.value = kept === "paper" || !arms.length ? "paper" : arms[Number(kept)] ? String(Number(kept)) : "0";
  }

  function drawPlaceholder() {
    const found = choices.models.find((/** @type {any} */ one) => one.name === $.whatIfModel.value);
    $.whatIfImage.placeholder = found ? String(found.n_image) : "";
  }

  function wanted() {
    const read = (/** @type {any} */ node) => (node.value.trim() === "" ? null : Number(node.value)), chosen = $.whatIfPolicy.value;
    return {
      model: $.whatIfModel.value, gpu: $.whatIfGpu.value, batch: listOfNumbers($.whatIfBatch.value), image_tokens: read($.whatIfImage),
      text_tokens: read($.whatIfText), new_tokens: read($.whatIfTokens), policy: chosen === "paper" ? null : arms[Number(chosen)] || null,
    };
  }

  let asking = false;
  const ask = debounce(async () => {
    if (asking || !choices) return;
    asking = true;
    const sent = JSON.stringify(wanted()), found = await server.what_if(JSON.parse(sent)).catch(() => ({ error: TEXT.noPrediction }));
    asking = false;
    if (sent !== JSON.stringify(wanted())) { ask(); return; }
    put($.whatIfProblem, found.error || "");
    $.whatIfFound.classList.toggle("avl-later", Boolean(found.error));
    if (!found.error) draw(found);
  }, 120);

  function draw(/** @type {any} */ found) {
    show($.whatIfFound, true);
    const { rows, largest, machine, request, measured } = found;
    put($.whatIfLargest, WORDS.largest(machine.label, largest));
    const cells = (/** @type {any} */ arm) => [h("td", {}, formatMs(arm.ms)), h("td", { class: arm.fits ? "" : "avl-problem" }, formatBytes(arm.need_bytes), arm.fits ? null : h("small", {}, ` ${WORDS.noFit}`))];
    $.whatIfRows.replaceChildren(h("table", { class: "avl-results" },
      h("thead", {}, h("tr", {}, WORDS.heads.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((/** @type {any} */ row) => h("tr", {}, h("th", { scope: "row" }, String(row.batch)), cells(row.full), cells(row.policy), h("td", {}, `${fixed(row.speedup, 2)}×`), h("td", {}, WORDS.bound[/** @type {"kv"} */ (row.full.bound)] || DASH))))));
    const ms = (/** @type {"full" | "policy"} */ arm) => /** @type {[number[], number[]]} */ ([found.over_batch.map((/** @type {any} */ row) => row.batch), found.over_batch.map((/** @type {any} */ row) => row[arm].ms)]);
    // points of the policy asked about; where it was measured with other settings alone, of the first of these
    const others = measured.filter((/** @type {any} */ one) => one.policy.name !== "Full" && one.policy.name === request.policy.name);
    const told = others.find((/** @type {any} */ one) => one.label === request.label) || others[0];
    const points = (/** @type {any[]} */ some) => /** @type {[number[], number[]]} */ ([some.map((one) => one.batch), some.map((one) => one.ms)]);
    const fullPoints = points(measured.filter((/** @type {any} */ one) => one.policy.name === "Full")), otherPoints = points(others.filter((/** @type {any} */ one) => one.label === told.label));
    const full = { name: TEXT.sweepFull, color: "--avl-a", dash: "dash", width: 2, markers: false }, other = { name: request.label, color: "--avl-b", dash: "", width: 2.4, markers: false };
    const lines = [full, other, { name: fullPoints[0].length ? WORDS.measured(TEXT.sweepFull) : "", color: "--avl-a", dash: "", width: 1, markers: true }, { name: told ? WORDS.measured(told.label) : "", color: "--avl-b", dash: "", width: 1, markers: true }];
    overBatch.reset(lines, [ms("full"), ms("policy"), fullPoints, otherPoints]);
    drawKeys($.whatIfMsKeys, lines.filter((line) => line.name));
    put($.whatIfMsNote, WORDS.msNote);
    overImage.reset([{ ...other, name: WORDS.speedup }], [[found.over_image.map((/** @type {any} */ row) => row.n_image), found.over_image.map((/** @type {any} */ row) => row.speedup)]]);
    put($.whatIfSpeedupNote, WORDS.speedupNote(rows[0].batch));
    const where = measured.length ? [WORDS.measuredWhere(measured[0], !measured[0].same_prompt)] : [];
    $.whatIfNotes.replaceChildren(...[...found.notes, ...where, ...found.left_out, WORDS.rates(machine.label, machine.source)].map((text) => h("li", {}, text)));
  }

  for (const part of ["whatIfModel", "whatIfGpu", "whatIfPolicy"]) $[part].addEventListener("change", () => { drawPlaceholder(); ask(); });
  for (const part of ["whatIfBatch", "whatIfImage", "whatIfText", "whatIfTokens"]) $[part].addEventListener("input", ask);
  return { begin, refresh() { fillPolicies(); ask(); } };
}
