// How image tokens lie in their picture: token <-> cell <-> rectangle, for a grid of any shape and for tiles that cover a picture together.

/** @typedef {{ image: number, first: number, rows: number, cols: number, newline: boolean, box: number[] }} Grid as avl/trace/events.py describes it */

/** Cells in rows and columns over a part of a picture: one grid, or equal tiles side by side. */
export class Lattice {
  /** @param {Grid[]} tiles */
  constructor(tiles) {
    const lefts = distinct(tiles.map((tile) => tile.box[0])), tops = distinct(tiles.map((tile) => tile.box[1]));
    this.image = tiles[0].image;
    this.across = lefts.length;
    this.down = tops.length;
    this.cut = false; // into tiles that stand side by side
    /** @type {Grid[]} */ this.tiles = []; // row by row
    for (const tile of tiles) this.tiles[tops.indexOf(tile.box[1]) * this.across + lefts.indexOf(tile.box[0])] = tile;
    this.tile = tiles[0];
    /** @type {number[] | null} */ this._all = null;
    this.rows = this.down * this.tile.rows;
    this.cols = this.across * this.tile.cols;
    this.box = [0, 1, 2, 3].map((side) => (side < 2 ? Math.min : Math.max)(...tiles.map((tile) => tile.box[side])));
  }

  /** Whether every place of the lattice has its tile, all of one shape. */
  get regular() {
    const { rows, cols, newline, image } = this.tile;
    return this.tiles.length === this.across * this.down && Array.from(this.tiles).every((tile) => tile && tile.rows === rows && tile.cols === cols && tile.newline === newline && tile.image === image);
  }

  /** @param {number} row @param {number} col */
  token(row, col) {
    const { rows, cols } = this.tile;
    const tile = this.tiles[Math.floor(row / rows) * this.across + Math.floor(col / cols)];
    return tile.first + (row % rows) * strideOf(tile) + (col % cols);
  }

  /** [row, column], or null for a token that is elsewhere. @param {number} token */
  cell(token) {
    for (let number = 0; number < this.tiles.length; number++) {
      const tile = this.tiles[number], at = token - tile.first, row = Math.floor(at / strideOf(tile)), col = at % strideOf(tile);
      if (at < 0 || row >= tile.rows || col >= tile.cols) continue;
      return [Math.floor(number / this.across) * tile.rows + row, (number % this.across) * tile.cols + col];
    }
    return null;
  }

  /** All tokens, row by row. @returns {number[]} */
  get tokens() {
    return this._all ||= Array.from({ length: this.rows * this.cols }, (_, at) => this.token(Math.floor(at / this.cols), at % this.cols));
  }

  /** [left, top, right, bottom] of a cell in pixels of the picture; neighbors share their edge to the last bit. @param {number} row @param {number} col */
  rectangle(row, col) {
    const [left, top, right, bottom] = this.box, w = (right - left) / this.cols, h_ = (bottom - top) / this.rows;
    return [left + col * w, top + row * h_, left + (col + 1) * w, top + (row + 1) * h_];
  }

  /** The token under a point of the picture, or -1. @param {number} x @param {number} y */
  tokenAt(x, y) {
    const [left, top, right, bottom] = this.box;
    const col = Math.floor((x - left) / (right - left) * this.cols), row = Math.floor((y - top) / (bottom - top) * this.rows);
    return col < 0 || row < 0 || col >= this.cols || row >= this.rows ? -1 : this.token(row, col);
  }
}

/** @param {Grid} grid */
function strideOf(grid) { return grid.cols + (grid.newline ? 1 : 0); }

/** @param {number[]} numbers */
function distinct(numbers) { return [...new Set(numbers)].sort((a, b) => a - b); }

/** The lattices of a prompt, picture by picture: grids that are parts of a picture stand together, as its tiles. @param {Grid[]} grids @param {[number, number][]} images */
export function latticesOf(grids, images) {
  /** @type {Lattice[]} */ const found = [];
  images.forEach(([width, height], image) => {
    const own = grids.filter((grid) => grid.image === image);
    const parts = own.filter(({ box }) => (box[2] - box[0]) * (box[3] - box[1]) < 0.99 * width * height);
    const tiled = parts.length > 1 ? new Lattice(parts) : null;
    if (tiled && tiled.regular) {
      tiled.cut = true;
      found.push(tiled, ...own.filter((grid) => !parts.includes(grid)).map((grid) => new Lattice([grid])));
    } else found.push(...own.map((grid) => new Lattice([grid])));
  });
  return found;
}

/** Tiles show more of a picture than all of it at once does, so they come first. @param {Lattice[]} lattices */
export function finestOf(lattices) {
  const cells = lattices.map((lattice) => (lattice.image === 0 ? lattice.rows * lattice.cols : 0));
  return Math.max(0, cells.indexOf(Math.max(...cells)));
}
