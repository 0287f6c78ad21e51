// The picture with its tokens: a patch per token, colored and patterned by its set, for grids of any shape.

const SET_COLOURS = { core: "#f0e442", secondary: "#009e73", spread: "#56b4e9", veil: "rgba(8,12,18,0.74)", gained: "#f0e442", lost: "#cc79a7" };

class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.base = document.createElement("canvas"); // the picture, scaled once
    this.picture = null;
    this.lattice = null;
    this.region = null; // the part of the picture to show, in its pixels; null for all of it
    this.selected = -1;
    this.drawMs = 0;
  }

  setPicture(image, width, height) {
    this.picture = image;
    this.width = width;
    this.height = height;
    this.resize();
  }

  // the canvas has device pixels, the picture's aspect, and the width its box gives it
  resize() {
    if (!this.width) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const available = this.canvas.parentElement.clientWidth || 300;
    const limit = 460;
    const [left, top, right, bottom] = this.shown, width = right - left, height = bottom - top;
    const scale = Math.min(available / width, limit / height);
    const w = Math.max(1, Math.round(width * scale * ratio)), h_ = Math.max(1, Math.round(height * scale * ratio));
    if (this.canvas.width !== w || this.canvas.height !== h_) {
      this.canvas.width = this.base.width = w;
      this.canvas.height = this.base.height = h_;
      this.canvas.style.width = `${w / ratio}px`;
      this.canvas.style.height = `${h_ / ratio}px`;
    }
    const context = this.base.getContext("2d");
    context.fillStyle = "#8a929c";
    context.fillRect(0, 0, w, h_);
    if (this.picture) {
      const k = this.picture.naturalWidth / this.width; // it may travel smaller than the model sees it
      context.drawImage(this.picture, left * k, top * k, width * k, height * k, 0, 0, w, h_);
    }
    this.pixels = w / width;
    this.hatches = {};
  }

  get shown() { return this.region || [0, 0, this.width, this.height]; }

  // lines that rise (secondary) or fall (spread), so that both are seen where they cross
  pattern(kind) {
    if (this.hatches[kind]) return this.hatches[kind];
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const context = tile.getContext("2d"), rises = kind === "secondary";
    context.strokeStyle = SET_COLOURS[kind];
    context.lineWidth = 2.4;
    context.beginPath();
    for (const offset of [-8, 0, 8]) { context.moveTo(offset, rises ? 8 : 0); context.lineTo(offset + 8, rises ? 0 : 8); }
    context.stroke();
    return this.hatches[kind] = this.context.createPattern(tile, "repeat");
  }

  rectangle(token) {
    const cell = this.lattice.cell(token);
    return cell && this.canvasBox(...cell);
  }

  // a cell in device pixels, without gaps between neighbors
  canvasBox(row, col) {
    const [left, top, right, bottom] = this.lattice.rectangle(row, col);
    const k = this.pixels, [x, y] = this.shown;
    const x0 = Math.round((left - x) * k), y0 = Math.round((top - y) * k);
    return [x0, y0, Math.round((right - x) * k) - x0, Math.round((bottom - y) * k) - y0];
  }

  // which token lies under a point of the canvas (CSS pixels), or -1
  tokenAt(x, y) {
    if (!this.lattice) return -1;
    const scale = this.canvas.width / this.canvas.clientWidth / this.pixels;
    return this.lattice.tokenAt(x * scale + this.shown[0], y * scale + this.shown[1]);
  }

  // paint(token) -> one of the styles below; tokens of one style become one path. Those that marked(token) names get a hatch on top.
  draw(paint, marked) {
    const began = performance.now();
    const context = this.context;
    context.drawImage(this.base, 0, 0);
    if (this.lattice && paint) {
      const paths = new Map(), top = new Path2D(), { rows, cols } = this.lattice;
      for (let r = 0; r < rows; r++) {
        for (let c = 0; c < cols; c++) {
          const token = this.lattice.token(r, c);
          const style = paint(token);
          if (!style) continue;
          let path = paths.get(style);
          if (!path) paths.set(style, path = new Path2D());
          const box = this.canvasBox(r, c);
          path.rect(...box);
          if (marked && marked(token)) top.rect(...box);
        }
      }
      for (const [style, path] of paths) this.fill(style, path);
      if (marked) {
        context.fillStyle = this.pattern("spread");
        context.fill(top);
      }
    }
    if (this.selected >= 0 && this.lattice) {
      const box = this.rectangle(this.selected);
      if (box) {
        context.lineWidth = 4; context.strokeStyle = "#000"; context.strokeRect(...box);
        context.lineWidth = 2; context.strokeStyle = "#fff"; context.strokeRect(...box);
      }
    }
    this.drawMs = performance.now() - began;
  }

  fill(style, path) {
    const context = this.context;
    if (style === "minor" || style === "pruned") {
      context.fillStyle = SET_COLOURS.veil;
      context.fill(path);
      if (style === "pruned") {
        context.strokeStyle = "rgba(204,121,167,0.9)";
        context.lineWidth = 1;
        context.stroke(path);
      }
    } else if (style === "secondary") {
      context.fillStyle = "rgba(0,158,115,0.16)";
      context.fill(path);
      context.fillStyle = this.pattern("secondary");
      context.fill(path);
    } else if (style === "core") {
      context.fillStyle = "rgba(240,228,66,0.20)";
      context.fill(path);
      context.strokeStyle = SET_COLOURS.core;
      context.lineWidth = Math.max(1.5, this.canvas.width / 420);
      context.stroke(path);
    } else if (style === "gained") {
      context.fillStyle = "rgba(240,228,66,0.55)";
      context.fill(path);
      context.strokeStyle = "#000";
      context.lineWidth = 1;
      context.stroke(path);
    } else if (style === "lost") {
      context.fillStyle = "rgba(204,121,167,0.75)";
      context.fill(path);
      context.fillStyle = this.pattern("secondary");
      context.fill(path);
    } else if (style === "dim") {
      context.fillStyle = "rgba(8,12,18,0.45)";
      context.fill(path);
    } else {
      context.fillStyle = style; // a color: heat
      context.fill(path);
    }
  }
}

// dark violet to yellow in 24 steps of rising lightness (own table from three stops, readable without color vision)
const HEAT = Array.from({ length: 24 }, (_, i) => {
  const x = i / 23;
  const stops = [[22, 16, 60], [32, 118, 140], [246, 232, 80]];
  const [from, to, y] = x < 0.5 ? [stops[0], stops[1], x * 2] : [stops[1], stops[2], x * 2 - 1];
  const mix = from.map((value, k) => Math.round(value + (to[k] - value) * y));
  return `rgba(${mix[0]},${mix[1]},${mix[2]},0.78)`;
});

function heatColour(x) {
  return HEAT[Math.max(0, Math.min(23, Math.floor(x * 24)))];
}

const THUMB_COLOURS = [[28, 36, 46], [0, 158, 115], [240, 228, 66], [92, 66, 84]];

// Draw one layer as a thumbnail, one pixel per token of the chosen lattice.
function drawThumb(canvas, lattice, classes) {
  const { rows, cols } = lattice;
  if (canvas.width !== cols || canvas.height !== rows) {
    canvas.width = cols;
    canvas.height = rows;
  }
  const context = canvas.getContext("2d");
  const pixels = canvas._pixels && canvas._pixels.width === cols && canvas._pixels.height === rows
    ? canvas._pixels : (canvas._pixels = context.createImageData(cols, rows));
  let out = 0;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      const color = THUMB_COLOURS[classes[lattice.token(r, c)]] || THUMB_COLOURS[0];
      pixels.data[out++] = color[0];
      pixels.data[out++] = color[1];
      pixels.data[out++] = color[2];
      pixels.data[out++] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
}
