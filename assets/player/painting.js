// What lies over the picture in each view: a style per token and the legend that says what it means.

import { heatColor } from "./charts/colors.js";
import { quoted } from "./labels.js";
import { CORE, MINOR, PRUNED, SECONDARY } from "./trace/run.js";
import { lineOf, missedIn } from "./trace/turns.js";
import { TEXT } from "./text.js";

/**
 * @typedef {Object} Painting
 * @property {((token: number) => string | null) | null} paint
 * @property {((token: number) => unknown) | null} marked
 * @property {((token: number) => number) | null} heat a smooth one, instead of both
 * @property {[string, string][]} legend [mark, words]; "plain" and "rest" have no mark, "unsaid" only takes room
 * @property {string} [key] differs where what is drawn does, for one arm, layer and grid
 *
 * @typedef {Readonly<import("./state.js").State>} State
 * @typedef {import("./trace/run.js").Run} Run
 */

/** @type {Painting} */
const NOTHING = { paint: null, marked: null, heat: null, legend: [] };
const STYLES = ["minor", "secondary", "core", "pruned"];

/** What an arm's picture shows now. @param {State} state @param {number} arm @returns {Painting} */
export function paintingOf(state, arm) {
  const run = /** @type {Run} */ (state.run), { mode, word } = state, t = state.ts[arm] || 0;
  const one = run.arms[arm];
  if (!one.prefill) return { ...NOTHING, key: "none", legend: [["plain", TEXT.nothingStored]] };
  if (word && one.scores.length) return { ...heat(state, arm, word.t), key: `heat/${one.scoresIndex(word.t)}` };
  if (mode === "heat") return { ...heat(state, arm, t), key: `heat/${one.scoresIndex(t)}` };
  const painting = { sets, missed, drift, consensus, scores, plain: () => NOTHING }[mode](state, arm, t);
  return { ...painting, key: `${mode}/${mode === "missed" ? run.arms.map(({ sets: known }) => known.length > 0) : mode === "scores" ? one.scoresIndex(t) : one.setsIndex(t)}` };
}

/** Tokens of the grid that is drawn, or all image tokens where there is none to choose. @param {State} state @returns {number[]} */
function tokensOf({ lattices, grid, run }) {
  return lattices[grid] ? lattices[grid].tokens : Array.from({ length: /** @type {Run} */ (run).start.n_image }, (_, token) => token);
}

/** What the legend's numbers are part of: a line where a prompt has more image tokens than the grid that is drawn. @param {State} state @param {number[] | null} counts @returns {[string, string][]} */
function rest(state, counts) {
  const { lattices } = state;
  if (!lattices.length) return [["plain", TEXT.noPlace]];
  if (lattices.length < 2) return [];
  const drawn = TEXT.drawnOf(tokensOf(state).length, /** @type {Run} */ (state.run).start.n_image);
  if (!counts) return [["plain", drawn]];
  const all = [CORE, SECONDARY, MINOR, PRUNED].filter((kind) => counts[kind]).map((kind) => `${TEXT.setWords[kind]} ${counts[kind]}`).join(", ");
  return [["rest", drawn + TEXT.inAllGrids(lattices.length, all)]];
}

/** @param {State} state @param {number} arm @param {number} t @returns {Painting} */
function sets(state, arm, t) {
  const run = /** @type {Run} */ (state.run), { layer } = state, tokens = tokensOf(state);
  const classes = run.classes(arm, t, layer), all = run.counts(arm, t, layer), counts = [0, 0, 0, 0];
  for (const token of tokens) counts[classes[token]]++;
  if (all[CORE] === run.start.n_image) return { ...NOTHING, legend: [["plain", TEXT.allStored(run.start.n_image)], ...rest(state, null)] };
  /** @type {[string, string, number][]} */
  const lines = [["core", TEXT.legendCore(counts[CORE], !all[SECONDARY]), CORE], ["secondary", TEXT.legendSecondary(counts[SECONDARY]), SECONDARY],
    ["minor", TEXT.legendMinor(counts[MINOR]), MINOR], ["pruned", TEXT.legendDropped(counts[PRUNED]), PRUNED]];
  const legend = /** @type {[string, string][]} */ (lines.filter(([, , kind]) => counts[kind] > 0).map(([mark, words]) => [mark, words]));
  const spread = run.spread(arm, layer), held = (/** @type {number} */ token) => spread && spread[token] && (classes[token] === CORE || classes[token] === SECONDARY);
  if (spread) legend.push(["spread", TEXT.legendSpread(tokens.filter(held).length)]);
  legend.push(...rest(state, all));
  // it keeps its place at the steps in between, or all below would move up and down
  if (run.arms[arm].update.some(Boolean)) legend.push([run.arms[arm].update[t] ? "update" : "unsaid", TEXT.legendUpdate]);
  return { paint: (token) => STYLES[classes[token]], marked: spread ? held : null, heat: null, legend };
}

/** What the new question wants, and what of it the first one evicted. @param {State} state @param {number} arm @returns {Painting} */
function missed(state, arm) {
  const run = /** @type {Run} */ (state.run), line = lineOf(run, arm), { layer } = state;
  if (!line || !line.again) return { ...NOTHING, legend: [["plain", TEXT.turns.noRereadToShow]] };
  if (!line.again.prefill || !line.kept.prefill) return { ...NOTHING, legend: [["plain", TEXT.nothingStored]] };
  const { marks, wanted } = missedIn(run, line.kept, line.again, layer), counts = [0, 0, 0];
  if (wanted === run.start.n_image) return { ...NOTHING, legend: [["plain", TEXT.allStored(wanted)], ...rest(state, null)] };
  for (const token of tokensOf(state)) counts[marks[token]]++;
  return {
    ...NOTHING, paint: (token) => [null, "core", "missed"][marks[token]],
    legend: [["missed", TEXT.turns.legendMissed(counts[2])], ["core", TEXT.turns.legendHeld(counts[1])], ...rest(state, null)],
  };
}

/** @param {State} state @param {number} arm @param {number} t @returns {Painting} */
function drift(state, arm, t) {
  const run = /** @type {Run} */ (state.run), change = run.drift(arm, t, state.layer), classes = run.classes(arm, t, state.layer);
  let gained = 0, lost = 0;
  for (const token of tokensOf(state)) { gained += Number(change[token] > 0); lost += Number(change[token] < 0); }
  return {
    ...NOTHING, paint: (token) => (change[token] > 0 ? "gained" : change[token] < 0 ? "lost" : classes[token] === CORE ? null : "dim"),
    legend: [["gained", TEXT.gained(gained)], ["lost", TEXT.lostTokens(lost)], ["plain", TEXT.stayed], ...rest(state, null)],
  };
}

/** @param {State} state @param {number} arm @param {number} t @returns {Painting} */
function consensus(state, arm, t) {
  const run = /** @type {Run} */ (state.run), votes = run.consensus(arm, t), { layers } = run.start;
  return { ...NOTHING, paint: (token) => heatColor(votes[token] / layers), legend: [["heat", TEXT.coreIn(layers)], ...rest(state, null)] };
}

/** The value that the brightest 1 % reach, of the tokens that are told. @param {Float32Array} values */
function brightest(values) {
  const sorted = values.filter((value) => value >= 0).sort();
  return sorted[Math.floor(sorted.length * 0.99)] || 1e-9;
}

/** @param {State} state @param {number} arm @param {number} t @returns {Painting} */
function scores(state, arm, t) {
  const found = /** @type {Run} */ (state.run).scoresAt(arm, t, state.layer);
  if (!found) return { ...NOTHING, legend: [["plain", TEXT.noScores]] };
  const { values, rest: others } = found, top = brightest(values), told = values.filter((value) => value >= 0).length;
  /** @type {[string, string][]} */
  const legend = [["heat", TEXT.scoreLegend(found.t, top)]];
  if (told < values.length) legend.push(["plain", TEXT.restLegend(told, others || 0)]);
  return { ...NOTHING, paint: (token) => (values[token] >= 0 ? heatColor(Math.sqrt(Math.min(1, values[token] / top))) : "dim"), legend };
}

/** @param {State} state @param {number} arm @param {number} t @returns {Painting} */
function heat(state, arm, t) {
  const run = /** @type {Run} */ (state.run), found = run.scoresAt(arm, t, -1);
  if (!found) return { ...NOTHING, legend: [["plain", TEXT.noScores]] };
  const { values } = found, top = brightest(values);
  return { ...NOTHING, heat: (token) => Math.sqrt(Math.min(1, values[token] / top)), legend: [["heat", TEXT.heatLegend(quoted(run.arms[arm], Math.min(t, run.arms[arm].last)), top)]] };
}
