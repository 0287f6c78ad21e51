// The panel with the picture: arm, view, layer, patch, small pictures of all layers.

function loadPicture() {
  const run = view.run, grid = run.start.grids[view.grid];
  const which = grid ? grid.image : 0;
  const [width, height] = run.start.images[which] || [1, 1];
  const source = run.images[which];
  show($.emptyPicture, false);
  overlay.grid = grid || null;
  overlay.setPicture(null, width, height);
  if (!source || !/^data:image\/(png|webp|jpeg);base64,/.test(source)) { invalidate(); return; }
  const image = new Image();
  image.onload = () => { if (view.run === run) { overlay.setPicture(image, width, height); invalidate(); } };
  image.src = source;
}

function gridName(grid) {
  const grids = view.run.start.grids, pictures = view.run.start.images.length;
  const name = `${grid.rows} × ${grid.cols} tokens`;
  const part = grid.newline ? "tiles" : "whole picture";
  return grids.length === 1 ? name : `${pictures > 1 ? `picture ${grid.image + 1}: ` : ""}${part}, ${name}`;
}

function buildGrids() {
  const grids = view.run.start.grids;
  $.grid.replaceChildren(...grids.map((grid, index) => h("option", { value: String(index) }, gridName(grid))));
  show($.grid, grids.length > 1);
}

function buildFocus() {
  $.focus.replaceChildren(...view.run.arms.map((arm, index) => h("button", {
    type: "button", role: "radio", class: `avl-segment avl-arm-${index ? "b" : "a"}`, "aria-checked": String(index === view.focus), onclick: () => setFocus(index),
  }, h("i", { class: "avl-dot" }), shortLabel(arm))));
}

function setFocus(index) {
  view.focus = index;
  [...$.focus.children].forEach((node, at) => node.setAttribute("aria-checked", String(at === index)));
  invalidate();
}

function buildThumbs() {
  $.thumbs.replaceChildren(...Array.from({ length: view.run.start.layers }, (_, layer) => h("button", {
    type: "button", class: "avl-thumb", "aria-label": `Layer ${layer}`, onclick: () => setLayer(layer),
  }, h("canvas", {}), h("span", {}, String(layer)))));
}

function setLayer(layer) {
  if (!view.run || !view.run.start) return;
  view.touchedLayer = true;
  view.layer = Math.max(0, Math.min(view.run.start.layers - 1, layer));
  invalidate();
}

function drawOverlay() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, layer = view.layer;
  let painter = null, legend = [];
  if (view.mode === "sets") {
    const classes = run.classes(arm, t, layer), counts = run.counts(arm, t, layer);
    const styles = ["minor", "secondary", "core", "pruned"];
    const whole = counts[CORE] === run.start.n_image;
    painter = (token) => whole ? null : styles[classes[token]];
    const allRead = !counts[SECONDARY];
    legend = whole ? [["plain", `all ${run.start.n_image} image tokens are stored and read`]] :
      [["core", `${allRead ? "kept and read" : "core, read"} ${counts[CORE]}`], ["secondary", `secondary, kept ${counts[SECONDARY]}`], ["minor", `minor, evicted ${counts[MINOR]}`], ["pruned", `dropped in prefill ${counts[PRUNED]}`]]
        .filter((_, index) => counts[[CORE, SECONDARY, MINOR, PRUNED][index]] > 0);
    if (!whole && run.arms[arm].update[t]) legend.push(["update", "update step: all kept tokens are read, a new core is chosen"]);
  } else if (view.mode === "drift") {
    const change = run.drift(arm, t, layer), classes = run.classes(arm, t, layer);
    let gained = 0, lost = 0;
    for (const value of change) { gained += value > 0; lost += value < 0; }
    painter = (token) => change[token] > 0 ? "gained" : change[token] < 0 ? "lost" : classes[token] === CORE ? null : "dim";
    legend = [["gained", `gained ${gained}`], ["lost", `lost ${lost}`], ["plain", "bright: stayed core"]];
  } else if (view.mode === "consensus") {
    const votes = run.consensus(arm, t), layers = run.start.layers;
    painter = (token) => heatColour(votes[token] / layers);
    legend = [["heat", `core in 0 … ${layers} layers`]];
  } else if (view.mode === "scores") {
    const scores = run.scoresAt(arm, t, layer);
    if (scores) {
      const values = scores.values;
      const sorted = [...values].sort((x, y) => x - y);
      const top = sorted[Math.floor(sorted.length * 0.99)] || 1e-9;
      painter = (token) => heatColour(Math.sqrt(Math.min(1, values[token] / top)));
      legend = [["heat", `attention of ${scores.t === 0 ? "the last prompt token" : `step ${scores.t}`}, dark low, bright high (top 1 % ≥ ${(top * 100).toFixed(2)} %)`]];
    } else legend = [["plain", "this run carries no scores"]];
  }
  overlay.selected = view.patch;
  overlay.draw(painter);
  measures.overlayMs.push(overlay.drawMs);
  if (measures.overlayMs.length > 400) measures.overlayMs.shift();
  const words = legend.map((item) => item.join()).join("|");
  if ($.legend.dataset.words !== words) {
    $.legend.dataset.words = words;
    $.legend.replaceChildren(...legend.map(([kind, text]) => h("span", { class: "avl-key" }, kind === "plain" ? null : h("i", { class: `avl-mark avl-mark-${kind}` }), text)));
  }
  put($.layerName, `${layer} of 0–${run.start.layers - 1}`);
  if (Number($.layer.value) !== layer) $.layer.value = layer;
  drawPatch(arm, t);
}

function ranges(numbers) {
  const parts = [];
  for (let i = 0; i < numbers.length;) {
    let j = i;
    while (j + 1 < numbers.length && numbers[j + 1] === numbers[j] + 1) j++;
    parts.push(j > i ? `${numbers[i]}–${numbers[j]}` : String(numbers[i]));
    i = j + 1;
  }
  return parts.join(", ");
}

function drawPatch(arm, t) {
  if (!overlay.grid) { put($.patch, "Where this model's image tokens lie in the picture is not known, so no patches are drawn."); return; }
  if (view.patch < 0) { put($.patch, "Click a patch to see in which layers it is core."); return; }
  const grid = overlay.grid, stride = grid.cols + (grid.newline ? 1 : 0), at = view.patch - grid.first;
  const names = [[], [], [], []];
  for (let layer = 0; layer < view.run.start.layers; layer++) names[view.run.classes(arm, t, layer)[view.patch]].push(layer);
  const words = [[CORE, "core"], [SECONDARY, "secondary"], [MINOR, "minor"], [PRUNED, "dropped"]].filter(([kind]) => names[kind].length).map(([kind, word]) => `${word} in ${ranges(names[kind])}`);
  put($.patch, `Patch row ${Math.floor(at / stride) + 1}, column ${at % stride + 1} (token ${view.patch}), layers: ${words.join("; ")}`);
}

function drawThumbs() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, grid = run.start.grids[view.grid];
  if (!grid) return;
  const at = run.arms[arm].setsIndex(t);
  const key = `${view.id}/${arm}/${at}/${view.grid}/${run.arms[arm].sets.length ? "" : "all"}`;
  const fresh = view.thumbKey !== key;
  view.thumbKey = key;
  [...$.thumbs.children].forEach((button, layer) => {
    if (fresh) drawThumb(button.firstChild, grid, run.classes(arm, t, layer));
    const core = view.patch >= 0 && run.classes(arm, t, layer)[view.patch] === CORE;
    const name = "avl-thumb" + (layer === view.layer ? " avl-chosen" : "") + (core ? " avl-holds" : "");
    if (button.className !== name) button.className = name;
    const pressed = String(layer === view.layer);
    if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
  });
}
