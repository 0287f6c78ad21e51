// Curves that grow while the run goes on. plotly.js is captured once: a page with gr.Plot would replace window.Plotly.

import { debounce, h, put, variable } from "../core/dom.js";
import { Cursor } from "./cursor.js";
import { TEXT } from "../text.js";

/**
 * @typedef {Object} Line
 * @property {string} name empty: not drawn
 * @property {string} color a CSS variable
 * @property {string} [dash]
 * @property {number} [width]
 * @property {boolean} [markers] points, without a line
 *
 * @typedef {Object} ChartOptions
 * @property {string} x title of the axis
 * @property {string} unit
 * @property {string} [hover] d3's number format
 * @property {number} height pixels
 * @property {boolean} [log] the x axis
 * @property {(x: number) => void} [pick]
 */

/** The library is most of what the page loads, so it comes after the first paint; a report has it within. @param {string | undefined} address @returns {Promise<any>} */
export function loadPlotly(address) {
  const page = /** @type {any} */ (window);
  if (page.Plotly) return Promise.resolve(page.Plotly);
  return new Promise((resolve, reject) => {
    // several components draw charts: whoever comes first loads it
    const loading = document.querySelector("script[data-avl-plotly]"), script = loading || h("script", { src: address, "data-avl-plotly": "" });
    script.addEventListener("load", () => resolve(page.Plotly));
    script.addEventListener("error", () => { script.remove(); reject(new Error("plotly.js did not arrive")); });
    if (!loading) document.head.append(script);
  });
}

// without a pointer that hovers, the tool bar would always stand over the data; a double tap resets a zoom anyway
const TOUCH = typeof matchMedia === "function" && matchMedia("(hover: none)").matches;
const CONFIG = {
  responsive: true, displaylogo: false, plotlyServerURL: "", displayModeBar: TOUCH ? false : "hover",
  modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d"],
};
const MODEBAR = TOUCH ? 6 : 26; // pixels above the data, where the tool bar appears

export class Chart {
  /** @param {any} element @param {ChartOptions} options */
  constructor(element, options) {
    /** @type {any} */ this.plotly = null;
    this.element = element;
    this.options = options;
    /** @type {Line[]} */ this.lines = [];
    /** @type {{ x: number[], y: number[] }[]} */ this.data = [];
    /** @type {number | null} */ this.top = null;
    this.cursor = new Cursor();
    this.ready = false;
    /** @type {number | null} */ this.at = null;
    this.seen = false;
    new IntersectionObserver((entries) => {
      this.seen = entries[entries.length - 1].isIntersecting;
      if (this.seen) this.moveCursor(this.at);
    }, { rootMargin: "100px" }).observe(element);
    // plotly follows the window's size, not that of its own box, which changes with the columns
    new ResizeObserver(debounce(() => {
      if (this.ready && element.clientWidth && Math.abs(element.clientWidth - element._fullLayout.width) > 1) this.plotly.Plots.resize(element);
    }, 80)).observe(element);
  }

  /** The library has arrived: what came before it is drawn. @param {any} plotly */
  use(plotly) {
    this.plotly = plotly;
    if (this.lines.length) this._plot();
  }

  /** It never will; the tables have everything. */
  fail() { put(this.element, TEXT.chartsMissing); }

  /** Other lines, with their points. @param {Line[]} lines @param {[number[], number[]][]} [points] */
  reset(lines, points) {
    this.lines = lines;
    this.data = lines.map((_, index) => ({ x: points ? [...points[index][0]] : [], y: points ? [...points[index][1]] : [] }));
    this._plot();
  }

  /** Points per line: [[xs, ys], …]; empty arrays add nothing. @param {[number[], number[]][]} points */
  add(points) {
    /** @type {number[][]} */ const xs = [];
    /** @type {number[][]} */ const ys = [];
    /** @type {number[]} */ const indices = [];
    points.forEach(([x, y], line) => {
      if (!x.length) return;
      this.data[line].x.push(...x);
      this.data[line].y.push(...y);
      xs.push(x);
      ys.push(y);
      indices.push(line);
    });
    if (indices.length && this.ready) this.plotly.extendTraces(this.element, { x: xs, y: ys }, indices);
  }

  /** Cut the y axis there; null: nowhere. @param {number | null} top */
  cut(top) {
    if (this.top === top) return;
    this.top = top;
    if (this.ready) this.plotly.relayout(this.element, this._cut());
  }

  _cut() { return this.top === null ? { "yaxis.autorange": true } : { "yaxis.range": [0, this.top], "yaxis.autorange": false }; }

  _layout() {
    const text = variable(this.element, "--avl-muted"), line = variable(this.element, "--avl-line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { size: 11 }, fixedrange: false, automargin: true };
    return {
      autosize: true, height: this.options.height, uirevision: "keep",
      margin: { l: 46, r: 10, t: MODEBAR, b: 34 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: variable(this.element, "--avl-text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "inherit", size: 11, color: text },
      showlegend: false, hovermode: "x unified",
      hoverlabel: { bgcolor: variable(this.element, "--avl-panel"), bordercolor: line, font: { color: variable(this.element, "--avl-text"), size: 12 } },
      xaxis: { ...axis, title: { text: this.options.x, standoff: 6, font: { size: 11 } }, rangemode: "tozero", ...(this.options.log ? { type: "log", dtick: Math.log10(2) } : {}) },
      yaxis: { ...axis, rangemode: "tozero", nticks: 5, ticksuffix: "", hoverformat: this.options.hover || ".2f", ...(this.top === null ? {} : { range: [0, this.top], autorange: false }) },
    };
  }

  _plot() {
    if (!this.plotly) return;
    const hover = this.options.hover || ".2f";
    const traces = this.lines.map((line, index) => ({
      type: "scatter", mode: line.markers ? "markers" : "lines", name: line.name,
      x: this.data[index].x.slice(), y: this.data[index].y.slice(),
      line: { color: variable(this.element, line.color), width: line.width || 2, dash: line.dash || "solid", shape: "linear" },
      marker: { color: variable(this.element, line.color), symbol: "triangle-up", size: 6 },
      hovertemplate: line.markers || !line.name ? undefined : `%{y:${hover}} ${this.options.unit}`,
      hoverinfo: line.markers || !line.name ? "skip" : undefined, visible: Boolean(line.name), cliponaxis: this.top !== null,
    }));
    this.plotly.react(this.element, traces, this._layout(), CONFIG);
    if (this.ready) return;
    this.ready = true;
    this.element.append(this.cursor.node);
    this.element.on("plotly_click", (/** @type {any} */ event) => this.options.pick && this.options.pick(event.points[0].x));
    this.element.on("plotly_afterplot", () => {
      this.moveCursor(this.at);
      // the tables under the charts are what a keyboard needs
      for (const button of this.element.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
    });
  }

  retheme() { if (this.ready) this._plot(); }

  /** A line over the chart instead of a shape in it: moving it costs no redraw. @param {number | null} x */
  moveCursor(x) {
    this.at = x;
    if (!this.seen) return; // it moves there when somebody looks
    const layout = this.element._fullLayout;
    if (!layout || !layout.xaxis || x === null) { this.cursor.moveTo(null); return; }
    const axis = layout.xaxis, size = layout._size, left = axis._offset + axis.l2p(x);
    this.cursor.stretch(size.t, size.h);
    this.cursor.moveTo(left >= axis._offset - 1 && left <= axis._offset + axis._length + 1 ? left : null);
  }

  /** @returns {{ head: string[], rows: [any, any[]][] } | null} */
  table() {
    const kept = this.lines.map((_, index) => index).filter((index) => this.lines[index].name);
    if (!kept.length) return null;
    const names = kept.map((index) => this.lines[index].name);
    /** @type {Map<number, (number | null)[]>} */ const rows = new Map();
    kept.map((index) => this.data[index]).forEach((line, index) => line.x.forEach((x, i) => {
      const row = rows.get(x) || names.map(() => null);
      row[index] = line.y[i];
      rows.set(x, row);
    }));
    return { head: [this.options.x, ...names.map((name) => `${name} (${this.options.unit})`)], rows: [...rows].sort((a, b) => a[0] - b[0]) };
  }
}
