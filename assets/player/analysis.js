// What the trace says about attention itself: do layers agree (Figure 4), does a layer stay with its choice (Figure 5), how sparse is it.

class Heat {
  constructor(canvas, pick) {
    this.canvas = canvas;
    this.shape = null;
    canvas.addEventListener("click", (event) => {
      if (!this.shape || !pick) return;
      const box = canvas.getBoundingClientRect(), { left, top, cell, tall, rows, cols } = this.shape;
      const col = Math.floor((event.clientX - box.left - left) / cell), row = Math.floor((event.clientY - box.top - top) / tall);
      if (row >= 0 && col >= 0 && row < rows && col < cols) pick(row, col);
    });
  }

  // values: rows x cols of 0..1 or null; mark: [row, col] or null
  draw({ rows, cols, value, rowTitle, colTitle, colName, mark, styles }) {
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
}

function solidHeat(x) {
  return heatColour(Math.min(0.999, Math.max(0, x))).replace(/,[\d.]+\)$/, ",1)");
}

// The best p % of a score vector as a bit set; ties go to the lower position
function topShare(values, percent) {
  const n = values.length, count = shareOf(percent, n);
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  const chosen = new Uint8Array(n);
  for (let i = 0; i < count; i++) chosen[order[i]] = 1;
  return chosen;
}

function overlapOf(a, b) {
  let both = 0, size = 0;
  for (let i = 0; i < a.length; i++) { both += a[i] & b[i]; size += a[i]; }
  return size ? both / size : null;
}

// Core sets of every layer at one Sets event, as bits
function coreBits(run, armIndex, t) {
  return Array.from({ length: run.start.layers }, (_, layer) => {
    const classes = run.classes(armIndex, t, layer), bits = new Uint8Array(classes.length);
    for (let i = 0; i < bits.length; i++) bits[i] = classes[i] === CORE;
    return bits;
  });
}

// PPCI of each layer's core at each of its choices against its first choice: layers x choices
function continuity(run, armIndex) {
  const arm = run.arms[armIndex];
  const memory = arm._continuity ||= { first: null, rows: [] };
  while (memory.rows.length < arm.sets.length) {
    const bits = coreBits(run, armIndex, arm.sets[memory.rows.length].t + 1);
    memory.first ||= bits;
    memory.rows.push(bits.map((one, layer) => overlapOf(memory.first[layer], one)));
  }
  return memory.rows;
}

function heterogeneity(run, armIndex, t) {
  const arm = run.arms[armIndex], key = arm.setsIndex(t);
  if (arm._layers && arm._layers.key === key) return arm._layers.rows;
  const bits = coreBits(run, armIndex, t);
  const rows = bits.map((a) => bits.map((b) => overlapOf(a, b)));
  arm._layers = { key, rows };
  return rows;
}

// smallest share of the image tokens that holds 80 % of the image attention, per layer
function sparsity(scores, run) {
  return scores.image.map((packed) => {
    const values = [...unpackScores(packed, run.start.n_image)].sort((a, b) => b - a);
    const total = values.reduce((a, b) => a + b, 0);
    let sum = 0, count = 0;
    while (count < values.length && sum < 0.8 * total) sum += values[count++];
    return total > 0 ? count / values.length : null;
  });
}
