// Curves that grow while the run goes on. plotly.js is captured once: a page with gr.Plot would replace window.Plotly.

// The library is most of what the page loads, so it comes after the first paint; a report has it within.
function loadPlotly(address) {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.js did not arrive"));
    document.head.append(script);
  });
}

// without a pointer that hovers, the tool bar would always stand over the data; a double tap resets a zoom anyway
const TOUCH = matchMedia("(hover: none)").matches;
const PLOT_CONFIG = {
  responsive: true, displaylogo: false, plotlyServerURL: "", displayModeBar: TOUCH ? false : "hover",
  modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d"],
};
const MODEBAR = TOUCH ? 6 : 26; // pixels above the data, where the tool bar appears

class Chart {
  // lines: [{name, arm, color(css variable), dash, width, marker}]; x and y come with add()
  constructor(element, options) {
    this.plotly = null;
    this.element = element;
    this.options = options;
    this.lines = [];
    this.data = [];
    this.cursor = h("div", { class: "avl-cursor", "aria-hidden": "true" });
    this.cursor.hidden = true;
    this.ready = false;
  }

  // the library has arrived: what came before it is drawn
  use(plotly) {
    this.plotly = plotly;
    if (this.lines.length) this._plot();
  }

  // it never will; the tables have everything
  fail() { put(this.element, "The charts could not be loaded: reload the page, or open the tables below them."); }

  reset(lines) {
    this.lines = lines;
    this.data = lines.map(() => ({ x: [], y: [] }));
    this._plot();
  }

  // points per line: [[xs, ys], …]; empty arrays add nothing
  add(points) {
    const xs = [], ys = [], indices = [];
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

  // the same lines with new data at once (a loaded trace)
  fill(data) {
    this.data = data.map(([x, y]) => ({ x: [...x], y: [...y] }));
    this._plot();
  }

  _layout() {
    const text = variable(this.element, "--avl-muted"), line = variable(this.element, "--avl-line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, tickfont: { size: 11 }, fixedrange: false, automargin: true };
    return {
      autosize: true, height: this.options.height || 190, uirevision: "keep",
      margin: { l: 46, r: 10, t: MODEBAR, b: 34 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: variable(this.element, "--avl-text") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "inherit", size: 11, color: text },
      showlegend: false, hovermode: "x unified",
      hoverlabel: { bgcolor: variable(this.element, "--avl-panel"), bordercolor: line, font: { color: variable(this.element, "--avl-text"), size: 12 } },
      xaxis: { ...axis, title: { text: this.options.x, standoff: 6, font: { size: 11 } }, rangemode: "tozero" },
      yaxis: { ...axis, rangemode: "tozero", nticks: 5, ticksuffix: "", hoverformat: this.options.hover || ".2f" },
    };
  }

  _plot() {
    if (!this.plotly) return;
    const traces = this.lines.map((line, index) => ({
      type: "scatter", mode: line.markers ? "markers" : "lines", name: line.name,
      x: this.data[index].x.slice(), y: this.data[index].y.slice(),
      line: { color: variable(this.element, line.color), width: line.width || 2, dash: line.dash || "solid", shape: line.shape || "linear" },
      marker: { color: variable(this.element, line.color), symbol: "triangle-up", size: 7 },
      hovertemplate: line.markers || !line.name ? undefined : `%{y:${this.options.hover || ".2f"}} ${this.options.unit}`,
      hoverinfo: line.markers || !line.name ? "skip" : undefined, visible: Boolean(line.name), cliponaxis: false,
    }));
    this.plotly.react(this.element, traces, this._layout(), PLOT_CONFIG);
    if (!this.ready) {
      this.element.append(this.cursor);
      this.element.on("plotly_click", (event) => this.options.pick && this.options.pick(event.points[0].x));
      this.element.on("plotly_afterplot", () => {
        this.moveCursor(this.at);
        // the tables under the charts are what a keyboard needs
        for (const button of this.element.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
      });
      this.ready = true;
    }
  }

  retheme() { if (this.ready) this._plot(); }

  // a line over the chart instead of a shape in it: moving it costs no redraw
  moveCursor(x) {
    this.at = x;
    const layout = this.element._fullLayout;
    if (!layout || !layout.xaxis || x === null || x === undefined) { this.cursor.hidden = true; return; }
    const axis = layout.xaxis, size = layout._size;
    const left = axis._offset + axis.l2p(x);
    this.cursor.hidden = !(left >= axis._offset - 1 && left <= axis._offset + axis._length + 1);
    this.cursor.style.transform = `translateX(${left}px)`;
    this.cursor.style.top = `${size.t}px`;
    this.cursor.style.height = `${size.h}px`;
  }

  table() {
    const kept = this.lines.map((line, index) => index).filter((index) => this.lines[index].name);
    const names = kept.map((index) => this.lines[index].name), rows = new Map();
    kept.map((index) => this.data[index]).forEach((line, index) => line.x.forEach((x, i) => {
      if (!rows.has(x)) rows.set(x, names.map(() => null));
      rows.get(x)[index] = line.y[i];
    }));
    return { head: [this.options.x, ...names.map((name) => `${name} (${this.options.unit})`)], rows: [...rows].sort((a, b) => a[0] - b[0]) };
  }
}

function tableElement({ head, rows }) {
  return h("table", {}, h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map(([x, values]) => h("tr", {}, h("th", { scope: "row" }, String(x)),
      values.map((value) => h("td", {}, value === null ? DASH : fixed(value, 2)))))));
}
