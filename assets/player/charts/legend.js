// What the marks over a picture mean. Numbers in it change at every step: only their text is written, and nothing moves for it.

import { cell, h, mark, put } from "../core/dom.js";

const SENTENCES = ["plain", "rest", "heat", "update", "unsaid"]; // a line of their own each

export class Legend {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.kinds = "";
    /** @type {any[]} */ this.words = [];
  }

  /** @param {[string, string][]} items as in Painting */
  draw(items) {
    const kinds = items.map(([kind]) => (kind === "unsaid" ? "update" : kind)).join();
    if (this.kinds !== kinds) {
      this.kinds = kinds;
      this.words = [];
      this.node.replaceChildren(...items.map(([kind]) => this._item(kind === "unsaid" ? "update" : kind)));
    }
    items.forEach(([kind, text], at) => {
      put(this.words[at], text);
      if (kind === "update" || kind === "unsaid") mark(this.node.children[at], "class", `avl-key avl-sentence${kind === "unsaid" ? " avl-unsaid" : ""}`);
    });
  }

  /** @param {string} kind */
  _item(kind) {
    const sentence = SENTENCES.includes(kind), box = cell("span");
    this.words.push(box.words);
    return h("span", { class: `avl-key${sentence ? " avl-sentence" : ""}${kind === "rest" ? " avl-rest" : ""}` },
      kind === "plain" || kind === "rest" ? null : h("i", { class: `avl-mark avl-mark-${kind}` }), box.node);
  }
}
