// One policy of the settings: its menu, the sliders of its parameters, presets, and what it is predicted to store and read.

import { h, put } from "../core/dom.js";
import { DASH, formatPercent } from "../core/format.js";
import { TEXT } from "../text.js";

/**
 * @typedef {Object} Editor what a policy's box may do
 * @property {any} catalog policies by name: title, parameters, presets, budget
 * @property {any} about
 * @property {(index: number, policy: string) => void} replace
 * @property {(index: number, key: string, value: number | null) => void} set
 * @property {(index: number, params: any) => void} assign
 * @property {(index: number) => void} remove
 * @property {(arm: any) => Promise<any>} match another policy's size; null where the arm is gone
 * @property {(arm: any, open: boolean) => void} fold
 */

/** @param {any} catalog @param {string} name */
export function defaults(catalog, name) {
  /** @type {any} */
  const values = { policy: name };
  for (const parameter of catalog[name].parameters) values[parameter.key] = parameter.default;
  return values;
}

/** The arm whose size another one is offered to match: the first A-VL, else the first with a budget; -1 where there is none. @param {any[]} arms @param {any} catalog @param {number} index */
export function matchOf(arms, catalog, index) {
  const budgeted = (/** @type {any} */ arm, /** @type {number} */ at) => at !== index && Boolean(catalog[arm.policy].budget);
  if (!catalog[arms[index].policy].budget) return -1;
  const adaptive = arms.findIndex((arm, at) => budgeted(arm, at) && arm.policy === "AVL");
  return adaptive >= 0 ? adaptive : arms.findIndex(budgeted);
}

/** A policy's title; its number where several arms have it. @param {any[]} arms @param {any} catalog @param {number} index */
export function nameOf(arms, catalog, index) {
  const { policy } = arms[index];
  return arms.filter((arm) => arm.policy === policy).length > 1 ? TEXT.policyNumber(index + 1) : catalog[policy].title;
}

/** What is set, in one line; what is off is left out. @param {any} catalog @param {any} arm */
export function settingsInWords(catalog, arm) {
  const shown = catalog[arm.policy].parameters.filter((/** @type {any} */ { key, choices, default: usual }) => arm[key] !== null && !(choices.length && arm[key] === usual));
  return shown.map((/** @type {any} */ { key }) => `${key} ${arm[key]}`).join(" · ");
}

/**
 * @param {Editor} editor
 * @param {any} arm its values, read at every redraw
 * @param {number} index
 * @param {{ many: boolean, open: boolean, match: string }} options many: among more than two, so that it can be removed and folded; match: name of the arm whose size it can get
 */
export function armBox(editor, arm, index, { many, open, match }) {
  const { catalog, about } = editor, { parameters, presets } = catalog[arm.policy], side = many ? "avl-choice-more" : index ? "avl-choice-b" : "";
  const select = h("select", { class: "avl-select", "aria-label": TEXT.policyOfArm(index + 1) },
    Object.entries(catalog).map(([name, entry]) => h("option", { value: name, selected: name === arm.policy }, entry.title)));
  select.addEventListener("change", () => editor.replace(index, select.value));
  const node = h("div", { class: `avl-panel avl-choice ${side}`, role: "group", "aria-label": TEXT.policy(index + 1) },
    h("div", { class: "avl-choice-head" }, h("b", {}, TEXT.policy(index + 1)), select,
      many ? h("button", { type: "button", class: "avl-btn avl-small", title: TEXT.removePolicy(index + 1), "aria-label": TEXT.removePolicy(index + 1), onclick: () => editor.remove(index) }, "×") : null));
  /** @type {(() => void)[]} */ const draws = [];
  const shown = parameters.filter((/** @type {any} */ one) => !one.choices.length || arm[one.key] !== one.default);
  const body = [h("div", { class: "avl-params" }, shown.map((/** @type {any} */ parameter) => {
    if (parameter.choices.length) return h("p", { class: "avl-note", title: parameter.help }, `${parameter.key} = ${arm[parameter.key]}`); // only a link sets it
    const row = parameterRow(editor, arm, index, parameter);
    draws.push(row.draw);
    return row.node;
  }))];
  if (presets.length) {
    const menu = presetMenu(editor, arm, index, presets, about);
    body.push(menu.node);
    draws.push(menu.draw);
  }
  const predicted = h("p", { class: "avl-predicted" });
  const equal = match ? h("button", { type: "button", class: "avl-btn avl-equal", title: TEXT.matchSizeTitle(match), onclick: async () => {
    const values = await editor.match(arm);
    if (values && values.error) put(predicted, values.error);
  } }, TEXT.matchSize(match)) : null;
  if (many && parameters.length) {
    const words = h("span", {}), fold = h("details", { class: "avl-arm-fold", open }, h("summary", {}, words), body, equal);
    fold.addEventListener("toggle", () => editor.fold(arm, fold.open));
    draws.push(() => put(words, settingsInWords(catalog, arm)));
    node.append(fold, predicted);
  } else node.append(...body, predicted, ...(equal ? [equal] : []));
  return {
    node,
    redraw() { for (const draw of draws) draw(); },
    /** @param {any} found the server's prediction, null while there is none @param {number} full bytes of full attention */
    predict(found, full) {
      if (found && found.error) put(predicted, found.error);
      else if (found) predicted.replaceChildren(TEXT.predicted + TEXT.predictedStores, h("b", {}, formatPercent(found.stored)), TEXT.predictedReads, h("b", {}, formatPercent(found.read)), TEXT.predictedOf(full));
      else put(predicted, TEXT.predicted + DASH);
    },
  };
}

/** @param {Editor} editor @param {any} arm @param {number} index @param {any} parameter */
function parameterRow(editor, arm, index, parameter) {
  const { key, low, high, step, off, help, label, unit, start } = parameter, id = `avl-arm${index}-${key}`;
  const range = h("input", { type: "range", class: "avl-range", id, min: String(low), max: String(high), step: String(step), title: help }), output = h("output", { for: id });
  const box = off ? h("input", { type: "checkbox", "aria-label": `${key} on` }) : null;
  const node = h("div", { class: "avl-param", title: help }, h("label", { for: id }, h("b", {}, key.length === 1 ? key : ""), " ", h("span", {}, label)), range, output,
    box ? h("label", { class: "avl-toggle", title: TEXT.offTitle }, box, TEXT.on) : h("span"));
  range.addEventListener("input", () => { range.dataset.kept = "1"; editor.set(index, key, Number(range.value)); });
  if (box) box.addEventListener("change", () => editor.set(index, key, box.checked ? Number(range.value) : null));
  const draw = () => {
    const value = arm[key];
    if (value !== null) range.value = value;
    else if (!range.dataset.kept) range.value = start;
    node.classList.toggle("avl-off", value === null);
    put(output, value === null ? TEXT.off : `${value} ${value === 1 ? unit.replace(/s$/, "") : unit}`);
    if (box) box.checked = value !== null;
  };
  return { node, draw };
}

/** @param {Editor} editor @param {any} arm @param {number} index @param {any[]} groups @param {any} about */
function presetMenu(editor, arm, index, groups, about) {
  const rows = groups.flatMap((group) => group.rows), value = (/** @type {any} */ row) => String(rows.indexOf(row));
  const node = h("select", { class: "avl-select avl-preset", "aria-label": TEXT.presets },
    h("option", { value: "" }, about.bundled ? TEXT.presetsReal : TEXT.presets),
    groups.map((group) => h("optgroup", { label: group.title }, group.rows.map((/** @type {any} */ row) => h("option", { value: value(row) }, row.label)))));
  node.addEventListener("change", () => { if (node.value !== "") editor.assign(index, rows[Number(node.value)].params); });
  const matches = (/** @type {any} */ row) => Object.entries(row.params).every(([key, one]) => arm[key] === one);
  return {
    node,
    // several models share a row: name the one that is loaded, and none where none of them is
    draw() {
      const own = rows.findIndex((row) => row.model === about.preset && matches(row));
      node.value = own >= 0 ? String(own) : node.value !== "" && matches(rows[Number(node.value)]) ? node.value : "";
    },
  };
}

/**
 * How many rows of the caches fit into the free memory: in a race all arms hold theirs at once. Agreement feeds one row more through full
 * attention afterwards, alone.
 * @param {any} settings
 * @param {number[]} peaks bytes a row of each arm
 * @param {number} reference bytes a row of full attention
 * @param {number} free
 */
export function fitting(settings, peaks, reference, free) {
  const row = settings.mode === "isolated" ? Math.max(...peaks) : peaks.reduce((a, b) => a + b, 0);
  if (settings.agreement && reference > free) return { row: Math.max(row, reference), rows: 0 };
  return { row, rows: Math.floor(free / row) };
}
