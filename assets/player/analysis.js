// What the trace says about attention itself: where it goes (Figure 1), how sparse it is (Figure 3), whether layers agree (Figure 4), and
// whether a layer stays with its choice (Figure 5). Sets come from what a policy chose, or from recorded scores.

// The best p % of a score vector as a bit set; ties go to the lower position, and what was not read (0) is never in it
function topShare(values, percent) {
  const n = values.length, count = Math.ceil(percent * n / 100 - 1e-9); // guarded against the float error of 0.07 * 100
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  const chosen = new Uint8Array(n);
  for (let i = 0; i < count && values[order[i]] > 0; i++) chosen[order[i]] = 1;
  return chosen;
}

// PPCI (Equation 2): share of one set that is also in the other
function overlapOf(a, b) {
  let both = 0, size = 0;
  for (let i = 0; i < a.length; i++) { both += a[i] & b[i]; size += a[i]; }
  return size ? both / size : null;
}

// Sets of every layer, choice by choice. kind: "core", or p for the top p % of the scores
class Choices {
  constructor(run, armIndex, kind) {
    this.run = run;
    this.arm = run.arms[armIndex];
    this.armIndex = armIndex;
    this.kind = kind;
    this.bits = [];
    this.rows = [];
  }

  get total() { return this.kind === "core" ? this.arm.sets.length : this.arm.scores.length; }

  // token after which choice c was made
  t(c) { return this.kind === "core" ? this.arm.sets[c].t : this.arm.scores[c].t; }

  // the choice in force when step t reads
  at(t) {
    if (this.kind === "core") return this.arm.setsIndex(t);
    let found = -1;
    this.arm.scores.forEach((event, c) => { if (event.t <= t) found = c; });
    return found;
  }

  _bits(c) {
    const run = this.run, layers = run.start.layers;
    if (this.kind === "core") {
      return Array.from({ length: layers }, (_, layer) => run.classes(this.armIndex, this.t(c) + 1, layer).map((value) => Number(value === CORE)));
    }
    return this.arm.scores[c].image.map((packed) => topShare(unpackScores(packed, run.start.n_image), this.kind));
  }

  // works on until the budget (ms) is used; true when all is there
  advance(budget) {
    const began = performance.now();
    while (this.rows.length < this.total) {
      const bits = this._bits(this.rows.length);
      this.bits.push(bits);
      this.rows.push(bits.map((one, layer) => overlapOf(this.bits[0][layer], one)));
      if (performance.now() - began > budget) break;
    }
    return this.rows.length >= this.total;
  }

  between(c) {
    const bits = this.bits[c];
    return bits ? bits.map((a) => bits.map((b) => overlapOf(a, b))) : [];
  }
}

// Cumulative attention on the image by share of its tokens, best first of one score vector; entry i holds the best i + 1 tokens
function concentration(values) {
  const sorted = Array.from(values).sort((a, b) => b - a), total = sorted.reduce((a, b) => a + b, 0);
  let sum = 0;
  return sorted.map((value) => { sum += value; return total > 0 ? sum / total : 0; });
}

// smallest share of the tokens that holds 80 % of the attention
function sparsityOf(values) {
  const curve = concentration(values);
  const at = curve.findIndex((sum) => sum >= 0.8);
  return at < 0 ? null : (at + 1) / curve.length;
}

const meanOf = (values) => { const kept = values.filter((value) => value !== null && value !== undefined); return kept.length ? kept.reduce((a, b) => a + b, 0) / kept.length : null; };

const MODALITIES = [["system", "--avl-muted", "dash"], ["image", "--avl-b", "solid"], ["instruction", "--avl-a", "solid"], ["generated", "--avl-good", "dot"], ["between image tokens", "--avl-muted", "dot"]];

// percent of the image tokens in the sets of one choice, mean over the layers: what is drawn, for every policy
function setPercent(bits) {
  const n = bits.length && bits[0].length;
  return n ? 100 * meanOf(bits.map((layer) => layer.reduce((sum, bit) => sum + bit, 0))) / n : null;
}

function firstSets(run, arm) {
  return Array.from({ length: run.start.layers }, (_, layer) => run.classes(arm.index, 1, layer).map((value) => Number(value === CORE)));
}

function choicesFor(arm) {
  const options = arm.sets.length ? [["core", `the sets that ${shortLabel(arm)} reads (${(arm.setPercent ??= setPercent(firstSets(view.run, arm))).toFixed(0)} % of the image tokens)`]] : [];
  if (arm.scores.length) for (const p of [20, 30, 50]) options.push([String(p), `the ${p} % of the image tokens with most attention`]);
  return options;
}

function drawAnalysis() {
  const run = view.run, index = view.focus, arm = run.arms[index], t = view.ts[index] || 0;
  const options = run.start.layers > 1 ? choicesFor(arm) : [];
  show($.analysisPanel, options.length > 0);
  if (!options.length) return;
  const names = JSON.stringify(options);
  if ($.compared.dataset.names !== names) {
    $.compared.dataset.names = names;
    const kept = options.some(([value]) => value === view.compared) ? view.compared : options[options.length > 1 && options[0][0] !== "core" ? options.length - 1 : 0][0];
    $.compared.replaceChildren(...options.map(([value, text]) => h("option", { value, selected: value === kept }, text)));
    view.compared = kept;
  }
  const kind = view.compared === "core" ? "core" : Number(view.compared);
  const known = arm.choices ||= new Map();
  if (!known.has(kind)) known.set(kind, new Choices(run, index, kind));
  const choices = known.get(kind);
  if (!choices.advance(10)) invalidate();
  const at = Math.min(choices.at(t), choices.rows.length - 1), layers = run.start.layers, styles = colors();
  const key = `${view.id}/${index}/${kind}/${choices.rows.length}/${at}/${view.layer}/${isDark()}/${root.clientWidth}/${arm.scores.length}`;
  if (view.analysisKey === key) return;
  view.analysisKey = key;
  const core = kind === "core", rows = choices.rows;
  put($.analysisNote, core && !arm.scores.length ? "overlap (PPCI): share of one set that is also in the other; “record attention” adds the paper’s other figures" : "overlap (PPCI): share of one set that is also in the other");
  put($.continuityTitle, core ? "Core overlap with the layer’s first core" : `Overlap of a layer’s top ${kind} % with that of the prompt’s last token`);
  put($.layersTitle, core ? "Core overlap of every two layers, at the playhead" : `Overlap of the top ${kind} % of every two layers, at the playhead`);
  heats.continuity.draw({
    rows: layers, cols: rows.length, value: (r, c) => rows[c][r], rowTitle: "layer", colTitle: core ? "core chosen after token" : "token", colName: (c) => choices.t(c) + 1, mark: [view.layer, at], styles,
  });
  const matrix = choices.between(at);
  heats.layers.draw({ rows: layers, cols: layers, value: (r, c) => (matrix[r] ? matrix[r][c] : null), rowTitle: "layer", colTitle: "layer", colName: (c) => c, mark: [view.layer, view.layer], styles });
  const latest = rows.length > 1 ? meanOf(rows[rows.length - 1]) : null, against = matrix.length ? meanOf(matrix[0].slice(1)) : null;
  const chance = setPercent(choices.bits[Math.max(0, at)] || []); // expected overlap of random sets as large as those drawn
  put($.continuityNote, `The paper (Figure 5): attention to the top 50 % stays for 20 steps, that to the top 30 % may shift after three. This run: ${latest === null ? "one choice only so far" : `the latest set shares ${formatPercent(latest)} with the first, mean over layers`}.`);
  put($.layersNote, `The paper (Figure 4): the first layer and the later ones share less than 70 % of their top 50 %. This run: layer 0 and the later layers share ${formatPercent(against)} on average; two random sets of this size would share about ${formatPercent(chance === null ? null : chance / 100)}.`);
  drawRecorded(arm);
}

// Figures that need the scores themselves
function drawRecorded(arm) {
  const shared = arm.scores.length > 0 && Boolean(arm.scores[0].shares);
  show($.recorded, arm.scores.length > 0);
  if (!arm.scores.length) return;
  const run = view.run, key = `${view.id}/${arm.index}/${arm.scores.length}/${view.layer}`;
  if (view.recordedKey === key) return;
  view.recordedKey = key;
  if (shared) {
    const rows = arm.scores.map((event) => event.shares.reduce((sum, layer) => sum.map((value, m) => value + (layer[m] || 0) / event.shares.length), MODALITIES.map(() => 0)));
    const present = MODALITIES.filter((_, m) => m < 4 || rows.some((row) => row[m] > 0)); // most prompts have nothing between
    charts.shares.lines = present.map(([name, color, dash]) => ({ name, color, dash, width: 2 }));
    charts.shares.fill(present.map((_, m) => [arm.scores.map((event) => event.t), rows.map((row) => row[m] * 100)]));
    buildKeys($.sharesKeys, charts.shares.lines.map((line) => ({ ...line, text: line.name })));
    const first = rows[0], last = rows[rows.length - 1];
    put($.sharesNote, `The paper (Figure 1): attention to text decays fast, that to image tokens stays high. This run: the image holds ${formatPercent(first[1])} at the prompt’s last token and ${formatPercent(last[1])} at the last one, the question ${formatPercent(first[2])} and ${formatPercent(last[2])}.`);
  }
  const values = arm.scores[0].image.map((packed) => unpackScores(packed, run.start.n_image));
  const curves = values.map(concentration), n = run.start.n_image;
  const at = Array.from({ length: 51 }, (_, i) => Math.max(1, Math.round((i / 50) * n)) - 1);
  const x = at.map((i) => +(((i + 1) / n) * 100).toFixed(2));
  charts.sparsity.lines = [{ name: "mean of the layers", color: "--avl-a", width: 2.2 }, { name: `layer ${view.layer}`, color: "--avl-b", dash: "dot", width: 2 }];
  charts.sparsity.fill([[x, at.map((i) => meanOf(curves.map((curve) => curve[i])) * 100)], [x, at.map((i) => curves[view.layer][i] * 100)]]);
  buildKeys($.sparsityKeys, charts.sparsity.lines.map((line) => ({ ...line, text: line.name })));
  const held = values.map(sparsityOf);
  put($.sparsityNote, `The paper: 22.88 % of the tokens receive over 80 % of the attention in all layers. This run, prompt’s last token: ${formatPercent(meanOf(held))} of the image tokens hold 80 % of the attention on the image, mean over layers (${formatPercent(Math.min(...held.filter((v) => v !== null)))} to ${formatPercent(Math.max(...held.filter((v) => v !== null)))}).`);
}
