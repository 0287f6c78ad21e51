// The race track: each arm's compute time as a lane on one clock. Prefill first, then one cell per step.

import { Cursor } from "./cursor.js";

const PITCH = 26, LANE = 18;

/** @typedef {{ colors: string[], names: string[], line: string, text: string, muted: string }} TrackStyles one color per arm, and a name where lanes have names */

export class Track {
  /** @param {any} canvas in a box of its own @param {(arm: number, clock: number) => void} pick */
  constructor(canvas, pick) {
    this.canvas = canvas;
    this.cursor = new Cursor();
    canvas.after(this.cursor.node);
    this.key = "";
    this.width = 0; // CSS pixels
    this.room = -1;
    this.scale = 0;
    this.left = 0; // where lanes begin: their names stand before
    canvas.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (!this.run || !this.scale) return;
      const box = canvas.getBoundingClientRect(), arm = Math.floor((event.clientY - box.top) / PITCH);
      pick(Math.max(0, Math.min(this.run.arms.length - 1, arm)), Math.max(0, event.clientX - box.left - this.left) / this.scale);
    });
  }

  /**
   * @param {import("../trace/run.js").Run} run
   * @param {number | null} clock of the playhead
   * @param {number} waiting ms since the prompt that is processed now began
   * @param {TrackStyles} styles
   * @param {number} room differs where the canvas may have another width: to ask it at every step would take a layout of the page each
   */
  draw(run, clock, waiting, styles, room) {
    this.run = run;
    if (this.room !== room || !this.width) {
      this.room = room;
      this.width = this.canvas.clientWidth;
    }
    const canvas = this.canvas, ratio = Math.min(window.devicePixelRatio || 1, 2), width = this.width || 300;
    const height = PITCH * Math.max(1, run.arms.length) + 18, w = Math.round(width * ratio), tall = Math.round(height * ratio);
    const key = [w, tall, waiting, ...run.arms.map((arm) => [arm.last, Boolean(arm.end)]), styles.line, styles.colors, styles.names].join();
    if (canvas.width !== w || canvas.height !== tall) {
      canvas.width = w;
      canvas.height = tall;
      canvas.style.height = `${height}px`;
      this.key = "";
    }
    if (this.key !== key) {
      this.key = key;
      this._lanes(run, waiting, styles, width, ratio);
    }
    this.cursor.stretch(0, run.arms.length * PITCH);
    this.cursor.moveTo(clock === null ? null : this.left + clock * this.scale);
  }

  /** @param {import("../trace/run.js").Run} run @param {number} waiting @param {TrackStyles} styles @param {number} width @param {number} ratio */
  _lanes(run, waiting, styles, width, ratio) {
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, this.canvas.height);
    const end = Math.max(run.clockEnd, waiting, 1), left = this.left = styles.names.length ? Math.max(104, Math.min(160, Math.round(width * 0.2))) : 0;
    const scale = this.scale = (width - left - 8) / (end * 1.02);
    const next = run.prefilling;
    if (left) run.arms.forEach((_, index) => nameLane(context, index * PITCH + 3 + LANE / 2, left, styles, index));
    context.translate(left, 0);
    run.arms.forEach((arm, index) => {
      const y = index * PITCH + 3;
      context.fillStyle = styles.line;
      context.fillRect(0, y, width - left, LANE);
      context.fillStyle = styles.colors[index];
      context.globalAlpha = 0.35;
      context.fillRect(0, y, (arm.last < 0 ? (index === next ? waiting : 0) : arm.clock[0]) * scale, LANE);
      context.globalAlpha = 0.85;
      for (let t = 1; t <= arm.last; t++) {
        const x0 = arm.clock[t - 1] * scale, x1 = arm.clock[t] * scale;
        context.fillRect(x0, y, Math.max(0.4, x1 - x0 - (x1 - x0 > 3 ? 1 : 0)), LANE);
      }
      context.globalAlpha = 1;
      context.fillStyle = styles.text;
      for (let t = 1; t <= arm.last; t++) {
        // update steps: a notch on the lower edge, so that they show without color
        if (arm.update[t]) context.fillRect(arm.clock[t - 1] * scale, y + LANE - 4, Math.max(1, (arm.clock[t] - arm.clock[t - 1]) * scale - 1), 4);
      }
      if (arm.end && arm.last >= 0) context.fillRect(arm.clockNow * scale, y - 2, 2, LANE + 4);
    });
    this._axis(context, run.arms.length * PITCH + 8, end, width - left, styles.muted);
  }

  /** @param {CanvasRenderingContext2D} context @param {number} base @param {number} end @param {number} width @param {string} color */
  _axis(context, base, end, width, color) {
    context.fillStyle = color;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const step = niceStep(end / Math.max(2, Math.min(5, width / 70))), digits = step >= 1 ? 0 : 1;
    for (let ms = 0; ms * this.scale <= width - 30; ms += step) {
      context.fillRect(ms * this.scale, base - 8, 1, 4);
      context.textAlign = ms === 0 ? "left" : "center";
      context.fillText(end >= 2000 ? `${+(ms / 1000).toFixed(2)} s` : `${ms.toFixed(digits)} ms`, ms * this.scale, base + 3);
    }
  }
}

/** @param {CanvasRenderingContext2D} context @param {number} middle @param {number} width @param {TrackStyles} styles @param {number} index */
function nameLane(context, middle, width, styles, index) {
  const shown = styles.colors[index] !== styles.muted;
  context.fillStyle = shown ? styles.text : styles.muted;
  context.font = `${shown ? "600 " : ""}12px system-ui, sans-serif`;
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(shortened(styles.names[index], width - 10, (text) => context.measureText(text).width), 0, middle);
}

/** As much of a text as has room. @param {string} text @param {number} room @param {(text: string) => number} widthOf */
export function shortened(text, room, widthOf) {
  if (widthOf(text) <= room) return text;
  let n = text.length;
  while (n > 1 && widthOf(`${text.slice(0, n)}…`) > room) n--;
  return `${text.slice(0, n).trimEnd()}…`;
}

/** The next of 1, 2, 5, 10, … @param {number} raw */
export function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1e-6)));
  return ([1, 2, 5].find((factor) => factor * power >= raw) || 10) * power;
}
