// The picture with its tokens: arm, view, layer, patch, zoom, and small pictures of all layers.

import { h, mark, put, show } from "../core/dom.js";
import { ranges } from "../core/format.js";
import { Atlas } from "../charts/atlas.js";
import { Legend } from "../charts/legend.js";
import { Overlay } from "../charts/overlay.js";
import { moved, zoomed } from "../charts/zoom.js";
import { shortLabel } from "../labels.js";
import { paintingOf } from "../painting.js";
import { shownArms, sideOf } from "../state.js";
import { CORE, MINOR, PRUNED, SECONDARY } from "../trace/run.js";
import { TEXT } from "../text.js";

/** @typedef {Readonly<import("../state.js").State>} State */
/** @typedef {import("../trace/run.js").Run} Run */

/** @type {import("../core/panels.js").Panel} */
export const tokens = {
  name: "tokens",
  label: "Image tokens",
  help: TEXT.tokensHelp,
  column: "left",
  html: `<div class="avl-head" data-id="overlayHead"><h2>${TEXT.tokens}</h2></div>
<div class="avl-tools">
  <div class="avl-segments" role="radiogroup" aria-label="${TEXT.policyShown}" data-id="focus"></div>
  <button type="button" class="avl-btn" data-id="both" aria-pressed="false" title="${TEXT.bothTitle}">${TEXT.both}</button>
  <select class="avl-select" data-id="view" aria-label="${TEXT.overlayShows}"></select>
  <select class="avl-select" data-id="grid" aria-label="${TEXT.gridShown}" hidden></select>
  <button type="button" class="avl-btn" data-id="zoom" hidden></button>
</div>
<p class="avl-note" data-id="crop" hidden></p>
<div class="avl-stages" data-id="stages">
  <figure class="avl-figure"><figcaption class="avl-note" data-id="captionA" hidden></figcaption>
    <div class="avl-stage"><canvas data-id="overlay" role="img" aria-label="${TEXT.pictureLabel}"></canvas>
      <p class="avl-empty" data-id="emptyPicture">${TEXT.emptyPicture}</p></div>
    <div class="avl-legend" data-id="legend"></div></figure>
  <figure class="avl-figure" data-id="second" hidden><figcaption class="avl-note" data-id="captionB"></figcaption>
    <div class="avl-stage"><canvas data-id="overlayB" role="img" aria-label="${TEXT.pictureLabelB}"></canvas></div>
    <div class="avl-legend" data-id="legendB"></div></figure>
</div>
<div class="avl-tools avl-zoom">
  <label for="avl-opacity">${TEXT.opacity}</label>
  <input type="range" id="avl-opacity" class="avl-range" data-id="opacity" min="0" max="100" value="100" step="5">
  <button type="button" class="avl-btn" data-id="zoomOut" title="${TEXT.zoomOut}" aria-label="${TEXT.zoomOut}">−</button>
  <button type="button" class="avl-btn" data-id="zoomIn" title="${TEXT.zoomIn}" aria-label="${TEXT.zoomIn}">+</button>
  <button type="button" class="avl-btn" data-id="zoomReset" hidden>${TEXT.zoomReset}</button>
</div>
<div class="avl-slider">
  <label for="avl-layer">${TEXT.layer}</label>
  <input type="range" id="avl-layer" class="avl-range" data-id="layer" min="0" max="0" value="0" step="1">
  <output data-id="layerName"></output>
</div>
<p class="avl-note" data-id="patch"></p>
<div class="avl-thumbs" data-id="thumbs"></div>`,
  on: ["run", "opened", "complete", "ts", "pair", "focus", "both", "layer", "mode", "opacity", "word", "grid", "patch", "whole", "region", "theme", "width"],
  mount({ node, parts: $, store, tools }) {
    node.hidden = true;
    const overlays = [new Overlay($.overlay), new Overlay($.overlayB)], legends = [new Legend($.legend), new Legend($.legendB)];
    tools.overlay = overlays[0];
    tools.viewAsPng = () => new Promise((resolve) => $.overlay.toBlob(resolve));
    connect($, store, tools, overlays);
    const atlas = new Atlas(h("canvas", { class: "avl-atlas", "aria-hidden": "true" }));
    let opened = -1, shape = "", thumbs = "";
    return {
      update() {
        const { state } = store, { run } = state;
        show(node, Boolean(run && run.start) && !(state.complete === state.opened && run && run.last < 0));
        if (!run || !run.start || node.hidden) return;
        if (opened !== state.opened) {
          opened = state.opened;
          thumbs = shape = "";
        }
        const now = [opened, state.grid, state.whole, state.both, state.pair, state.width].join("/");
        if (shape !== now) {
          shape = now;
          thumbs = "";
          drawTools($, state, tools); // which sets how wide the panel is
          buildThumbs($, run, state, tools, atlas);
          load($, state, overlays, () => store.touch("region"));
        }
        drawPictures(state, overlays, legends, tools.measures);
        drawControls($, state);
        thumbs = drawThumbs($, state, thumbs, atlas);
      },
    };
  },
};

/** @param {Record<string, any>} $ @param {import("../playhead.js").PlayerStore} store @param {import("../player.js").Tools} tools @param {Overlay[]} overlays */
function connect($, store, tools, overlays) {
  const set = store.set.bind(store);
  $.view.append(...Object.entries(TEXT.modes).map(([value, text]) => h("option", { value }, text)));
  $.view.addEventListener("change", () => set({ mode: $.view.value }));
  $.grid.addEventListener("change", () => set({ grid: Number($.grid.value), patch: -1, region: null }));
  $.zoom.addEventListener("click", () => set({ whole: !store.state.whole, region: null }));
  $.both.addEventListener("click", () => set({ both: !store.state.both }));
  $.opacity.addEventListener("input", () => set({ opacity: Number($.opacity.value) / 100 }));
  $.layer.addEventListener("input", () => tools.look({ layer: Number($.layer.value) }));
  const zoom = (/** @type {number} */ factor, /** @type {[number, number] | null} */ point) => {
    const frame = overlays[0].framed, [left, top, right, bottom] = store.state.region || frame;
    set({ region: zoomed(store.state.region, frame, factor, point || [(left + right) / 2, (top + bottom) / 2]) });
  };
  $.zoomIn.addEventListener("click", () => zoom(1.6, null));
  $.zoomOut.addEventListener("click", () => zoom(1 / 1.6, null));
  $.zoomReset.addEventListener("click", () => set({ region: null }));
  for (const overlay of overlays) {
    const canvas = overlay.canvas;
    /** @type {{ x: number, y: number, moved: boolean } | null} */ let held = null;
    const at = (/** @type {MouseEvent} */ event) => { const box = canvas.getBoundingClientRect(); return /** @type {[number, number]} */ ([event.clientX - box.left, event.clientY - box.top]); };
    canvas.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
      if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), overlay.pointAt(...at(event)));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      held = { x: event.clientX, y: event.clientY, moved: false };
      if (store.state.region) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      const { region } = store.state;
      if (!held || !region || !event.buttons) return;
      const dx = event.clientX - held.x, dy = event.clientY - held.y;
      if (!held.moved && Math.hypot(dx, dy) < 4) return;
      const scale = (region[2] - region[0]) / canvas.clientWidth;
      held = { x: event.clientX, y: event.clientY, moved: true };
      set({ region: moved(region, overlay.framed, -dx * scale, -dy * scale) });
    });
    canvas.addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (held && held.moved) return;
      const { run, patch } = store.state, token = run && run.start ? overlay.tokenAt(...at(event)) : -1;
      set({ patch: token === patch ? -1 : token });
    });
  }
  // one stop for the keyboard, arrows within: a model has up to 40 layers
  $.thumbs.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const { run, layer } = store.state;
    if (!run || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = run.start.layers - 1, row = getComputedStyle($.thumbs).gridTemplateColumns.split(" ").length;
    const to = /** @type {Record<string, number>} */ ({ ArrowLeft: layer - 1, ArrowRight: layer + 1, ArrowUp: layer - row, ArrowDown: layer + row, Home: 0, End: last })[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.max(0, Math.min(last, to));
    tools.look({ layer: next });
    $.thumbs.children[next].focus();
  });
}

/** The part of a picture under a lattice, and its share of the picture. @param {import("../trace/grid.js").Lattice | undefined} lattice @param {number} width @param {number} height */
function seenPart(lattice, width, height) {
  const [left, top, right, bottom] = lattice ? lattice.box : [0, 0, width, height];
  /** @type {[number, number, number, number]} */
  const box = [Math.max(0, left), Math.max(0, top), Math.min(width, right), Math.min(height, bottom)];
  return { box, share: ((box[2] - box[0]) * (box[3] - box[1])) / (width * height) };
}

/** @param {Record<string, any>} $ @param {State} state @param {Overlay[]} overlays @param {() => void} arrived */
function load($, state, overlays, arrived) {
  const run = /** @type {Run} */ (state.run), lattice = state.lattices[state.grid], which = lattice ? lattice.image : 0;
  const [width, height] = run.start.images[which] || [1, 1], source = run.images[which];
  show($.emptyPicture, false);
  const { box, share } = seenPart(lattice, width, height), cropped = share < 0.95;
  show($.zoom, cropped);
  put($.zoom, state.whole ? TEXT.seenPart : TEXT.wholePicture);
  show($.crop, cropped);
  put($.crop, cropped ? TEXT.cropped(1 - share) : "");
  for (const overlay of overlays) {
    overlay.lattice = lattice || null;
    overlay.frame = cropped && !state.whole ? box : null;
    overlay.setPicture(overlay.picture && overlay.picture.avlSource === source ? overlay.picture : null, width, height);
  }
  if (!source || !/^data:image\/(png|webp|jpeg);base64,/.test(source) || overlays[0].picture) return;
  const image = /** @type {any} */ (new Image());
  image.avlSource = source;
  image.onload = () => {
    for (const overlay of overlays) if (overlay.lattice === (lattice || null)) overlay.setPicture(image, width, height);
    arrived();
  };
  image.src = source;
}

/** @param {Record<string, any>} $ @param {State} state @param {import("../player.js").Tools} tools */
function drawTools($, state, tools) {
  const run = /** @type {Run} */ (state.run), { lattices } = state, pictures = run.start.images.length, arms = shownArms(state);
  $.focus.replaceChildren(...arms.map((arm) => h("button", {
    type: "button", role: "radio", class: `avl-segment avl-arm-${sideOf(state, arm.index)}`, "data-arm": String(arm.index), onclick: () => tools.look({ focus: arm.index }),
  }, h("i", { class: "avl-dot" }), shortLabel(run, arm))));
  $.grid.replaceChildren(...lattices.map((lattice, index) => {
    const name = TEXT.gridName(lattice.rows, lattice.cols);
    const part = lattice.cut ? TEXT.tilesOf(lattice.down, lattice.across) : lattice.tile.newline ? TEXT.tiles : TEXT.wholeGrid;
    return h("option", { value: String(index) }, lattices.length === 1 ? name : TEXT.gridPart(pictures > 1 ? lattice.image + 1 : 0, part, name));
  }));
  $.grid.value = String(state.grid);
  show($.grid, lattices.length > 1);
  const both = state.both && arms.length > 1;
  show($.both, arms.length > 1);
  $.both.setAttribute("aria-pressed", String(both));
  show($.second, both);
  show($.captionA, both);
  $.stages.classList.toggle("avl-side-by-side", both);
  $.stages.closest(".avl-columns").classList.toggle("avl-one-column", both);
  if (both) {
    put($.captionA, shortLabel(run, arms[0]));
    put($.captionB, shortLabel(run, arms[1]));
  }
}

/** @param {State} state @param {Overlay[]} overlays @param {Legend[]} legends @param {{ overlayMs: number[] }} measures */
function drawPictures(state, overlays, legends, measures) {
  const both = state.both && shownArms(state).length > 1, arms = both ? state.pair : [state.focus];
  arms.forEach((arm, place) => {
    const overlay = overlays[place], painting = paintingOf(state, arm);
    overlay.selected = state.patch;
    overlay.zoomTo(state.region);
    const key = [painting.key, arm, state.opened, state.layer, state.grid, state.patch, state.opacity, overlay.version].join("/");
    if (overlay.key !== key) {
      overlay.key = key;
      if (painting.heat) overlay.drawHeat(painting.heat, state.opacity); else overlay.draw(painting.paint, painting.marked, state.opacity);
      if (!place) measures.overlayMs.push(overlay.drawMs);
    }
    const touch = state.region ? "none" : "";
    if (overlay.canvas.style.touchAction !== touch) overlay.canvas.style.touchAction = touch;
    legends[place].draw(painting.legend);
  });
  if (measures.overlayMs.length > 400) measures.overlayMs.shift();
}

/** @param {Record<string, any>} $ @param {State} state */
function drawControls($, state) {
  const { layers } = /** @type {Run} */ (state.run).start, { layer } = state;
  for (const segment of $.focus.children) mark(segment, "aria-checked", String(Number(segment.dataset.arm) === state.focus));
  if (Number($.layer.max) !== layers - 1) $.layer.max = String(layers - 1);
  if (Number($.layer.value) !== layer) $.layer.value = String(layer);
  if ($.view.value !== state.mode) $.view.value = state.mode;
  put($.layerName, TEXT.layerOf(layer, layers));
  show($.zoomReset, state.region !== null);
  drawPatch($.patch, state);
}

/** @param {any} node @param {State} state */
function drawPatch(node, state) {
  const run = /** @type {Run} */ (state.run), { focus: arm, patch, lattices, grid } = state, lattice = lattices[grid], t = state.ts[arm] || 0;
  if (!lattice) { put(node, ""); return; }
  const cell = patch < 0 ? null : lattice.cell(patch);
  if (!cell) { put(node, run.arms.some((one) => one.scores.length) ? TEXT.clickPatch : TEXT.clickPatchOnly); return; }
  /** @type {number[][]} */ const found = [[], [], [], []];
  for (let layer = 0; layer < run.start.layers; layer++) found[run.classes(arm, t, layer)[patch]].push(layer);
  const words = [CORE, SECONDARY, MINOR, PRUNED].filter((kind) => found[kind].length).map((kind) => TEXT.patchLayers(TEXT.setWords[kind], ranges(found[kind])));
  const spread = found[CORE].concat(found[SECONDARY]).filter((layer) => (run.spread(arm, layer) || [])[patch]).sort((a, b) => a - b);
  if (spread.length) words.push(TEXT.patchSpread(ranges(spread)));
  put(node, TEXT.patch(cell[0] + 1, cell[1] + 1, patch, words.join("; ")));
}

/** @param {Record<string, any>} $ @param {Run} run @param {State} state @param {import("../player.js").Tools} tools @param {Atlas} atlas */
function buildThumbs($, run, state, tools, atlas) {
  const lattice = state.lattices[state.grid]; // tokens without a place make no picture
  const boxes = Array.from({ length: run.start.layers }, () => h("i", lattice ? { style: `aspect-ratio: ${lattice.cols} / ${lattice.rows}` } : {}));
  delete $.thumbs.dataset.chosen;
  $.thumbs.replaceChildren(...boxes.map((box, layer) => h("button", {
    type: "button", class: "avl-thumb", "aria-label": TEXT.thumb(layer), tabindex: "-1", onclick: () => tools.look({ layer }),
  }, box, h("span", {}, String(layer)))), atlas.canvas);
  atlas.measure(lattice ? boxes : []);
}

/** @param {Record<string, any>} $ @param {State} state @param {string} before what was drawn @param {Atlas} atlas @returns {string} */
function drawThumbs($, state, before, atlas) {
  const run = /** @type {Run} */ (state.run), { focus: index, layer: chosen, patch, grid } = state, arm = run.arms[index], t = state.ts[index] || 0, lattice = state.lattices[grid];
  const key = `${index}/${arm.setsIndex(t)}/${Boolean(arm.prefill)}/${arm.sets.length ? "" : "all"}`;
  if (before !== key && lattice && arm.prefill) atlas.draw(lattice, (layer) => run.classes(index, t, layer));
  const chosenNow = `${key}/${chosen}/${patch}`;
  if ($.thumbs.dataset.chosen === chosenNow) return key;
  $.thumbs.dataset.chosen = chosenNow;
  for (const button of $.thumbs.querySelectorAll("button")) {
    const layer = Number(button.lastChild.textContent), core = patch >= 0 && run.classes(index, t, layer)[patch] === CORE;
    const name = "avl-thumb" + (layer === chosen ? " avl-chosen" : "") + (core ? " avl-holds" : "");
    if (button.className !== name) button.className = name;
    const tab = layer === chosen ? 0 : -1, pressed = String(layer === chosen);
    if (button.tabIndex !== tab) button.tabIndex = tab;
    if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
  }
  return key;
}
