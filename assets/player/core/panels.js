// Panels: each is one file with its markup, its help and what it draws. One that fails says so and takes no other along.

import { h, partsOf } from "./dom.js";
import { TEXT } from "../text.js";

/**
 * @typedef {Object} Panel
 * @property {string} name
 * @property {string} html constant markup; parts are found by data-id
 * @property {string} [label] for screen readers
 * @property {string} [help] behind a "?" in the first head
 * @property {string} [className]
 * @property {"left" | "right"} [column] side by side with its neighbors
 * @property {boolean} [lazy] drawn only while it is in sight
 * @property {number} [far] it stands far below: its usual height, pixels, until somebody comes near and it is laid out
 * @property {string[]} on keys of the state that it draws
 * @property {(context: Context) => { update?: (changed: Set<string>) => void } | void} mount
 *
 * @typedef {Object} Context
 * @property {HTMLElement} node
 * @property {Record<string, any>} parts
 * @property {import("./store.js").Store<import("../state.js").State>} store
 * @property {import("../player.js").Tools} tools
 */

/**
 * Build the panels below a root, in order, and keep them up to date.
 * @param {HTMLElement} root
 * @param {Panel[]} panels
 * @param {Context["store"]} store
 * @param {Context["tools"]} tools
 * @returns {Record<string, any>} all parts, by data-id
 */
export function mountPanels(root, panels, store, tools) {
  /** @type {Record<string, any>} */
  const all = {};
  /** @type {Record<string, HTMLElement> | null} */ let columns = null;
  /** @type {MutationObserver | null} */ let shown = null;
  for (const panel of panels) {
    const node = h("section", { class: `${panel.className ?? "avl-panel"}${panel.far ? " avl-far" : ""}`, "data-panel": panel.name, "aria-label": panel.label });
    if (panel.far) node.style.containIntrinsicHeight = `auto ${panel.far}px`;
    node.innerHTML = panel.html;
    if (!panel.column) {
      columns = null;
      root.append(node);
    } else {
      if (!columns) {
        columns = { left: h("div", { class: "avl-column" }), right: h("div", { class: "avl-column" }) };
        const both = h("div", { class: "avl-columns" }, columns.left, columns.right), { left, right } = columns;
        // without :has(), which the browser would ask for whatever changes in them
        shown = new MutationObserver(() => both.classList.toggle("avl-nothing", [...left.children, ...right.children].every((/** @type {any} */ one) => one.hidden)));
        root.append(both);
      }
      columns[panel.column].append(node);
      if (shown) shown.observe(node, { attributes: true, attributeFilter: ["hidden"] });
    }
    const parts = partsOf(node);
    Object.assign(all, parts);
    if (panel.help) addHelp(node, panel.help);
    run(panel, { node, parts, store, tools });
  }
  return all;
}

/** @param {Panel} panel @param {Context} context */
function run(panel, context) {
  const { node, store } = context;
  /** @type {any} */
  let instance = null;
  /** @param {() => void} work */
  const guarded = (work) => {
    try { work(); } catch (error) {
      console.error(error);
      instance = null;
      node.hidden = false;
      node.replaceChildren(h("p", { class: "avl-alert", role: "alert" }, TEXT.panelFailed(panel.label || panel.name, String(/** @type {Error} */ (error).message || error))));
    }
  };
  guarded(() => { instance = panel.mount(context) || {}; });
  if (!instance || !instance.update) return;
  const update = (/** @type {Set<string>} */ changed) => guarded(() => instance && instance.update(changed));
  const missed = new Set();
  let seen = !panel.lazy;
  if (panel.lazy) {
    node.hidden = true; // until it has something to draw: what is hidden is never seen
    new IntersectionObserver((entries) => {
      seen = entries[entries.length - 1].isIntersecting;
      if (!seen || !missed.size) return;
      const changed = new Set(missed);
      missed.clear();
      update(changed);
    }, { rootMargin: "200px" }).observe(node);
  }
  store.subscribe(/** @type {any} */ (panel.on), (changed) => {
    if (seen || node.hidden) { update(/** @type {any} */ (changed)); return; }
    for (const key of changed) missed.add(key);
  });
}

/** @param {HTMLElement} node @param {string} text */
function addHelp(node, text) {
  const head = node.querySelector(".avl-head"), title = head && head.querySelector("h2, h3");
  if (!head || !title) return;
  const words = h("p", { class: "avl-help-text", hidden: true }, text);
  const button = h("button", { type: "button", class: "avl-help", "aria-expanded": "false", "aria-label": TEXT.helpLabel(title.textContent || "") }, "?");
  button.addEventListener("click", () => {
    words.hidden = !words.hidden;
    button.setAttribute("aria-expanded", String(!words.hidden));
  });
  head.append(button);
  head.after(words);
}

/**
 * Fill a <details> with a table once it is opened.
 * @param {any} details
 * @param {() => { head: string[], rows: [any, any[]][] } | null} source
 * @param {(value: number) => string} format
 */
export function tableWhenOpen(details, source, format) {
  details.addEventListener("toggle", () => {
    const found = details.open ? source() : null;
    details.querySelector("div").replaceChildren(found ? tableElement(found, format) : "");
  });
}

/** @param {{ head: string[], rows: [any, any[]][] }} table @param {(value: number) => string} format */
export function tableElement({ head, rows }, format) {
  return h("table", {}, h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map(([x, values]) => h("tr", {}, h("th", { scope: "row" }, String(x)),
      values.map((value) => h("td", {}, typeof value === "number" ? format(value) : value ?? "–"))))));
}

/**
 * Keys of a chart's lines.
 * @param {any} node
 * @param {{ name: string, color: string, dash?: string, markers?: boolean }[]} lines
 */
export function drawKeys(node, lines) {
  const words = JSON.stringify(lines.map(({ name, color, dash, markers }) => [name, color, dash, markers]));
  if (node.dataset.words === words) return;
  node.dataset.words = words;
  node.replaceChildren(...lines.map((line) => h("span", { class: "avl-key" },
    h("i", { class: `avl-swatch ${line.markers ? "avl-swatch-marker" : line.dash ? `avl-swatch-${line.dash}` : ""}`, style: `--swatch: var(${line.color})` }), line.name)));
}

/** @param {any} button @param {() => any} work @param {(error: unknown) => void} failed */
export function busy(button, work, failed) {
  button.disabled = true;
  Promise.resolve().then(work).catch(failed).finally(() => { button.disabled = false; });
}

