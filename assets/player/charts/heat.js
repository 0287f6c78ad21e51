// A heat map of shares 0 … 1 on a canvas, with its color scale: rows are layers; click a cell to go there.

import { heatPixel } from "./colors.js";
import { TEXT } from "../text.js";

/** The markup of a heat map called x: its parts are xTitle, x, xNote and xTable. @param {string} name @param {string} label for screen readers */
export function heatMarkup(name, label) {
  return `<h3 data-id="${name}Title"></h3><canvas class="avl-heat" data-id="${name}" role="img" aria-label="${label}"></canvas>
<p class="avl-note" data-id="${name}Note"></p>
<details class="avl-table" data-id="${name}Table"><summary>${TEXT.table}</summary><div tabindex="0"></div></details>`;
}

/**
 * @typedef {Object} Shape
 * @property {number} rows
 * @property {number} cols
 * @property {(row: number, col: number) => number | null} value 0 to 1
 * @property {string} rowTitle
 * @property {string} colTitle
 * @property {string} axis the words below
 * @property {(col: number) => any} colName
 * @property {(row: number) => any} [rowName] its number where it is left out
 * @property {[number, number]} mark row and column, -1: none
 */

export class Heat {
  /** @param {any} canvas @param {(row: number, col: number) => void} pick */
  constructor(canvas, pick) {
    this.canvas = canvas;
    this.cells = document.createElement("canvas"); // a pixel per cell
    /** @type {Shape | null} */ this.shown = null;
    /** @type {any} */ this.place = null;
    canvas.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (!this.place || !this.shown) return;
      const box = canvas.getBoundingClientRect(), { left, top, cell, tall } = this.place, { rows, cols } = this.shown;
      const col = Math.floor((event.clientX - box.left - left) / cell), row = Math.floor((event.clientY - box.top - top) / tall);
      if (row >= 0 && col >= 0 && row < rows && col < cols) pick(row, col);
    });
  }

  /** @param {Shape} shape @param {{ text: string, muted: string }} styles @param {boolean} same the cells are those of the last call */
  draw(shape, styles, same = false) {
    this.shown = shape;
    const { rows, cols, colName, rowName = String, mark, axis } = shape, canvas = this.canvas, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = canvas.clientWidth || 300, left = 34, top = 4;
    const cell = (width - left - 4) / Math.max(1, cols), tall = Math.max(5, Math.min(16, 230 / Math.max(1, rows)));
    const bottom = top + rows * tall, height = bottom + 46;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    this.place = { left, top, cell, tall };
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (!same) this._cells(shape);
    context.imageSmoothingEnabled = false;
    if (rows && cols) context.drawImage(this.cells, left, top, cols * cell, rows * tall);
    if (mark[0] >= 0 && mark[1] >= 0) {
      context.lineWidth = 2;
      context.strokeStyle = styles.text;
      context.strokeRect(left + mark[1] * cell, top + mark[0] * tall, Math.max(cell, 3), tall);
    }
    context.fillStyle = styles.muted;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.max(1, Math.ceil(14 / tall));
    for (let r = 0; r < rows; r += every) context.fillText(String(rowName(r)), left - 5, top + r * tall + tall / 2);
    context.textAlign = "center";
    const skip = Math.max(1, Math.ceil(34 / cell));
    for (let c = 0; c < cols; c += skip) context.fillText(String(colName(c)), left + c * cell + cell / 2, bottom + 9);
    context.textAlign = "left";
    context.fillText(axis, left, bottom + 23);
    this._scale(context, left, bottom + 35, Math.min(140, width - left - 70));
  }

  /** @param {Shape} shape */
  _cells({ rows, cols, value }) {
    if (!rows || !cols) return;
    this.cells.width = cols;
    this.cells.height = rows;
    const context = /** @type {CanvasRenderingContext2D} */ (this.cells.getContext("2d")), image = context.createImageData(cols, rows);
    for (let r = 0, at = 0; r < rows; r++) for (let c = 0; c < cols; c++, at += 4) {
      const x = value(r, c);
      if (x === null) continue;
      image.data.set(heatPixel(x), at);
      image.data[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  /** What the colors mean. @param {any} context @param {number} left @param {number} y @param {number} width */
  _scale(context, left, y, width) {
    context.fillText("0", left, y + 4);
    for (let x = 0; x < width; x++) {
      context.fillStyle = `rgb(${heatPixel(x / width).join()})`;
      context.fillRect(left + 12 + x, y, 1.5, 8);
    }
    context.fillStyle = getComputedStyle(this.canvas).color;
    context.fillText("100 %", left + width + 18, y + 4);
  }

  /** The same as a table: one row per layer. @returns {{ head: string[], rows: [any, any[]][] } | null} */
  table() {
    if (!this.shown) return null;
    const { rows, cols, value, rowTitle, colTitle, colName, rowName = (row) => row } = this.shown, numbers = Array.from({ length: cols }, (_, c) => c);
    return {
      head: [`${rowTitle} \\ ${colTitle}`, ...numbers.map((c) => String(colName(c)))],
      rows: Array.from({ length: rows }, (_, r) => [rowName(r), numbers.map((c) => value(r, c))]),
    };
  }
}
