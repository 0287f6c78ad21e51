// All layers as small pictures on one canvas, one pixel per token: a canvas for each would cost a layer of the page's own each.

import { THUMB_COLORS } from "./colors.js";

// red, green, blue and alpha of a pixel as one number, in this machine's byte order
const WORDS = new Uint32Array(new Uint8Array(THUMB_COLORS.flatMap((color) => [...color, 255])).buffer);

export class Atlas {
  /** @param {any} canvas lies over the boxes that the pictures belong in */
  constructor(canvas) {
    this.canvas = canvas;
    this.small = document.createElement("canvas");
    /** @type {{ x: number, y: number, w: number, tall: number }[]} */ this.places = [];
    this.ratio = 1;
  }

  /** Note where the pictures belong, which takes a layout of the page. @param {HTMLElement[]} boxes within the canvas's parent */
  measure(boxes) {
    const parent = this.canvas.parentElement, { clientWidth: width, clientHeight: height } = parent;
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.width = Math.round(width * this.ratio);
    this.canvas.height = Math.round(height * this.ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const origin = parent.getBoundingClientRect();
    this.places = boxes.map((box) => {
      const { left, top, width: w, height: tall } = box.getBoundingClientRect();
      return { x: left - origin.left, y: top - origin.top, w, tall };
    });
  }

  /** @param {import("../trace/grid.js").Lattice} lattice @param {(layer: number) => Uint8Array} classes */
  draw(lattice, classes) {
    const { rows, cols, tokens } = lattice, n = this.places.length, context = this.canvas.getContext("2d");
    if (this.small.width !== cols || this.small.height !== rows * n) {
      this.small.width = cols;
      this.small.height = rows * n;
    }
    const small = /** @type {CanvasRenderingContext2D} */ (this.small.getContext("2d")), image = small.createImageData(cols, rows * n), pixels = new Uint32Array(image.data.buffer);
    for (let layer = 0, at = 0; layer < n; layer++) {
      const own = classes(layer);
      for (let i = 0; i < tokens.length; i++) pixels[at++] = WORDS[own[tokens[i]]];
    }
    small.putImageData(image, 0, 0);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.imageSmoothingEnabled = false;
    this.places.forEach(({ x, y, w, tall }, layer) => context.drawImage(this.small, 0, layer * rows, cols, rows, x, y, w, tall));
  }
}
