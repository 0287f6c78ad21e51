// Full attention's answer as a policy would have gone on with it: where its likeliest token is another, and how far apart the distributions are.

import { h, put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { tableElement } from "../core/panels.js";
import { shortLabel } from "../labels.js";
import { agreementOf, strengthOf } from "../stats/agreement.js";
import { shownArms, sideOf } from "../state.js";
import { TEXT } from "../text.js";

/** @typedef {import("../trace/run.js").Run} Run */
/** @typedef {import("../trace/run.js").Arm} Arm */

/** A token as people can see it. @param {string | null} text @param {boolean} ends the answer @param {string} none for a token without text */
function visible(text, ends, none = TEXT.noText) { return ends ? TEXT.end : (text || "").trim() || (/\n/.test(text || "") ? "↵" : text ? "␣" : none); }

/** @type {import("../core/panels.js").Panel} */
export const agreement = {
  name: "agreement",
  label: TEXT.agreementTitle,
  help: TEXT.agreementHelp,
  html: `<div class="avl-head" data-id="agreementHead"><h2>${TEXT.agreementTitle}</h2></div>
<div data-id="agreement" class="avl-strips"></div>
<div class="avl-keys"><span class="avl-key"><span class="avl-fed avl-otherwise">${TEXT.agreementKeyWord}<small>${TEXT.agreementKeyOther}</small></span> ${TEXT.agreementKeyOff}</span>
<span class="avl-key"><i class="avl-mark avl-mark-kl"></i> ${TEXT.agreementKeyKl}</span></div>
<details class="avl-table" data-id="agreementTable"><summary>${TEXT.table}</summary><div tabindex="0"></div></details>`,
  on: ["run", "opened", "pair", "ts"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    /** @type {Strip[]} */ let strips = [];
    let built = "";
    const table = () => {
      const [first] = strips;
      if (!$.agreementTable.open || !first) return;
      const { run } = first, rows = first.event.tokens.map((/** @type {number} */ _, /** @type {number} */ t) => [t + 1, [first.fed(t), ...strips.flatMap((strip) => [strip.own(t), fixed(strip.event.kl[t], 3)])]]);
      $.agreementTable.querySelector("div").replaceChildren(tableElement({ head: [TEXT.xToken, TEXT.fullAnswer, ...strips.flatMap((strip) => [TEXT.likeliestOf(shortLabel(run, strip.arm)), TEXT.klHead])], rows }, String));
    };
    $.agreementTable.addEventListener("toggle", table);
    return {
      update() {
        const { state } = store, { run } = state;
        // full attention agrees with itself
        const arms = run && run.start ? shownArms(state).filter((arm) => !arm.isFull && agreementOf(arm)) : [];
        show(node, arms.length > 0);
        if (!run || !arms.length) return;
        const key = `${state.opened}/${arms.map((arm) => `${arm.index}${sideOf(state, arm.index)}`)}`;
        if (built !== key) {
          built = key;
          strips = arms.map((arm) => new Strip(run, arm, sideOf(state, arm.index), store, tools));
          $.agreement.replaceChildren(...strips.map((strip) => strip.node));
          table();
        }
        for (const strip of strips) strip.draw(state);
      },
    };
  },
};

class Strip {
  /** @param {Run} run @param {Arm} arm @param {string} side @param {import("../playhead.js").PlayerStore} store @param {import("../player.js").Tools} tools */
  constructor(run, arm, side, store, tools) {
    this.run = run;
    this.arm = arm;
    this.event = /** @type {import("../trace/run.js").Event} */ (arm.agreement);
    this.now = -1;
    this.ends = new Set(run.arms.filter((one) => one.end && one.end.reason === "eos").map((one) => one.tokens[one.last]));
    const { texts, kl, top, reference } = this.event, name = shortLabel(run, arm), found = agreementOf(arm);
    this.chips = texts.map((/** @type {string} */ text, /** @type {number} */ t) => {
      const off = top[t] !== null;
      const chip = h("span", { class: `avl-fed${off ? " avl-otherwise" : ""}`, "data-t": String(t), style: `--kl: ${fixed(strengthOf(kl[t]) * 100, 0)}%` }, this.fed(t, "▫"), off ? h("small", {}, this.own(t)) : null);
      return [t && /^\s/.test(text) ? " " : "", chip, /\S\s+$/.test(text) ? " " : ""];
    });
    this.node = h("div", { class: `avl-strip-of avl-arm-${side}` },
      h("p", {}, h("i", { class: "avl-dot" }), TEXT.agreementWords(name, /** @type {any} */ (found))),
      this.strip = h("div", { class: "avl-fed-answer", tabindex: "0", role: "group", "aria-label": TEXT.agreementStrip(name) }, this.chips),
      this.here = h("p", { class: "avl-note avl-here" }));
    const tokenAt = (/** @type {Event} */ event) => {
      const chip = /** @type {HTMLElement} */ (event.target).closest("[data-t]");
      return chip ? Number(/** @type {HTMLElement} */ (chip).dataset.t) : null;
    };
    this.strip.addEventListener("click", (/** @type {Event} */ event) => {
      const t = tokenAt(event);
      if (t !== null) tools.playhead.jump(t);
    });
    // the answer is the reference's: its attention is shown, where the run has it
    this.strip.addEventListener("pointerover", (/** @type {Event} */ event) => {
      const t = tokenAt(event);
      store.set({ word: t === null || reference === null ? null : { arm: reference, t } });
      if (t !== null) this.tell(t);
    });
    this.strip.addEventListener("pointerleave", () => { store.set({ word: null }); this.tell(Math.max(0, this.now)); });
  }

  /** The answer's token. @param {number} t @param {string} [none] */
  fed(t, none) { return visible(this.event.texts[t], this.ends.has(this.event.tokens[t]), none); }

  /** The policy's likeliest token. @param {number} t */
  own(t) { return this.event.top[t] === null ? TEXT.sameToken : visible(this.event.top_texts[t], this.ends.has(this.event.top[t])); }

  /** @param {number} t */
  tell(t) {
    const { event } = this;
    put(this.here, TEXT.agreementHere(t + 1, this.fed(t), event.top[t] === null ? "" : this.own(t), event.kl[t]));
  }

  /** @param {Readonly<import("../state.js").State>} state */
  draw(state) {
    const { reference } = this.event, at = state.ts[reference ?? this.arm.index] || 0, now = Math.min(at, this.chips.length - 1);
    if (now === this.now) return;
    if (this.chips[this.now]) this.chips[this.now][1].classList.remove("avl-now");
    this.chips[now][1].classList.add("avl-now");
    this.now = now;
    this.tell(now);
  }
}
