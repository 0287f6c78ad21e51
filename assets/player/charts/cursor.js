// The line that shows where the playhead is, over a chart or the race.

import { h } from "../core/dom.js";

const FAR = 20000; // pixels, more than any chart has

export class Cursor {
  constructor() {
    this.node = h("div", { class: "avl-cursor", "aria-hidden": "true", hidden: true });
    // the time of a paused animation: a style would have the browser sort the layers of the whole page anew at every step
    this.way = this.node.animate([{ transform: "translateX(0)" }, { transform: `translateX(${FAR}px)` }], { duration: FAR, fill: "both" });
    this.way.pause();
    this.at = NaN;
    this.frame = "";
  }

  /** From where down to where. @param {number} top pixels @param {number} height */
  stretch(top, height) {
    const frame = `${top}/${height}`;
    if (this.frame === frame) return;
    this.frame = frame;
    this.node.style.top = `${top}px`;
    this.node.style.height = `${height}px`;
  }

  /** @param {number | null} x pixels from the left; null: nowhere */
  moveTo(x) {
    const hidden = x === null;
    if (this.node.hidden !== hidden) this.node.hidden = hidden;
    if (hidden || this.at === x) return;
    this.at = x;
    this.way.currentTime = Math.max(0, x);
  }
}
