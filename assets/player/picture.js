// The panel with the picture: arm, view, layer, patch, small pictures of all layers.

// the part of a picture under a lattice: [left, top, right, bottom] in pixels, and its share of the picture
function seenPart(lattice, width, height) {
  const [left, top, right, bottom] = lattice ? lattice.box : [0, 0, width, height];
  const box = [Math.max(0, left), Math.max(0, top), Math.min(width, right), Math.min(height, bottom)];
  return { box, share: ((box[2] - box[0]) * (box[3] - box[1])) / (width * height) };
}

function loadPicture() {
  const run = view.run, lattice = view.lattices[view.grid];
  const which = lattice ? lattice.image : 0;
  const [width, height] = run.start.images[which] || [1, 1];
  const source = run.images[which];
  show($.emptyPicture, false);
  overlay.lattice = lattice || null;
  const { box, share } = seenPart(lattice, width, height), cropped = share < 0.95;
  overlay.region = cropped && !view.whole ? box : null;
  show($.zoom, cropped);
  put($.zoom, view.whole ? "Zoom to what the model sees" : "Show the whole picture");
  show($.crop, cropped);
  put($.crop, cropped ? `The model sees the middle square only, as LLaVA-1.5 does: ${formatPercent(1 - share)} of this picture is cut off.` : "");
  overlay.setPicture(null, width, height);
  if (!source || !/^data:image\/(png|webp|jpeg);base64,/.test(source)) { invalidate(); return; }
  const image = new Image();
  image.onload = () => { if (view.run === run) { overlay.setPicture(image, width, height); invalidate(); } };
  image.src = source;
}

function latticeName(lattice) {
  const pictures = view.run.start.images.length, name = `${lattice.rows} × ${lattice.cols} tokens`;
  const part = lattice.cut ? `${lattice.down} × ${lattice.across} tiles` : lattice.tile.newline ? "tiles" : "whole picture";
  return view.lattices.length === 1 ? name : `${pictures > 1 ? `picture ${lattice.image + 1}: ` : ""}${part}, ${name}`;
}

function buildGrids() {
  $.grid.replaceChildren(...view.lattices.map((lattice, index) => h("option", { value: String(index) }, latticeName(lattice))));
  $.grid.value = String(view.grid);
  show($.grid, view.lattices.length > 1);
}

function buildFocus() {
  $.focus.replaceChildren(...view.run.arms.map((arm, index) => h("button", {
    type: "button", role: "radio", class: `avl-segment avl-arm-${index ? "b" : "a"}`, "aria-checked": String(index === view.focus), onclick: () => setFocus(index),
  }, h("i", { class: "avl-dot" }), shortLabel(arm))));
}

function setFocus(index) {
  view.focus = view.wantedFocus = index;
  [...$.focus.children].forEach((node, at) => node.setAttribute("aria-checked", String(at === index)));
  invalidate();
}

function buildThumbs() {
  const placed = view.lattices.length > 0; // tokens without a place make no picture
  $.thumbs.replaceChildren(...Array.from({ length: view.run.start.layers }, (_, layer) => h("button", {
    type: "button", class: "avl-thumb", "aria-label": `Layer ${layer}`, tabindex: "-1", onclick: () => setLayer(layer),
  }, h("canvas", { hidden: !placed }), h("span", {}, String(layer)))));
}

// one stop for the keyboard, arrows within: a model has up to 40 layers
$.thumbs.addEventListener("keydown", (event) => {
  const last = view.run.start.layers - 1, row = getComputedStyle($.thumbs).gridTemplateColumns.split(" ").length;
  const to = { ArrowLeft: view.layer - 1, ArrowRight: view.layer + 1, ArrowUp: view.layer - row, ArrowDown: view.layer + row, Home: 0, End: last }[event.key];
  if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  setLayer(Math.max(0, Math.min(last, to)));
  $.thumbs.children[view.layer].focus();
});

function setLayer(layer) {
  if (!view.run || !view.run.start) return;
  view.touchedLayer = true;
  view.layer = Math.max(0, Math.min(view.run.start.layers - 1, layer));
  invalidate();
}

// tokens of a lattice, or all image tokens where there is none to choose
function tokensOf(lattice) {
  return lattice ? lattice.tokens : Array.from({ length: view.run.start.n_image }, (_, token) => token);
}

const SET_WORDS = [[CORE, "core"], [SECONDARY, "secondary"], [MINOR, "minor"], [PRUNED, "dropped"]];

// what the legend's numbers are part of: a line where a prompt has more image tokens than the grid that is drawn
function restOf(tokens, counts) {
  const { n_image: n } = view.run.start, { lattices } = view;
  if (!lattices.length) return [["plain", "These tokens have no place in the picture."]];
  if (lattices.length < 2) return [];
  const drawn = `Drawn: ${tokens.length} of ${n} image tokens.`;
  if (!counts) return [["plain", drawn]];
  const all = SET_WORDS.filter(([kind]) => counts[kind]).map(([kind, word]) => `${word} ${counts[kind]}`).join(", ");
  return [["plain", `${drawn} In ${lattices.length === 2 ? "both grids" : "all grids"}: ${all}`]];
}

function drawOverlay() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, layer = view.layer;
  const tokens = tokensOf(overlay.lattice);
  let painter = null, marked = null, legend = [];
  if (!run.arms[arm].prefill) {
    legend = [["plain", "Nothing is stored yet."]];
  } else if (view.mode === "sets") {
    const classes = run.classes(arm, t, layer), all = run.counts(arm, t, layer), counts = [0, 0, 0, 0];
    for (const token of tokens) counts[classes[token]]++;
    const styles = ["minor", "secondary", "core", "pruned"];
    const whole = all[CORE] === run.start.n_image;
    painter = (token) => whole ? null : styles[classes[token]];
    const allRead = !all[SECONDARY];
    legend = whole ? [["plain", `All ${run.start.n_image} image tokens are stored and read.`], ...restOf(tokens, null)] :
      [["core", `${allRead ? "kept and read" : "core, read"} ${counts[CORE]}`], ["secondary", `secondary, kept ${counts[SECONDARY]}`], ["minor", `minor, evicted ${counts[MINOR]}`], ["pruned", `dropped in prefill ${counts[PRUNED]}`]]
        .filter((_, index) => counts[[CORE, SECONDARY, MINOR, PRUNED][index]] > 0);
    const spread = run.spread(arm, layer), held = (token) => spread[token] && (classes[token] === CORE || classes[token] === SECONDARY);
    if (spread && !whole) {
      marked = held;
      legend.push(["spread", `held by spread ${tokens.filter(held).length}`]);
    }
    if (!whole) legend.push(...restOf(tokens, all));
    if (!whole && run.arms[arm].update[t]) legend.push(["update", "Update step: all kept tokens are read, a new core is chosen"]);
  } else if (view.mode === "drift") {
    const change = run.drift(arm, t, layer), classes = run.classes(arm, t, layer);
    let gained = 0, lost = 0;
    for (const token of tokens) { gained += change[token] > 0; lost += change[token] < 0; }
    painter = (token) => change[token] > 0 ? "gained" : change[token] < 0 ? "lost" : classes[token] === CORE ? null : "dim";
    legend = [["gained", `gained ${gained}`], ["lost", `lost ${lost}`], ["plain", "bright: stayed core"], ...restOf(tokens, null)];
  } else if (view.mode === "consensus") {
    const votes = run.consensus(arm, t), layers = run.start.layers;
    painter = (token) => heatColour(votes[token] / layers);
    legend = [["heat", `core in 0 … ${layers} layers`], ...restOf(tokens, null)];
  } else if (view.mode === "scores") {
    const scores = run.scoresAt(arm, t, layer);
    if (scores) {
      const values = scores.values;
      const sorted = [...values].sort((x, y) => x - y);
      const top = sorted[Math.floor(sorted.length * 0.99)] || 1e-9;
      painter = (token) => heatColour(Math.sqrt(Math.min(1, values[token] / top)));
      legend = [["heat", `attention of ${scores.t === 0 ? "the last prompt token" : `step ${scores.t}`}, dark low, bright high (top 1 % ≥ ${(top * 100).toFixed(2)} %)`]];
    } else legend = [["plain", "No scores: tick “record attention” before a run."]];
  }
  overlay.selected = view.patch;
  overlay.draw(painter, marked);
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
  if (!overlay.lattice) { put($.patch, ""); return; }
  if (view.patch < 0) { put($.patch, "Click a patch to see in which layers it is core."); return; }
  const [row, col] = overlay.lattice.cell(view.patch);
  const names = [[], [], [], []];
  for (let layer = 0; layer < view.run.start.layers; layer++) names[view.run.classes(arm, t, layer)[view.patch]].push(layer);
  const words = SET_WORDS.filter(([kind]) => names[kind].length).map(([kind, word]) => `${word} in ${ranges(names[kind])}`);
  const spread = names[CORE].concat(names[SECONDARY]).filter((layer) => (view.run.spread(arm, layer) || [])[view.patch]).sort((a, b) => a - b);
  if (spread.length) words.push(`held by spread in ${ranges(spread)}`);
  put($.patch, `Patch row ${row + 1}, column ${col + 1} (token ${view.patch}), layers: ${words.join("; ")}`);
}

function drawThumbs() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, lattice = view.lattices[view.grid];
  const at = run.arms[arm].setsIndex(t);
  const begun = Boolean(run.arms[arm].prefill), key = `${view.id}/${arm}/${at}/${view.grid}/${begun}/${run.arms[arm].sets.length ? "" : "all"}`;
  const fresh = view.thumbKey !== key;
  view.thumbKey = key;
  [...$.thumbs.children].forEach((button, layer) => {
    if (fresh && lattice && begun) drawThumb(button.firstChild, lattice, run.classes(arm, t, layer));
    const core = view.patch >= 0 && run.classes(arm, t, layer)[view.patch] === CORE;
    const name = "avl-thumb" + (layer === view.layer ? " avl-chosen" : "") + (core ? " avl-holds" : "");
    if (button.className !== name) button.className = name;
    button.tabIndex = layer === view.layer ? 0 : -1;
    const pressed = String(layer === view.layer);
    if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
  });
}
