// The picture with its tokens: a patch per token, colored and patterned by its set, for grids of any shape; or a smooth heat.

import { SET_COLORS, heatPixel } from "./colors.js";

/** @typedef {[number, number, number, number]} Box left, top, right, bottom in pixels of the picture */

const TALLEST = 460; // CSS pixels

/** @typedef {"secondary" | "spread" | "missed" | "core" | "pruned" | "gained"} Texture hatches and frames of cells */

/** @type {Record<string, { wash: string, texture?: Texture }>} */
const STYLES = {
  minor: { wash: SET_COLORS.veil },
  pruned: { wash: SET_COLORS.veil, texture: "pruned" },
  secondary: { wash: "rgba(0,158,115,0.16)", texture: "secondary" },
  core: { wash: "rgba(240,228,66,0.2)", texture: "core" },
  gained: { wash: "rgba(240,228,66,0.55)", texture: "gained" },
  lost: { wash: "rgba(204,121,167,0.75)", texture: "secondary" },
  missed: { wash: "rgba(213,94,0,0.5)", texture: "missed" },
  dim: { wash: "rgba(8,12,18,0.45)" },
};

/** @type {Partial<Record<Texture, { color: string, width: number, grows?: boolean }>>} */
const FRAMES = { core: { color: SET_COLORS.core, width: 1.5, grows: true }, pruned: { color: "rgba(204,121,167,0.9)", width: 1 }, gained: { color: "#000", width: 1 } };

/** Lines that rise (secondary), fall (spread) or do both (missed), so that all are seen where they cross. @param {CanvasRenderingContext2D} context @param {"secondary" | "spread" | "missed"} kind */
function hatch(context, kind) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const lines = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  lines.strokeStyle = SET_COLORS[kind];
  lines.lineWidth = 2.4;
  lines.beginPath();
  for (const offset of [-8, 0, 8]) {
    if (kind !== "spread") { lines.moveTo(offset, 8); lines.lineTo(offset + 8, 0); }
    if (kind !== "secondary") { lines.moveTo(offset, 0); lines.lineTo(offset + 8, 8); }
  }
  lines.stroke();
  return /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
}

/** @type {Map<string, number>} */
const WORDS = new Map();
const OPAQUE = new Uint32Array(new Uint8Array([0, 0, 0, 255]).buffer)[0];

/** rgba(…) as a pixel, in this machine's byte order. @param {string} color */
function word(color) {
  let found = WORDS.get(color);
  if (found === undefined) {
    const [r, g, b, alpha] = (color.match(/[\d.]+/g) || []).map(Number);
    WORDS.set(color, found = new Uint32Array(new Uint8Array([r, g, b, Math.round(255 * alpha)]).buffer)[0]);
  }
  return found;
}

export class Overlay {
  /** @param {any} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.base = document.createElement("canvas"); // the picture, scaled once
    this.cells = document.createElement("canvas"); // a pixel per token
    this.mask = document.createElement("canvas"); // a hatch, where it belongs
    /** @type {any} */ this.picture = null;
    /** @type {import("../trace/grid.js").Lattice | null} */ this.lattice = null;
    /** @type {Box | null} */ this.frame = null; // the part of the picture that the canvas is shaped for, null: all of it
    /** @type {Box | null} */ this.zoom = null; // the part of that which is shown
    this.selected = -1;
    this.drawMs = 0;
    this.key = ""; // what was drawn last, for the caller
    this.version = 0; // of picture, size and zoom
    this.width = this.height = this.pixels = 0;
    /** @type {Map<Texture, { canvas: HTMLCanvasElement, lattice: any }>} */ this.textures = new Map();
  }

  /** @param {any} image null while it loads @param {number} width @param {number} height of the picture as the model gets it */
  setPicture(image, width, height) {
    this.picture = image;
    this.width = width;
    this.height = height;
    this.resize();
  }

  /** The canvas has device pixels, the frame's aspect, and the width its box gives it. */
  resize() {
    if (!this.width) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const available = this.canvas.parentElement.clientWidth || 300;
    const [left, top, right, bottom] = this.framed, width = right - left, height = bottom - top;
    const scale = Math.min(available / width, TALLEST / height);
    const w = Math.max(1, Math.round(width * scale * ratio)), tall = Math.max(1, Math.round(height * scale * ratio));
    if (this.canvas.width !== w || this.canvas.height !== tall) {
      this.canvas.width = this.base.width = w;
      this.canvas.height = this.base.height = tall;
      this.canvas.style.width = `${w / ratio}px`;
      this.canvas.style.height = `${tall / ratio}px`;
    }
    this._paint();
  }

  /** Show a part of the frame. @param {Box | null} zoom */
  zoomTo(zoom) {
    if (String(this.zoom) === String(zoom)) return;
    this.zoom = zoom;
    this._paint();
  }

  _paint() {
    if (!this.width) return;
    this.version++;
    this.textures.clear();
    const context = /** @type {CanvasRenderingContext2D} */ (this.base.getContext("2d")), { width: w, height: tall } = this.base;
    const [left, top, right, bottom] = this.shown, width = right - left, height = bottom - top;
    context.fillStyle = "#8a929c";
    context.fillRect(0, 0, w, tall);
    if (this.picture) {
      const k = this.picture.naturalWidth / this.width; // it may travel smaller than the model sees it
      context.drawImage(this.picture, left * k, top * k, width * k, height * k, 0, 0, w, tall);
    }
    this.pixels = w / width;
  }

  /** @returns {Box} */
  get framed() { return this.frame || [0, 0, this.width, this.height]; }

  get shown() { return this.zoom || this.framed; }

  /** Left, top, width and height of a token's cell in device pixels. @param {number} token */
  rectangle(token) {
    const cell = this.lattice && this.lattice.cell(token);
    return cell && this.canvasBox(cell[0], cell[1]);
  }

  /** A cell in device pixels, without gaps between neighbors. @param {number} row @param {number} col @returns {Box} */
  canvasBox(row, col) {
    const [left, top, right, bottom] = /** @type {any} */ (this.lattice).rectangle(row, col);
    const k = this.pixels, [x, y] = this.shown;
    const x0 = Math.round((left - x) * k), y0 = Math.round((top - y) * k);
    return [x0, y0, Math.round((right - x) * k) - x0, Math.round((bottom - y) * k) - y0];
  }

  /** A point of the canvas (CSS pixels) in pixels of the picture. @param {number} x @param {number} y @returns {[number, number]} */
  pointAt(x, y) {
    const scale = this.canvas.width / this.canvas.clientWidth / this.pixels;
    return [x * scale + this.shown[0], y * scale + this.shown[1]];
  }

  /** Which token lies under a point of the canvas (CSS pixels), or -1. @param {number} x @param {number} y */
  tokenAt(x, y) {
    return this.lattice ? this.lattice.tokenAt(...this.pointAt(x, y)) : -1;
  }

  /**
   * Draw a patch per token. What fills a cell is drawn as a picture of one pixel per token, scaled up; only frames are paths.
   * @param {((token: number) => string | null) | null} paint a style of STYLES, or a color
   * @param {((token: number) => unknown) | null} marked these get a hatch on top
   * @param {number} [opacity] of what lies over the picture
   */
  draw(paint, marked, opacity = 1) {
    const began = performance.now(), context = this.context, lattice = this.lattice;
    context.drawImage(this.base, 0, 0);
    context.globalAlpha = opacity;
    if (lattice && paint) {
      const { rows, cols, tokens } = lattice, washes = new Uint32Array(rows * cols);
      /** @type {Map<Texture, Uint32Array>} */ const masks = new Map();
      const mark = (/** @type {Texture} */ texture, /** @type {number} */ at) => {
        let mask = masks.get(texture);
        if (!mask) masks.set(texture, mask = new Uint32Array(rows * cols));
        mask[at] = OPAQUE;
      };
      for (let at = 0; at < tokens.length; at++) {
        const name = paint(tokens[at]);
        if (!name) continue;
        const style = STYLES[name];
        washes[at] = word(style ? style.wash : name);
        if (style && style.texture) mark(style.texture, at);
        if (marked && marked(tokens[at])) mark("spread", at);
      }
      this._small(washes, rows, cols);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.cells, ...this._place(rows, cols));
      for (const [texture, mask] of masks) this._textured(texture, mask, rows, cols);
    }
    context.globalAlpha = 1;
    this._frameSelected();
    this.drawMs = performance.now() - began;
  }

  /** Fill the small canvas, a pixel per cell. @param {Uint32Array} pixels @param {number} rows @param {number} cols */
  _small(pixels, rows, cols) {
    this.cells.width = cols; // clears it
    this.cells.height = rows;
    /** @type {CanvasRenderingContext2D} */ (this.cells.getContext("2d")).putImageData(new ImageData(new Uint8ClampedArray(/** @type {ArrayBuffer} */ (pixels.buffer)), cols, rows), 0, 0);
  }

  /** Where the lattice lies, device pixels. @param {number} rows @param {number} cols @returns {Box} left, top, width, height */
  _place(rows, cols) {
    const [left, top] = this.canvasBox(0, 0), [x, y, w, tall] = this.canvasBox(rows - 1, cols - 1);
    return [left, top, x + w - left, y + tall - top];
  }

  /** Draw a texture where the cells of a mask are opaque. @param {Texture} texture @param {Uint32Array} mask @param {number} rows @param {number} cols */
  _textured(texture, mask, rows, cols) {
    const { width, height } = this.canvas, context = /** @type {CanvasRenderingContext2D} */ (this.mask.getContext("2d"));
    if (this.mask.width !== width || this.mask.height !== height) {
      this.mask.width = width;
      this.mask.height = height;
    }
    this._small(mask, rows, cols);
    context.globalCompositeOperation = "copy";
    context.drawImage(this._texture(texture), 0, 0);
    context.globalCompositeOperation = "destination-in";
    context.imageSmoothingEnabled = false;
    context.drawImage(this.cells, ...this._place(rows, cols));
    this.context.drawImage(this.mask, 0, 0);
  }

  /** A texture over the whole canvas, drawn once for each size, zoom and lattice. @param {Texture} name @returns {HTMLCanvasElement} */
  _texture(name) {
    const known = this.textures.get(name), lattice = /** @type {import("../trace/grid.js").Lattice} */ (this.lattice);
    if (known && known.lattice === lattice) return known.canvas;
    const canvas = document.createElement("canvas"), frame = FRAMES[name];
    canvas.width = this.canvas.width;
    canvas.height = this.canvas.height;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    if (frame) {
      const path = new Path2D(), width = frame.grows ? Math.max(frame.width, canvas.width / 420) : frame.width;
      for (let row = 0; row < lattice.rows; row++) for (let col = 0; col < lattice.cols; col++) {
        const [x, y, w, tall] = this.canvasBox(row, col);
        path.rect(x + width / 2, y + width / 2, w - width, tall - width); // within the cell, or the mask would halve it
      }
      context.strokeStyle = frame.color;
      context.lineWidth = width;
      context.stroke(path);
    } else {
      context.fillStyle = hatch(context, name === "spread" || name === "missed" ? name : "secondary");
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    this.textures.set(name, { canvas, lattice });
    return canvas;
  }

  /**
   * Draw a smooth heat.
   * @param {(token: number) => number} value 0 to 1, NaN: nothing there
   * @param {number} opacity
   */
  drawHeat(value, opacity) {
    const began = performance.now(), context = this.context, lattice = this.lattice;
    context.drawImage(this.base, 0, 0);
    if (lattice) {
      const { rows, cols } = lattice;
      this.cells.width = cols;
      this.cells.height = rows;
      const small = /** @type {CanvasRenderingContext2D} */ (this.cells.getContext("2d")), image = small.createImageData(cols, rows);
      for (let r = 0, at = 0; r < rows; r++) for (let c = 0; c < cols; c++, at += 4) {
        const x = value(lattice.token(r, c));
        if (!(x >= 0)) continue;
        image.data.set(heatPixel(x), at);
        image.data[at + 3] = 225;
      }
      small.putImageData(image, 0, 0);
      context.globalAlpha = opacity;
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.cells, ...this._place(rows, cols));
      context.globalAlpha = 1;
    }
    this._frameSelected();
    this.drawMs = performance.now() - began;
  }

  _frameSelected() {
    const box = this.selected >= 0 ? this.rectangle(this.selected) : null, context = this.context;
    if (!box) return;
    context.lineWidth = 4; context.strokeStyle = "#000"; context.strokeRect(...box);
    context.lineWidth = 2; context.strokeStyle = "#fff"; context.strokeRect(...box);
  }
}
