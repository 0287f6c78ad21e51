// Text tokens of prompt and answer: which of them the chosen layer still holds at the playhead.

import { h, put, show } from "../core/dom.js";
import { shortLabel } from "../labels.js";
import { LostText, promptPieces } from "../trace/text.js";
import { promptOf } from "../trace/turns.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const textTokens = {
  name: "text_tokens",
  label: "Text tokens",
  help: TEXT.textTokensHelp,
  column: "left",
  lazy: true,
  html: `<div class="avl-head"><h2>${TEXT.textTokens}</h2></div>
<p class="avl-note" data-id="textKept"><span data-id="textOf"></span> <span class="avl-counted" data-id="textCount"></span></p>
<div class="avl-words" data-id="words" tabindex="0" role="group" aria-label="${TEXT.textTokens}"></div>`,
  on: ["run", "opened", "ts", "focus", "layer"],
  mount({ node, parts: $, store }) {
    node.hidden = true;
    /** @type {Strip | null} */ let strip = null;
    let built = "";
    return {
      update() {
        const { run, opened, focus, layer, ts } = store.state, arm = run && run.arms[focus];
        const told = Boolean(run && run.start && arm && arm.prefill && (promptOf(run.start, arm.spec).text || []).length);
        show(node, told);
        if (!run || !arm || !told) return;
        const key = `${opened}/${focus}`;
        if (built !== key) {
          built = key;
          strip = new Strip($.words, promptOf(run.start, arm.spec), arm);
        }
        const { kept, all } = /** @type {Strip} */ (strip).draw(layer, ts[focus] || 0);
        put($.textOf, TEXT.textOf(shortLabel(run, arm), layer));
        put($.textCount, TEXT.textKept(kept, all));
      },
    };
  },
};

class Strip {
  /** @param {HTMLElement} node @param {any} start @param {import("../trace/run.js").Arm} arm */
  constructor(node, start, arm) {
    this.node = node;
    this.arm = arm;
    this.prompt = start.n_text;
    this.lost = new LostText(start, arm.textSets);
    /** @type {HTMLElement[]} by number of the token */ this.words = [];
    this.t = -1;
    node.replaceChildren(...promptPieces(start).map((piece) => ("images" in piece ? h("span", { class: "avl-word avl-word-image" }, TEXT.imageTokens(piece.images)) : this._word(start.text[piece.token]))));
  }

  /** @param {string} text */
  _word(text) {
    const word = h("span", { class: "avl-word" }, text.trim() || (text.includes("\n") ? TEXT.newLine : text ? TEXT.space : TEXT.noWord));
    this.words.push(word);
    return word;
  }

  /** @param {number} layer @param {number} t */
  draw(layer, t) {
    const { arm, prompt, words } = this;
    const grown = words.length;
    for (let k = words.length - prompt; k < arm.tokens.length; k++) this.node.append(this._word(arm.texts[k]));
    for (const token of this.lost.moveTo(layer, t)) if (words[token]) this._mark(token, t);
    // a generated token is stored by the step after it
    const low = Math.max(0, Math.min(this.t, t)), high = Math.max(this.t, t);
    if (this.t !== t) for (let k = low; k <= high; k++) if (words[prompt + k]) this._mark(prompt + k, t);
    for (let token = grown; token < words.length; token++) this._mark(token, t);
    this.t = t;
    return this.lost.counts(t);
  }

  /** @param {number} token @param {number} t */
  _mark(token, t) {
    const k = token - this.prompt, name = `avl-word${this.lost.gone[token] ? " avl-gone" : ""}${k === t ? " avl-newest" : k > t ? " avl-ahead" : ""}`;
    if (this.words[token].className !== name) this.words[token].className = name;
  }
}
