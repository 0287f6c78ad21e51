// Runs of this visit: open one again, pin one and compare it with the one on screen, download them all.

import { calm, h, put, show } from "../core/dom.js";
import { DASH, formatMs, formatPercent, formatTime } from "../core/format.js";
import { busy } from "../core/panels.js";
import { save } from "../core/tab.js";
import { endedBecause } from "../labels.js";
import { comparison } from "../stats/compare.js";
import { TEXT } from "../text.js";
import { goesOn } from "../visit.js";

/** @typedef {import("../visit.js").Summary} Summary */

const EVERY = 2000; // ms between two looks at a run that goes on

/** @type {import("../core/panels.js").Panel} */
export const history = {
  name: "history",
  label: TEXT.visitLabel,
  className: "avl-panel avl-free",
  html: `<details class="avl-fold" data-id="visitBox"><summary><h2 data-id="visitCount"></h2></summary>
<p class="avl-note">${TEXT.visitNote}</p>
<p class="avl-note" data-id="visitSaid" role="status"></p>
<div data-id="versus" hidden>
  <div class="avl-head"><h3>${TEXT.versus}</h3><button type="button" class="avl-btn avl-small" data-id="unpin">${TEXT.unpin}</button></div>
  <p class="avl-note" data-id="versusNote"></p>
  <div class="avl-scroll" data-id="versusTable" tabindex="0" role="group" aria-label="${TEXT.versus}"></div>
</div>
<ol class="avl-visit" data-id="visit"></ol>
<div class="avl-downloads"><button type="button" class="avl-btn" data-id="visitCsv">${TEXT.visitCsv}</button></div>
</details>`,
  on: ["visit", "id", "state", "opened", "complete"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    if (tools.report) return {};
    let pinned = "", said = "";
    /** @type {Map<string, { words: string, node: HTMLElement }>} */ let rows = new Map();
    const actions = {
      open: async (/** @type {string} */ key) => {
        said = await tools.receiver.reopen(key).catch(() => TEXT.visitUnreachable);
        if (!said) tools.root.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
        draw();
      },
      pin: (/** @type {string} */ key) => { pinned = pinned === key ? "" : key; said = ""; draw(); },
    };
    const draw = () => {
      const { visit, id, state } = store.state, { expired } = tools.visit, waits = ["queued", "running", "stopping"].includes(state);
      show(node, visit.length > 0 || expired > 0);
      put($.visitCount, TEXT.visit(visit.length));
      if (!$.visitBox.open) return;
      put($.visitSaid, [said, expired ? TEXT.expired(expired) : ""].filter(Boolean).join(" "));
      if (!visit.some(({ run }) => run === pinned)) pinned = "";
      const before = rows;
      rows = new Map(visit.map((run) => {
        const words = JSON.stringify([{ ...run, count: 0, read: 0 }, run.run === pinned, run.run === id, waits]), old = before.get(run.run);
        return [run.run, old && old.words === words ? old : { words, node: rowOf(run, { pinned: run.run === pinned, shown: run.run === id, waits }, actions) }];
      }));
      const nodes = [...rows.values()].map((row) => row.node), there = [...$.visit.children];
      if (nodes.length !== there.length || nodes.some((one, at) => one !== there[at])) {
        const focused = /** @type {any} */ (document.activeElement), { key, act } = (focused && $.visit.contains(focused) && focused.dataset) || {};
        $.visit.replaceChildren(...nodes);
        const again = key && [...$.visit.querySelectorAll("button")].find((button) => button.dataset.key === key && button.dataset.act === act);
        if (again) again.focus({ preventScroll: true });
      }
      $.visitCsv.disabled = !visit.some((run) => run.started);
      drawVersus($, visit.find(({ run }) => run === pinned), visit.find(({ run }) => run === id));
    };
    $.unpin.addEventListener("click", () => { pinned = ""; draw(); });
    $.visitBox.addEventListener("toggle", () => { if ($.visitBox.open) { draw(); tools.visit.refresh(); } });
    $.visitCsv.addEventListener("click", () => busy($.visitCsv, async () => {
      const runs = (await tools.visit.refresh()).map(({ run }) => run);
      save(`avl-runs-${new Date().toISOString().slice(0, 16).replace(/[^0-9]+/g, "-")}.csv`, "text/csv", await tools.server.download({ runs, kind: "csv" }));
      said = "";
      draw();
    }, () => { said = TEXT.visitUnreachable; draw(); }));
    setInterval(() => { if ($.visitBox.open && store.state.visit.some(goesOn)) tools.visit.refresh(); }, EVERY);
    return { update: draw };
  },
};

/**
 * @param {Summary} run
 * @param {{ pinned: boolean, shown: boolean, waits: boolean }} is
 * @param {{ open: (key: string) => void, pin: (key: string) => void }} actions
 */
function rowOf(run, is, actions) {
  const question = run.started ? run.question : TEXT.neverBegan, time = run.started ? formatTime(run.date) : "";
  const named = (/** @type {string} */ word) => `${word}: ${[time, question].filter(Boolean).join(", ")}`;
  const button = (/** @type {string} */ act, /** @type {string} */ word, /** @type {any} */ more) => h("button", {
    type: "button", class: "avl-btn avl-small", "data-key": run.run, "data-act": act, "aria-label": named(word), ...more,
  }, word);
  const facts = [
    time, run.turn > 1 ? TEXT.turns.turnOf(run.turn, run.first_question) : "", (/** @type {Record<string, string>} */ (TEXT.visitStates))[run.state] || run.state, (run.pictures || []).join(", "), run.batch > 1 ? TEXT.batchOf(run.batch) : "",
    run.repeats > 1 ? TEXT.runsOf(run.repeats) : "", is.shown ? TEXT.onScreen : "",
  ];
  return h("li", { class: `avl-visited${is.shown ? " avl-on-screen" : ""}`, "data-run": run.run },
    run.thumbnail ? h("img", { src: run.thumbnail, alt: "" }) : h("span", {}),
    h("div", { class: "avl-visited-facts" },
      h("p", {}, h("b", { class: "avl-question" }, question)),
      h("p", { class: "avl-note" }, facts.filter(Boolean).join(" · ")),
      run.error ? h("p", { class: "avl-note avl-problem" }, run.error) : null,
      (run.arms || []).map((/** @type {any} */ arm) => h("p", { class: "avl-visited-arm" }, h("b", {}, arm.label), " ", h("span", { class: "avl-clamp" }, answerOf(arm)), h("small", {}, figuresOf(arm))))),
    run.started ? h("div", { class: "avl-visited-acts" },
      button("open", TEXT.openRun, { disabled: is.waits || is.shown, title: is.waits ? TEXT.openLater : "", onclick: () => actions.open(run.run) }),
      button("pin", TEXT.pinRun, { "aria-pressed": String(is.pinned), title: TEXT.pinTitle, onclick: () => actions.pin(run.run) })) : null);
}

/** @param {any} arm */
function answerOf(arm) { return arm ? `${arm.answer}${arm.cut ? " …" : ""}` || DASH : DASH; }

/** @param {any} arm */
function sameOf(arm) {
  if (!arm || arm.policy === "Full" || arm.same_as_full === null) return "";
  return arm.same_as_full ? TEXT.sameAsFull : arm.first_difference === null ? TEXT.notAsFull : TEXT.differsFromFull(arm.first_difference + 1);
}

/** @param {any} arm */
function figuresOf(arm) {
  return [TEXT.storedShort(arm.stored_share), TEXT.readShort(arm.read_share), TEXT.perTokenShort(arm.median_ms), sameOf(arm)].filter(Boolean).join(" · ");
}

/** @param {Record<string, any>} $ @param {Summary | undefined} a pinned @param {Summary | undefined} b on screen */
function drawVersus($, a, b) {
  show($.versus, a);
  if (!a) return;
  const same = b && a.run === b.run;
  put($.versusNote, !b || same ? TEXT.versusNone : "");
  show($.versusTable, b && !same);
  if (!b || same) return;
  const { settings, policies } = comparison(a, b), words = TEXT.versusRows;
  const row = (/** @type {string} */ name, /** @type {any} */ one, /** @type {any} */ other, wide = false) => h("tr", {}, h("th", { scope: "row" }, name),
    [one, other].map((value) => h("td", wide ? { class: "avl-wide-cell" } : {}, String(value ?? DASH))));
  const part = (/** @type {string} */ name) => h("tr", { class: "avl-part" }, h("th", { scope: "rowgroup", colspan: "3" }, name));
  const figures = (/** @type {any} */ arm) => (arm ? [answerOf(arm), sameOf(arm) || DASH, formatPercent(arm.stored_share), formatPercent(arm.read_share), formatMs(arm.ttft_ms), formatMs(arm.median_ms),
    `${arm.tokens ?? DASH}${arm.reason ? `, ${endedBecause(arm.reason)}` : ""}`] : words.figures.map(() => DASH));
  $.versusTable.replaceChildren(h("table", { class: "avl-results" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "avl-sr" }, TEXT.figure)), h("th", { scope: "col" }, TEXT.pinnedOf(formatTime(a.date))), h("th", { scope: "col" }, TEXT.screenOf(formatTime(b.date))))),
    h("tbody", {}, part(settings.length ? words.settings : words.noSettings), settings.map(([key, one, other]) => row((/** @type {Record<string, string>} */ (words.names))[key], one, other, key === "question"))),
    policies.map((policy) => {
      const one = figures(policy.a), other = figures(policy.b);
      return h("tbody", {}, part(policy.title), policy.parameters.map(([key, left, right]) => row(words.parameter(key), left ?? TEXT.off, right ?? TEXT.off)),
        words.figures.map((name, at) => row(name, one[at], other[at], at === 0)));
    })));
}
