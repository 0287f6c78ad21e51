// Which text tokens a layer has lost at a step: followed by what each step took away, forward and back.

import { unpackBits } from "./codec.js";

/** @typedef {import("./run.js").Arm} Arm */

/** Text tokens of one arm, numbered as in avl/trace/events.py: the prompt's, then the generated ones. */
export class LostText {
  /** @param {any} start the start event @param {any[]} events "text" events of the arm, which may grow */
  constructor(start, events) {
    this.prompt = start.n_text;
    this.events = events;
    this.gone = new Uint8Array(start.n_text + start.limit + 1);
    this.lost = 0;
    this.layer = -1;
    this.next = 0; // the first event that was not applied
  }

  /**
   * Go to a step of a layer.
   * @param {number} layer
   * @param {number} t the step, whose own losses count
   * @returns {number[]} tokens that changed
   */
  moveTo(layer, t) {
    const changed = /** @type {number[]} */ ([]);
    if (layer !== this.layer) {
      while (this.next > 0) this._apply(--this.next, 0, changed);
      this.layer = layer;
    }
    while (this.next < this.events.length && this.events[this.next].t <= t) this._apply(this.next++, 1, changed);
    while (this.next > 0 && this.events[this.next - 1].t > t) this._apply(--this.next, 0, changed);
    return changed;
  }

  /** Text tokens that the layer may hold after step t, and those that it does. @param {number} t */
  counts(t) {
    const all = this.prompt + t; // step k stores generated token k - 1
    return { all, kept: all - this.lost };
  }

  /** @param {number} index @param {0 | 1} gone @param {number[]} changed */
  _apply(index, gone, changed) {
    if (this.layer < 0) return;
    const { kept, gone: left } = this.events[index], { layer } = this;
    const take = (/** @type {number} */ token) => {
      if (token >= this.gone.length || this.gone[token] === gone) return;
      this.gone[token] = gone;
      this.lost += gone ? 1 : -1;
      changed.push(token);
    };
    if (kept) unpackBits(kept[layer], this.prompt).forEach((/** @type {any} */ held, /** @type {number} */ token) => { if (!held) take(token); });
    for (const token of (left && left[layer]) || []) take(token);
  }
}

/** The prompt in order: numbers of text tokens, and how many image tokens lie between them. @param {any} start @returns {({ token: number } | { images: number })[]} */
export function promptPieces(start) {
  const pieces = /** @type {any[]} */ ([]), spans = start.spans || [], told = spans.reduce((/** @type {number} */ n, /** @type {any} */ [name, from, to]) => n + (name === "image" ? 0 : to - from), 0);
  let token = 0;
  if (told === start.n_text) {
    for (const [name, from, to] of spans) {
      if (name === "image") pieces.push({ images: to - from });
      else for (let i = from; i < to; i++) pieces.push({ token: token++ });
    }
    return pieces;
  }
  while (token < start.n_text) pieces.push({ token: token++ });
  return pieces;
}
