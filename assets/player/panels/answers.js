// The two answers: cards with text, times and memory.

import { cell, h, put } from "../core/dom.js";
import { DASH, formatBytes, formatMs, formatRate } from "../core/format.js";
import { progressOf, shortLabel } from "../labels.js";
import { aligned } from "../stats/diff.js";
import { median, quantile } from "../stats/times.js";
import { shownArms } from "../state.js";
import { TEXT } from "../text.js";

/** @typedef {import("../trace/run.js").Run} Run */
/** @typedef {import("../trace/run.js").Arm} Arm */

const NUMBERS_MS = 80;

/** @type {import("../core/panels.js").Panel} */
export const answers = {
  name: "answers",
  className: "",
  html: `<div class="avl-arms" data-id="arms"></div>`,
  on: ["run", "opened", "pair", "ts", "follow", "state", "differences", "now", "word"],
  mount({ parts: $, store, tools }) {
    /** @type {Card[]} */ let cards = [];
    let built = "";
    // scrolled together, so that the same place of both answers is in sight
    const scrolled = (/** @type {Card} */ card) => {
      const { scrollTop, scrollHeight, clientHeight } = card.answer, room = scrollHeight - clientHeight;
      for (const other of cards) {
        if (other === card) continue;
        const top = room > 0 ? Math.round(scrollTop / room * (other.answer.scrollHeight - other.answer.clientHeight)) : 0;
        if (Math.abs(other.answer.scrollTop - top) > 1) { other.answer.scrollTop = top; other.driven = other.answer.scrollTop; }
      }
    };
    const build = (/** @type {Run} */ run, /** @type {Arm[]} */ arms) => {
      cards = arms.map((arm, place) => new Card(run, arm, place, tools, store));
      for (const card of cards) {
        card.answer.addEventListener("scroll", () => { if (card.driven !== card.answer.scrollTop) scrolled(card); card.driven = -1; }, { passive: true });
      }
      $.arms.replaceChildren(...cards.map((card) => card.node));
      $.arms.classList.toggle("avl-single", arms.length < 2);
    };
    return {
      update() {
        const { state } = store, { run } = state;
        if (!run || !run.start) return;
        const arms = shownArms(state), key = `${state.opened}/${arms.map((arm) => arm.index)}`;
        if (built !== key) { built = key; build(run, arms); }
        const prefix = run.commonPrefix(arms[0], arms[1]), from = prefix && prefix.differs ? prefix.same : Infinity;
        const marks = from === Infinity ? null : marksOf(arms, from);
        cards.forEach((card, place) => card.draw(state, from, marks && marks[place]));
        tools.root.classList.toggle("avl-only-differences", state.differences);
      },
    };
  },
};

/** @type {{ key: string, marks: [Uint8Array, Uint8Array] | null }} */
let known = { key: "", marks: null };

/** What only one of two answers has. @param {Arm[]} arms @param {number} same */
function marksOf([a, b], same) {
  const key = `${a.index}/${b.index}/${a.tokens.length}/${b.tokens.length}/${same}/${a.tokens[same]}/${b.tokens[same]}`;
  if (known.key !== key) known = { key, marks: aligned(a.tokens, b.tokens, same) };
  return known.marks;
}

class Card {
  /** @param {Run} run @param {Arm} arm @param {number} place @param {import("../player.js").Tools} tools @param {import("../playhead.js").PlayerStore} store */
  constructor(run, arm, place, tools, store) {
    this.run = run;
    this.arm = arm;
    this.store = store;
    this.numbersAt = -Infinity;
    this.timer = 0;
    /** @type {HTMLElement[]} */ this.chips = [];
    this.driven = -1; // where the other card's scrolling took it: somebody may scroll on before its event comes
    this.t = -1; this.drawn = -1; this.from = NaN; this.live = false;
    /** @type {HTMLElement[]} */ this.different = [];
    const metric = (/** @type {string} */ label, /** @type {string} */ title) => {
      const value = cell("b", DASH), below = cell("small");
      return { node: h("div", { class: "avl-metric", title }, h("span", {}, label), value.node, below.node), value: value.words, below: below.words };
    };
    const bar = (/** @type {string} */ kind, /** @type {string} */ label, /** @type {string} */ title) => {
      const fill = h("i", { class: `avl-bar-${kind}` }), value = cell("b", DASH), share = cell("small");
      return { node: h("div", { class: "avl-bar", title }, h("span", { class: "avl-bar-name" }, label), h("span", { class: "avl-bar-box" }, fill), value.node, share.node), fill, value: value.words, share: share.words };
    };
    this.ttft = metric(TEXT.firstToken, TEXT.firstTokenTitle);
    this.perToken = metric(TEXT.perToken, TEXT.perTokenTitle);
    this.rate = metric(TEXT.speed, TEXT.speedTitle);
    this.stored = bar("stored", TEXT.kvStored, TEXT.kvStoredTitle);
    this.read = bar("read", TEXT.kvRead, TEXT.kvReadTitle);
    const copy = h("button", { type: "button", class: "avl-btn avl-small", title: TEXT.copyAnswerTitle, "aria-label": `${TEXT.copyAnswerTitle}: ${arm.spec.label}` }, TEXT.copyAnswer);
    copy.addEventListener("click", () => navigator.clipboard.writeText(arm.text.trim()).then(() => flash(copy, TEXT.copied, TEXT.copyAnswer), () => {}));
    const again = place || run.start.turn > 1 ? null : h("button", { type: "button", class: "avl-btn avl-small avl-again", title: TEXT.regenerateTitle, onclick: () => tools.rerun() }, TEXT.regenerate);
    this.node = h("article", { class: `avl-panel avl-arm avl-arm-${place ? "b" : "a"}` },
      h("header", {}, h("i", { class: "avl-dot" }), h("h2", {}, arm.spec.label), tools.report ? null : again, copy),
      this.status = h("p", { class: "avl-arm-state" }, TEXT.waiting),
      this.answer = h("div", { class: "avl-answer", tabindex: "0", "aria-live": "off", "aria-label": TEXT.answerOf(shortLabel(run, arm)) }),
      h("div", { class: "avl-metrics" }, this.ttft.node, this.perToken.node, this.rate.node),
      this.stored.node, this.read.node,
      h("p", { class: "avl-impl avl-cell avl-read-now", title: TEXT.readTitle }, this.step = h("span", {})),
      h("p", { class: "avl-impl" }, TEXT.kernelsAre(/** @type {Record<string, string>} */ (TEXT.kernels)[arm.spec.implementation] || arm.spec.implementation)),
    );
    const tokenAt = (/** @type {Event} */ event) => {
      const { t } = /** @type {HTMLElement} */ (event.target).dataset || {};
      return t === undefined ? null : Number(t);
    };
    this.answer.addEventListener("click", (/** @type {Event} */ event) => {
      const t = tokenAt(event);
      if (t !== null) { tools.playhead.jump(t); tools.look({ focus: arm.index }); }
    });
    this.answer.addEventListener("pointerover", (/** @type {Event} */ event) => {
      const t = tokenAt(event);
      store.set({ word: t === null ? null : { arm: arm.index, t } });
    });
    this.answer.addEventListener("pointerleave", () => store.set({ word: null }));
  }

  /** @param {Readonly<import("../state.js").State>} state @param {number} from first token that differs @param {Uint8Array | null} odd */
  draw(state, from, odd) {
    const { arm, run } = this, t = state.ts[arm.index] || 0;
    this._drawText(state, t, from, odd);
    // numbers that change faster than they are read cost a layout each
    const wait = this.numbersAt + NUMBERS_MS - performance.now();
    if (wait > 0) {
      this.timer ||= window.setTimeout(() => { this.timer = 0; this.store.touch("ts"); }, wait);
      return;
    }
    this.numbersAt = performance.now();
    const runs = t === arm.last && arm.repeats.length ? run.medians(arm.index) : [], steps = arm.stepMs(t);
    // one number for one thing: with repeats, all of them count, here as in the comparison below
    const perToken = runs.length > 1 ? median(runs) : median(steps), { batch } = run.start;
    put(this.ttft.value, arm.prefill ? formatMs(arm.ms[0]) : DASH);
    put(this.ttft.below, arm.prefill ? TEXT.peakKv(arm.prefill.peak_bytes) : "");
    put(this.perToken.value, formatMs(perToken));
    put(this.perToken.below, runs.length > 1 ? TEXT.medianOfRuns(runs.length) : steps.length > 1 ? TEXT.p99(quantile(steps, 0.99)) : "");
    put(this.rate.value, perToken ? formatRate(1000 * batch / perToken) : DASH);
    put(this.rate.below, batch > 1 ? TEXT.rows(batch) : "");
    if (arm.last >= 0) {
      const share = arm.storedBytes[t] / run.fullBytes(t, arm), mean = arm.meanBytes(arm.readBytes, t), meanShare = run.meanShare(arm, arm.readBytes, t);
      put(this.stored.value, formatBytes(arm.storedBytes[t]));
      put(this.stored.share, TEXT.ofFull(share));
      fillTo(this.stored.fill, share);
      put(this.read.value, formatBytes(mean));
      put(this.read.share, mean === null ? "" : TEXT.ofFull(meanShare));
      fillTo(this.read.fill, meanShare || 0);
      put(this.step, t > 0 ? TEXT.readStep(arm.readBytes[t], arm.update[t]) : TEXT.readMean);
    }
    put(this.status, progressOf(state, arm));
  }

  /** @param {Readonly<import("../state.js").State>} state @param {number} t @param {number} from @param {Uint8Array | null} odd */
  _drawText(state, t, from, odd) {
    const { arm, chips } = this, live = state.follow && !arm.end, n = arm.tokens.length;
    for (let at = chips.length; at < n; at++) {
      const text = arm.texts[at] || "";
      chips.push(h("span", { class: "avl-token", "data-t": String(at) }, at ? text : text.trimStart()));
      this.answer.append(chips[at]);
    }
    if (this.t === t && this.drawn === n && this.from === from && this.live === live) return;
    // a new token can move the alignment of earlier ones, so after a difference all chips are looked at
    const low = from === Infinity && this.from === from && this.live === live && this.t >= 0 ? Math.max(0, Math.min(this.t, t, this.drawn - 1)) : 0;
    const same = from === this.from && this.drawn === n && this.live === live;
    const [first, last] = same ? [Math.min(this.t, t), Math.max(this.t, t)] : [low, n - 1];
    const now = state.follow && arm.end ? -1 : t;
    for (let at = first; at <= last && at < n; at++) {
      const name = chipClass(at, t, now, from, Boolean(odd && odd[at]));
      if (chips[at].className !== name) chips[at].className = name;
    }
    // the last tokens may come together with the end; then the answer is read from its beginning
    if (this.drawn !== n && (live || this.live)) this._scrollTo(this.answer.scrollHeight);
    if (this.live && arm.end && state.follow) this._scrollTo(0);
    Object.assign(this, { t, drawn: n, from, live });
  }

  /** Without taking the other answer along. @param {number} top */
  _scrollTo(top) {
    const before = this.answer.scrollTop;
    this.answer.scrollTop = top;
    if (this.answer.scrollTop !== before) this.driven = this.answer.scrollTop;
  }
}

/** @param {number} at @param {number} t @param {number} now @param {number} from @param {boolean} odd */
function chipClass(at, t, now, from, odd) {
  return "avl-token" + (at > t ? " avl-later" : "") + (odd ? " avl-different" : "") + (at === from ? " avl-first" : "") + (at === now ? " avl-now" : "");
}

/** @param {any} fill @param {number} share */
function fillTo(fill, share) {
  const size = `${Math.min(100, share * 100)}% 100%`;
  if (fill.style.backgroundSize !== size) fill.style.backgroundSize = size;
}

/** @param {any} button @param {string} word @param {string} usual */
function flash(button, word, usual) {
  put(button, word);
  setTimeout(() => put(button, usual), 2000);
}
