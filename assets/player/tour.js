// Six steps through the page.

import { calm, h, put } from "./core/dom.js";
import { TEXT } from "./text.js";

export class Tour {
  /** @param {HTMLElement} root @param {Record<string, any>} parts */
  constructor(root, parts) {
    this.parts = parts;
    this.at = -1;
    this.box = h("div", { class: "avl-tour avl-panel", role: "dialog", "aria-label": TEXT.tour, hidden: true },
      this.count = h("small", {}), this.title = h("h2", {}), this.words = h("p", {}),
      h("div", { class: "avl-tour-buttons" },
        this.back = h("button", { type: "button", class: "avl-btn", onclick: () => this.show(this.at - 1) }, TEXT.back),
        this.next = h("button", { type: "button", class: "avl-btn", onclick: () => this.show(this.at + 1) }, TEXT.next),
        h("button", { type: "button", class: "avl-btn", onclick: () => this.close() }, TEXT.close)));
    root.append(this.box);
    this.box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => { if (event.key === "Escape") this.close(); event.stopPropagation(); });
  }

  /** @param {number} at */
  show(at) {
    const steps = TEXT.tourSteps;
    if (at >= steps.length) { this.close(); return; }
    this._mark(false);
    this.at = Math.max(0, at);
    const [, title, words] = steps[this.at];
    put(this.count, TEXT.tourCount(this.at + 1, steps.length));
    put(this.title, title);
    put(this.words, words);
    this.back.disabled = this.at === 0;
    put(this.next, this.at === steps.length - 1 ? TEXT.done : TEXT.next);
    this.box.hidden = false;
    this._mark(true);
    this.next.focus({ preventScroll: true });
  }

  /** @param {boolean} on */
  _mark(on) {
    const step = TEXT.tourSteps[this.at], part = step && this.parts[step[0]];
    if (!part) return;
    const node = part.closest(".avl-slider, .avl-timeline, .avl-stage, [data-panel=result]") || part;
    node.classList.toggle("avl-toured", on);
    if (on) node.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "center" });
  }

  close() {
    this._mark(false);
    this.at = -1;
    this.box.hidden = true;
  }
}
