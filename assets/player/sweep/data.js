// A sweep as data: its events taken in, and what charts, the grid and the table say about it. No DOM.

import { byteUnit } from "../core/format.js";

/**
 * @typedef {Object} Row what one point gave; full attention's has point null
 * @property {number | null} point
 * @property {Record<string, number | null>} values
 * @property {string} label
 * @property {any} policy
 * @property {string} text
 * @property {number[]} tokens
 * @property {boolean} same
 * @property {number} identical
 * @property {number} stored_bytes
 * @property {number} read_bytes
 * @property {number} stored_share
 * @property {number} read_share
 * @property {number} ttft_ms
 * @property {number | null} median_ms
 * @property {[number, number | null][]} runs
 * @property {string[]} notes
 *
 * @typedef {{ name: string, label: string, unit: string, values: (number | null)[] }} Axis
 * @typedef {{ low: number, high: number, step: number, start: number | null }} Slider
 */

export class Sweep {
  constructor() {
    /** @type {any} */ this.start = null;
    /** @type {Map<number, Row>} */ this.rows = new Map(); // by point, full attention's at -1
    /** @type {{ point: number | null, tokens: number } | null} */ this.progress = null;
    /** @type {any} */ this.end = null;
    this.error = "";
    this.received = 0;
  }

  /** @param {any} event @returns {number | null} the point whose row changed, -1 for full attention's */
  push(event) {
    this.received++;
    if (event.kind === "sweep_start") this.start = event;
    else if (event.kind === "sweep_progress") this.progress = event;
    else if (event.kind === "sweep_end") this.end = event;
    else if (event.kind === "error") this.error = event.message;
    if (event.kind !== "sweep_point") return null;
    const at = event.point ?? -1;
    this.rows.set(at, event);
    return at;
  }

  get full() { return this.rows.get(-1) || null; }

  /** Rows of the points, in their order. */
  get points() { return [...this.rows.entries()].filter(([at]) => at >= 0).sort((a, b) => a[0] - b[0]).map(([, row]) => row); }

  /** @returns {Axis[]} */
  get axes() { return this.start ? this.start.axes : []; }
}

/**
 * The parameters of an arm of the settings that are worth naming: not a menu at its default, which only a link changes.
 * @param {any} catalog
 * @param {any} arm
 */
export function parametersOf(catalog, arm) {
  return Object.fromEntries(catalog[arm.policy].parameters.filter((/** @type {any} */ { key, choices, default: usual }) => !choices.length || arm[key] !== usual)
    .map((/** @type {any} */ { key }) => [key, arm[key]]));
}

/** Values in words: S=20, C=10. @param {Record<string, number | null>} values */
export function named(values) {
  return Object.entries(values).map(([name, value]) => `${name}=${value ?? "off"}`).join(", ");
}

/**
 * Curves over the one parameter of a sweep: points of full attention, then of what was swept.
 * @param {Sweep} sweep
 */
export function curves(sweep) {
  const [axis] = sweep.axes, { full } = sweep, rows = sweep.points.filter((row) => row.values[axis.name] !== null);
  const xs = (/** @type {Row[]} */ some) => some.map((row) => /** @type {number} */ (row.values[axis.name]));
  const all = /** @type {number[]} */ (axis.values.filter((value) => value !== null)), ends = all.length ? [Math.min(...all), Math.max(...all)] : [];
  const unit = byteUnit(full ? full.stored_bytes : Math.max(1, ...rows.map((row) => row.stored_bytes)));
  const same = rows.filter((row) => row.same), timed = rows.filter((row) => row.median_ms !== null);
  const level = (/** @type {number | null | undefined} */ y) => /** @type {[number[], number[]]} */ (y === null || y === undefined ? [[], []] : [ends, ends.map(() => y)]);
  return {
    unit: unit.name,
    full: level(full && full.stored_bytes / unit.size),
    stored: /** @type {[number[], number[]]} */ ([xs(rows), rows.map((row) => row.stored_bytes / unit.size)]),
    read: /** @type {[number[], number[]]} */ ([xs(rows), rows.map((row) => row.read_bytes / unit.size)]),
    same: /** @type {[number[], number[]]} */ ([xs(same), same.map((row) => row.stored_bytes / unit.size)]),
    fullMs: level(full && full.median_ms),
    ms: /** @type {[number[], number[]]} */ ([xs(timed), timed.map((row) => /** @type {number} */ (row.median_ms))]),
  };
}

/** What the grid of two parameters can show: shares 0 to 1. */
export const SHADES = {
  stored: (/** @type {Row} */ row) => row.stored_share,
  read: (/** @type {Row} */ row) => row.read_share,
  same: (/** @type {Row} */ row, /** @type {Row | null} */ full) => (row.same ? 1 : Math.min(0.99, row.identical / Math.max(1, full ? full.tokens.length : 1))),
};

/**
 * The grid of two parameters: rows are values of the first one.
 * @param {Axis[]} axes
 * @param {{ values: Record<string, number | null> }[]} found
 */
export function cellsOf([down, across], found) {
  const key = (/** @type {any} */ row, /** @type {any} */ col) => `${row}/${col}`;
  const places = new Map(found.map((one) => [key(one.values[down.name], one.values[across.name]), one]));
  return (/** @type {number} */ row, /** @type {number} */ col) => places.get(key(down.values[row], across.values[col])) || null;
}

/** Where values are in the grid, -1 where they are not. @param {Axis[]} axes @param {Record<string, number | null> | null} values @returns {[number, number]} */
export function placeOf([down, across], values) {
  return values ? [down.values.indexOf(values[down.name]), across.values.indexOf(values[across.name])] : [-1, -1];
}

const STEPS = [1, 2, 5, 10, 20, 25, 50];

/**
 * A range to begin with: about so many values, round ones.
 * @param {Slider} slider
 * @param {number} count
 */
export function range({ low, high, step, start }, count) {
  // a parameter that starts low is worth a look near its start: K up to 12, not to 32
  const top = start !== null && start * 4 < high - low ? Math.max(start * 4, low + step) : high;
  if (step > 1) return { from: low, to: low + Math.floor((top - low) / step) * step, step };
  const by = STEPS.find((one) => (top - low) / one <= count) || Math.ceil((top - low) / count);
  const from = Math.ceil(low / by) * by;
  return { from: by === 1 ? low : from, to: Math.floor(top / by) * by, step: by };
}

/** The numbers of a field such as "1, 8, 32"; null for what is none. @param {string} text */
export function listOfNumbers(text) {
  return text.split(/[\s,;]+/).filter(Boolean).map((one) => (isFinite(Number(one)) ? Number(one) : null));
}

/** @param {string} text @param {number} most characters */
export function shortened(text, most) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1).trimEnd()}…` : line;
}

const BEFORE = 24; // characters before the first difference, for its context

/**
 * An answer shortened to what matters: from a little before its first difference to another one.
 * @param {string} text
 * @param {string} other
 * @param {number} most characters
 */
export function fromDifference(text, other, most) {
  let same = 0;
  while (same < text.length && text[same] === other[same]) same++;
  if (text.length <= most || same <= BEFORE) return shortened(text, most);
  const space = text.indexOf(" ", same - BEFORE), from = space >= 0 && space < same ? space : same - BEFORE;
  return shortened(`…${text.slice(from)}`, most);
}
