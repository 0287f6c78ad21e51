// What the run shows: a sentence, measured beside predicted, warnings, downloads.

import { h, put, show } from "../core/dom.js";
import { DASH, formatBytes, formatMs, formatPercent } from "../core/format.js";
import { busy } from "../core/panels.js";
import { save } from "../core/tab.js";
import { endedBecause, machineOf, samplingOf } from "../labels.js";
import { median, quantile } from "../stats/times.js";
import { shownArms } from "../state.js";
import { TEXT } from "../text.js";
import { predicted, rightOrWrong, verdict } from "../verdict.js";

/** @typedef {import("../trace/run.js").Arm} Arm */

const SHORT = 40; // characters of a right answer that is judged as a whole

/** @type {import("../core/panels.js").Panel} */
export const result = {
  name: "result",
  label: "Result",
  help: TEXT.resultHelp,
  html: `<div class="avl-head" data-id="resultHead"><h2>${TEXT.result}</h2><span class="avl-note" data-id="runs"></span></div>
<p class="avl-verdict" data-id="verdict"></p>
<div class="avl-scroll" data-id="measured" tabindex="0"></div>
<ul class="avl-warnings" data-id="warnings"></ul>
<div class="avl-downloads">
  <button type="button" class="avl-btn" data-id="saveHtml">${TEXT.saveHtml}</button>
  <button type="button" class="avl-btn" data-id="saveJson">${TEXT.saveJson}</button>
  <button type="button" class="avl-btn" data-id="saveCsv">${TEXT.saveCsv}</button>
  <button type="button" class="avl-btn" data-id="savePng">${TEXT.savePng}</button>
</div>`,
  on: ["run", "opened", "complete", "pair"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    const stamp = () => String((store.state.run && store.state.run.start.date) || "run").slice(0, 19).replace(/[^0-9A-Za-z]+/g, "-");
    const failed = () => store.set({ error: TEXT.downloadFailed });
    for (const [button, kind, type] of [[$.saveJson, "json", "application/json"], [$.saveCsv, "csv", "text/csv"], [$.saveHtml, "html", "text/html"]]) {
      button.addEventListener("click", () => busy(button, async () => save(`avl-${stamp()}.${kind}`, type, await tools.server.download({ run: store.state.id, kind })), failed));
    }
    $.savePng.addEventListener("click", () => busy($.savePng, async () => save(`avl-${stamp()}-layer${store.state.layer}.png`, "image/png", await tools.viewAsPng()), failed));
    return {
      update() {
        const { state } = store, { run } = state;
        // a run without a single token has nothing to judge
        show(node, Boolean(run) && state.complete === state.opened && run && run.last >= 0);
        if (!run || node.hidden) return;
        draw($, run, shownArms(state));
      },
    };
  },
};

/** @param {Record<string, any>} $ @param {import("../trace/run.js").Run} run @param {Arm[]} arms */
function draw($, run, arms) {
  const { start } = run, times = Math.min(...run.arms.map((_, index) => run.medians(index).length)), words = TEXT.resultRows;
  put($.runs, times > 1 ? TEXT.medianOfRuns(times) : TEXT.oneRun);
  put($.verdict, verdict(run, arms));
  const row = (/** @type {string} */ name, /** @type {string[]} */ cells, /** @type {string} */ title = "") => h("tr", title ? { title } : {}, h("th", { scope: "row" }, name), cells.map((text) => h("td", {}, text)));
  const expected = arms.map((arm) => predicted(run, arm)), answer = typeof run.meta.expected === "string" ? run.meta.expected : "";
  const both = (/** @type {number | null} */ measured, /** @type {number | undefined} */ told) => `${formatPercent(measured)} (${told === undefined ? DASH : formatPercent(told)})`;
  const range = (/** @type {number[]} */ values) => `${formatMs(median(values))} (${formatMs(Math.min(...values))} to ${formatMs(Math.max(...values))})`;
  $.measured.replaceChildren(h("table", { class: "avl-results" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "avl-sr" }, TEXT.figure)),
      arms.map((arm, place) => h("th", { scope: "col" }, h("i", { class: `avl-dot avl-dot-${place ? "b" : "a"}` }), arm.spec.label)))),
    h("tbody", {},
      row(words.stored, arms.map((arm, i) => both(run.meanShare(arm, arm.storedBytes), expected[i]?.stored)), words.storedTitle),
      row(words.read, arms.map((arm, i) => both(run.meanShare(arm, arm.readBytes), expected[i]?.read))),
      row(words.storedEnd, arms.map((arm) => formatBytes(arm.storedBytes[arm.last]))),
      row(words.peak, arms.map((arm) => formatBytes(arm.prefill && (arm.end || arm.prefill).peak_bytes))),
      row(words.ttft, arms.map((arm) => formatMs(arm.ms[0]))),
      times < 2 ? null : row(words.runs(times), arms.map((arm) => range(run.medians(arm.index)))),
      row(times > 1 ? words.runDrawn : words.perToken, arms.map((arm) => `${formatMs(median(arm.stepMs()))} (${formatMs(quantile(arm.stepMs(), 0.99))})`)),
      row(words.total, arms.map((arm) => formatMs(arm.prefill && arm.clockNow))),
      row(words.tokens, arms.map((arm) => !arm.prefill ? TEXT.notStarted : `${arm.last + 1}${arm.end ? `, ${endedBecause(arm.end.reason)}` : ""}`), words.tokensTitle),
      !answer ? null : answer.length <= SHORT ? row(words.answer, arms.map((arm) => rightOrWrong(arm, answer))) :
        h("tr", {}, h("th", { scope: "row" }, words.answer), h("td", { colspan: String(arms.length), class: "avl-wide-cell" }, answer)),
    )));
  $.warnings.replaceChildren(...run.warnings.map((text) => h("li", {}, text)));
  $.warnings.append(h("li", { class: "avl-machine" }, `${machineOf(start)} · ${samplingOf(start)}`));
}
