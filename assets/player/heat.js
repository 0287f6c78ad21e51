// A heat map of shares 0 … 1 on a canvas: rows are layers; click a cell to go there.

class Heat {
  constructor(canvas, pick) {
    this.canvas = canvas;
    this.shape = null;
    this.shown = null;
    canvas.addEventListener("click", (event) => {
      if (!this.shape || !pick) return;
      const box = canvas.getBoundingClientRect(), { left, top, cell, tall, rows, cols } = this.shape;
      const col = Math.floor((event.clientX - box.left - left) / cell), row = Math.floor((event.clientY - box.top - top) / tall);
      if (row >= 0 && col >= 0 && row < rows && col < cols) pick(row, col);
    });
  }

  // values: rows x cols of 0..1 or null; mark: [row, col] or null
  draw({ rows, cols, value, rowTitle, colTitle, colName, mark, styles }) {
    this.shown = { rows, cols, value, rowTitle, colTitle, colName };
    const canvas = this.canvas, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = canvas.clientWidth || 300, left = 34, top = 4;
    const cell = (width - left - 4) / Math.max(1, cols), tall = Math.max(5, Math.min(16, 230 / Math.max(1, rows)));
    const height = top + rows * tall + 30;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    this.shape = { left, top, cell, tall, rows, cols };
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) {
      const x = value(r, c);
      if (x === null) continue;
      context.fillStyle = solidHeat(x);
      context.fillRect(left + c * cell, top + r * tall, Math.max(0.6, cell - (cell > 4 ? 0.6 : 0)), tall - 0.6);
    }
    if (mark && mark[0] >= 0 && mark[1] >= 0) {
      context.lineWidth = 2;
      context.strokeStyle = styles.text;
      context.strokeRect(left + mark[1] * cell, top + mark[0] * tall, Math.max(cell, 3), tall);
    }
    context.fillStyle = styles.muted;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.max(1, Math.ceil(14 / tall));
    for (let r = 0; r < rows; r += every) context.fillText(String(r), left - 5, top + r * tall + tall / 2);
    context.textAlign = "center";
    const skip = Math.max(1, Math.ceil(34 / cell));
    for (let c = 0; c < cols; c += skip) context.fillText(String(colName(c)), left + c * cell + cell / 2, top + rows * tall + 9);
    context.textAlign = "left";
    context.fillText(`${colTitle} →   (rows: ${rowTitle})`, left, top + rows * tall + 23);
  }

  // the same as a table: one row per layer
  table() {
    const { rows, cols, value, rowTitle, colTitle, colName } = this.shown || { rows: 0, cols: 0, value: () => null, rowTitle: "", colTitle: "", colName: String };
    const numbers = Array.from({ length: cols }, (_, c) => c);
    return {
      head: [`${rowTitle} \\ ${colTitle}`, ...numbers.map((c) => String(colName(c)))],
      rows: Array.from({ length: rows }, (_, r) => [r, numbers.map((c) => value(r, c))]),
    };
  }
}

function solidHeat(x) {
  return heatColour(Math.min(0.999, Math.max(0, x))).replace(/,[\d.]+\)$/, ",1)");
}
