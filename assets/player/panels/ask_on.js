// Ask on: a further question of what every policy has kept, beside the same question with the pictures read again; and what came of it.

import { h, put, show } from "../core/dom.js";
import { planned } from "../core/page.js";
import { formatMs } from "../core/format.js";
import { keptAtEnd, linesOf, missedIn, missedInAll, refusalOf, sameAnswer } from "../trace/turns.js";
import { TEXT } from "../text.js";

/** @typedef {import("../trace/run.js").Run} Run */

const WORDS = TEXT.turns;
const NAMED = 3; // policies that are named one by one

/** @type {import("../core/panels.js").Panel} */
export const askOn = {
  name: "ask_on",
  label: WORDS.askOn,
  help: WORDS.help,
  html: `<div class="avl-head"><h2 data-id="askTitle">${WORDS.askOn}</h2></div>
<ul class="avl-turn-results" data-id="turnResults" hidden></ul>
<button type="button" class="avl-btn avl-small" data-id="showMissed" hidden>${WORDS.showMissed}</button>
<form class="avl-ask-on" data-id="askForm">
  <label class="avl-sr" for="avl-ask-on">${WORDS.label}</label>
  <input type="text" id="avl-ask-on" class="avl-text" data-id="askText" maxlength="2000" autocomplete="off" placeholder="${WORDS.placeholder}">
  <button type="submit" class="avl-btn" data-id="askGo">${WORDS.go}</button>
</form>
<div class="avl-chips" data-id="askThen" role="group" aria-label="${TEXT.suggested}"></div>
<label class="avl-check" data-id="askAgain"><input type="checkbox" data-id="reread" checked> ${WORDS.reread}</label>
<p class="avl-note" data-id="askNote" role="status"></p>`,
  on: ["run", "opened", "state", "source", "complete", "error", "layer", "stream", "id"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    let asked = false; // the last thing that was asked for was asked here
    const draw = () => {
      const { state } = store, { run } = state, start = run && run.start;
      show(node, Boolean(start && run.last >= 0) && !(tools.report && start.turn < 2));
      if (!run || node.hidden) return;
      put($.askTitle, tools.report ? WORDS.both : WORDS.askOn);
      drawResults($, run, state.layer);
      const form = !tools.report, refused = refusalOf(state, tools.about), then = refused || !Array.isArray(run.meta.then) ? [] : run.meta.then.map(String);
      for (const part of [$.askForm, $.askAgain, $.askNote, $.askThen]) show(part, form);
      if (!form) return;
      if ($.askThen.dataset.words !== JSON.stringify(then)) {
        $.askThen.dataset.words = JSON.stringify(then);
        $.askThen.replaceChildren(...then.map((/** @type {string} */ question) => h("button", { type: "button", class: "avl-chip", onclick: () => ask(question) }, question)));
      }
      $.askText.disabled = $.askGo.disabled = $.reread.disabled = Boolean(refused);
      const problem = asked && state.state === "refused" ? state.error : "";
      $.askNote.classList.toggle("avl-problem", Boolean(problem));
      put($.askNote, problem || (refused ? WORDS.refusals[refused](tools.about.no_turns || "") : [plan(run, $.reread.checked), tools.about.bundled ? WORDS.bundled : ""].filter(Boolean).join(" ")));
    };
    const ask = (/** @type {string} */ question) => {
      const { state } = store;
      if (refusalOf(state, tools.about)) return;
      asked = true;
      tools.askOn({ run: state.id, question, reread: $.reread.checked });
    };
    $.askForm.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      const question = $.askText.value.trim();
      if (question) ask(question); else put($.askNote, WORDS.empty);
    });
    $.reread.addEventListener("change", draw);
    $.showMissed.addEventListener("click", () => {
      store.set({ mode: "missed" });
      const picture = tools.root.querySelector("[data-panel=tokens]");
      if (picture) picture.scrollIntoView({ behavior: "auto", block: "start" });
    });
    let opened = -1, seen = -1; // seen: whose end was noted
    return {
      update() {
        if (store.state.opened !== opened) {
          opened = store.state.opened;
          if (asked && store.state.source === "live") $.askText.value = "";
          asked = false;
          // nothing is missed by a first question
          const { run: shown, mode } = store.state;
          if (mode === "missed" && shown && shown.start && !(shown.start.turn > 1)) store.set({ mode: "sets" });
        }
        draw();
        const { run, complete, source } = store.state;
        if (!run || complete !== opened || seen === opened) return;
        seen = opened;
        const then = source === "live" && run.arms.every((arm) => arm.end && arm.end.reason !== "stopped") ? planned(run.start.question) : "";
        if (!then) return;
        store.set({ mode: "missed" });
        ask(then);
      },
    };
  },
};

/** A line's policy, with its settings where another one has the same. @param {Run} run @param {import("../trace/run.js").Arm} kept */
function nameOf(run, kept) {
  const { title, label } = kept.spec, alone = linesOf(run).filter((line) => line.kept.spec.title === title).length < 2;
  return alone && title ? title : label;
}

/** What asking on will do, in numbers. @param {Run} run @param {boolean} reread */
function plan(run, reread) {
  const lines = linesOf(run).map(({ kept }) => ({ name: nameOf(run, kept), ...keptAtEnd(run, kept) }));
  const most = Math.max(...lines.map(({ all }) => all));
  const sizes = lines.map(({ stored }) => stored);
  const kept = lines.length <= NAMED ? WORDS.keptNamed(lines, most) : WORDS.keptRange(Math.min(...sizes), Math.max(...sizes), most);
  return `${kept} ${reread ? WORDS.feedsAgain(most) : WORDS.noReread}`;
}

/** @param {Record<string, any>} $ @param {Run} run @param {number} layer */
function drawResults($, run, layer) {
  const lines = run.start.turn > 1 ? linesOf(run) : [];
  show($.turnResults, lines.length > 0);
  // sets are compared anew only where one of them came, not with every token
  const key = JSON.stringify([run.start.date, layer, lines.map(({ kept, again }) => [kept, again].map((arm) => arm && [arm.index, Boolean(arm.prefill), arm.sets.length > 0, arm.end]))]);
  if ($.turnResults.dataset.key === key) return;
  $.turnResults.dataset.key = key;
  let lost = 0;
  const told = lines.map(({ kept, again }) => {
    const fed = [], words = [];
    if (kept.prefill) fed.push(WORDS.keptFed(kept.spec.new_tokens, formatMs(kept.ms[0])));
    if (again && again.prefill) fed.push(WORDS.againFed(again.spec.new_tokens, formatMs(again.ms[0])));
    if (fed.length) words.push(`${fed.join("; ")}.`);
    const same = again && sameAnswer(kept, again);
    if (again && same !== null) words.push(same ? WORDS.same : WORDS.differs(kept.text.trim(), again.text.trim()));
    if (again && !kept.isFull && kept.sets.length && again.sets.length) {
      const here = missedIn(run, kept, again, layer), all = missedInAll(run, kept, again);
      lost += all.evicted;
      words.push(WORDS.missed(here.evicted, here.wanted, layer, all.evicted / Math.max(1, all.wanted), kept.spec.policy.C ?? null));
    }
    return [nameOf(run, kept), words.join(" ") || TEXT.waiting];
  });
  show($.showMissed, lost > 0);
  $.turnResults.replaceChildren(...told.map(([name, words]) => h("li", {}, h("b", {}, `${name}:`), " ", words)));
}
