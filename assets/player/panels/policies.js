// Every arm of a run of three or more, in one table; it also chooses the two that the rest of the page shows.

import { h, put, show } from "../core/dom.js";
import { DASH, formatAgreed, formatBytes, formatMs, formatPercent } from "../core/format.js";
import { progressOf, shortLabel } from "../labels.js";
import { agreementOf } from "../stats/agreement.js";
import { median } from "../stats/times.js";
import { choose } from "../state.js";
import { TEXT } from "../text.js";

/** @typedef {import("../trace/run.js").Run} Run */
/** @typedef {import("../trace/run.js").Arm} Arm */

const FEWEST = 3; // arms; two have a card each

/** The arm whose answer the others are compared with: full attention, or the first. @param {Run} run */
export function referenceOf(run) { return run.arms.find((arm) => arm.isFull) || run.arms[0]; }

/** Where an answer leaves the reference's, in words. @param {Run} run @param {Arm} arm @param {Arm} reference @returns {{ text: string, below?: string, order: number }} order: tokens that are the same */
export function sameAs(run, arm, reference) {
  const prefix = arm === reference ? null : run.commonPrefix(arm, reference);
  if (!prefix || arm.last < 0) return { text: DASH, order: -1 };
  const { same, differs } = prefix;
  if (differs) return { text: TEXT.differs, below: TEXT.differsAt(same + 1), order: same };
  return arm.end && reference.end && arm.tokens.length === reference.tokens.length ? { text: TEXT.sameAnswer, order: Infinity } : { text: TEXT.sameSoFar, below: TEXT.sameFor(same), order: same };
}

/** Columns after the policy, A, B and the answer: head, and what a cell says and is sorted by. */
const NUMBERS = /** @type {{ name: string, head: (run: Run) => string, cell: (run: Run, arm: Arm) => { text: string, below?: string, title?: string, order: number | null } }[]} */ ([
  { name: "same", head: (run) => TEXT.sameHead(referenceOf(run).isFull ? "" : shortLabel(run, referenceOf(run))), cell: (run, arm) => sameAs(run, arm, referenceOf(run)) },
  { name: "stored", head: () => TEXT.kvStored, cell: (run, arm) => ofCache(run, arm, arm.storedBytes) },
  { name: "read", head: () => TEXT.kvRead, cell: (run, arm) => ({ ...ofCache(run, arm, arm.readBytes), below: "" }) },
  { name: "first", head: () => TEXT.firstToken, cell: (_, arm) => ({ text: arm.prefill ? formatMs(arm.ms[0]) : DASH, order: arm.prefill ? arm.ms[0] : null }) },
  { name: "token", head: () => TEXT.perToken, cell: (run, arm) => ofTime(run, arm) },
  { name: "agreement", head: () => TEXT.agreement, cell: (_, arm) => {
    const found = arm.isFull ? null : agreementOf(arm);
    return found ? { text: formatAgreed(found.share), title: TEXT.agreementNumbers(found.kl, found.perplexity), order: found.share } : { text: DASH, order: null };
  } },
]);

/** @param {Run} run @param {Arm} arm @param {number[]} list */
function ofCache(run, arm, list) {
  const share = run.meanShare(arm, list);
  return { text: formatPercent(share), below: share === null ? "" : formatBytes(arm.meanBytes(list)), order: share };
}

/** @param {Run} run @param {Arm} arm */
function ofTime(run, arm) {
  const runs = run.medians(arm.index), ms = median(runs);
  return { text: formatMs(ms), below: runs.length > 1 ? TEXT.ofRuns(runs.length) : "", order: ms };
}

/** @type {import("../core/panels.js").Panel} */
export const policies = {
  name: "policies",
  label: TEXT.policies,
  help: TEXT.policiesHelp,
  html: `<div class="avl-head" data-id="policiesHead"><h2>${TEXT.policies}</h2><span class="avl-note" data-id="policiesNote"></span></div>
<div class="avl-scroll" data-id="policies" tabindex="0" role="group" aria-label="${TEXT.policies}"></div>`,
  on: ["run", "opened", "pair", "state", "complete", "now"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    /** @type {Row[]} */ let rows = [];
    /** @type {any} */ let body = null;
    /** @type {{ column: number, down: boolean }} */ let sorted = { column: -1, down: false };
    let built = -1, order = "";
    const pick = (/** @type {0 | 1} */ place, /** @type {number} */ index) => tools.look({ pair: choose(store.state.pair, place, index) });
    const build = (/** @type {Run} */ run) => {
      order = "";
      sorted = { column: -1, down: false };
      rows = run.arms.map((arm) => new Row(run, arm, pick, `avl-pair-${store.state.opened}`));
      const plain = (/** @type {string} */ text, /** @type {string} */ name = "") => h("th", { scope: "col", class: name }, text);
      const pickHead = (/** @type {string} */ place) => h("th", { scope: "col", class: `avl-pick avl-arm-${place.toLowerCase()}` }, h("i", { class: "avl-dot" }), place);
      const heads = NUMBERS.map((column, at) => {
        const button = h("button", { type: "button", class: "avl-sort" }, column.head(run)), head = h("th", { scope: "col", "data-column": column.name }, button);
        button.addEventListener("click", () => {
          // up, down, and as they ran
          sorted = sorted.column !== at ? { column: at, down: false } : sorted.down ? { column: -1, down: false } : { column: at, down: true };
          heads.forEach((one, index) => { if (index === sorted.column) one.setAttribute("aria-sort", sorted.down ? "descending" : "ascending"); else one.removeAttribute("aria-sort"); });
          arrange(run);
        });
        return head;
      });
      $.policies.replaceChildren(h("table", { class: "avl-policies" },
        h("thead", {}, h("tr", {}, plain(TEXT.policyHead), pickHead("A"), pickHead("B"), plain(TEXT.answerHead, "avl-wide-cell"), heads)),
        body = h("tbody", {}, rows.map((row) => row.node))));
    };
    const arrange = (/** @type {Run} */ run) => {
      const values = run.arms.map((arm) => (sorted.column < 0 ? arm.index : NUMBERS[sorted.column].cell(run, arm).order));
      const wanted = sortedBy(values, sorted.down), key = wanted.join();
      if (key === order) return;
      order = key;
      const focused = /** @type {HTMLElement} */ (document.activeElement);
      body.replaceChildren(...wanted.map((index) => rows[index].node));
      if (body.contains(focused)) focused.focus(); // moving a row takes the focus from it
    };
    return {
      update() {
        const { state } = store, { run } = state;
        show(node, run && run.start && run.arms.length >= FEWEST && !(state.complete === state.opened && run.last < 0));
        if (!run || node.hidden) return;
        if (built !== state.opened) { built = state.opened; build(run); }
        const measured = run.arms.some((arm) => arm.agreement);
        $.policies.firstChild.classList.toggle("avl-unmeasured", !measured);
        for (const row of rows) row.draw(state);
        arrange(run);
        put($.policiesNote, TEXT.policiesNote);
      },
    };
  },
};

/** Indices in the order of their values; what has none comes last. @param {(number | null)[]} values @param {boolean} down */
export function sortedBy(values, down) {
  const known = (/** @type {number} */ index) => values[index] !== null;
  const compare = (/** @type {number} */ a, /** @type {number} */ b) => { const [x, y] = [Number(values[a]), Number(values[b])]; return x === y ? 0 : (x < y) === down ? 1 : -1; };
  return [...values.keys()].sort((a, b) => (known(a) && known(b) ? compare(a, b) : Number(known(b)) - Number(known(a))) || a - b);
}

class Row {
  /** @param {Run} run @param {Arm} arm @param {(place: 0 | 1, index: number) => void} pick @param {string} group */
  constructor(run, arm, pick, group) {
    this.run = run;
    this.arm = arm;
    const { label, title = label } = arm.spec, name = shortLabel(run, arm);
    const more = (name.length > label.length ? name : label).slice(title.length).trim(); // what it is set to, and its number among equals
    this.picks = [0, 1].map((place) => h("input", {
      type: "radio", name: `${group}-${place}`, "aria-label": TEXT.showAs(name, "AB"[place]), onchange: () => pick(/** @type {0 | 1} */ (place), arm.index),
    }));
    this.words = h("button", { type: "button", class: "avl-clip", "aria-expanded": "false", onclick: () => {
      this.words.setAttribute("aria-expanded", String(this.words.getAttribute("aria-expanded") !== "true"));
    } }, this.text = h("span", {}));
    this.cells = NUMBERS.map(() => { const value = h("b", {}), below = h("small", {}); return { value, below }; });
    this.node = h("tr", {},
      h("th", { scope: "row", title: label }, h("b", {}, h("i", { class: "avl-dot" }), title), h("small", {}, more)),
      this.picks.map((input) => h("td", { class: "avl-pick" }, h("label", {}, input))),
      h("td", { class: "avl-wide-cell" }, this.words, this.progress = h("small", {})),
      this.cells.map(({ value, below }, at) => h("td", { "data-column": NUMBERS[at].name }, value, below)));
  }

  /** @param {Readonly<import("../state.js").State>} state */
  draw(state) {
    const { pair } = state, { arm, run } = this, text = arm.text.trim();
    this.picks.forEach((input, place) => { input.checked = pair[place] === arm.index; });
    const side = pair.indexOf(arm.index);
    this.node.className = side < 0 ? "" : `avl-shown avl-arm-${"ab"[side]}`;
    put(this.progress, progressOf(state, arm));
    put(this.text, text);
    show(this.words, text);
    if (this.words.title !== text) this.words.title = text;
    this.cells.forEach(({ value, below }, at) => {
      const cell = NUMBERS[at].cell(run, arm);
      put(value, cell.text);
      put(below, cell.below || "");
      value.parentElement.title = cell.title || "";
    });
  }
}
