// What the analysis panels share: which sets are compared, worked out a few milliseconds at a time.

import { Choices } from "./stats/sets.js";
import { shortLabel } from "./labels.js";
import { TEXT } from "./text.js";

/** @typedef {import("./trace/run.js").Run} Run */
/** @typedef {import("./trace/run.js").Arm} Arm */

const BUDGET = 8; // ms a frame

/** @type {WeakMap<Arm, Map<string, Choices>>} */
const known = new WeakMap();

/** What can be compared for an arm: [value, words]. @param {Run} run @param {Arm} arm @returns {[string, string][]} */
export function comparable(run, arm) {
  if (run.start.layers < 2) return [];
  /** @type {[string, string][]} */
  const options = [];
  if (arm.sets.length) {
    const first = choicesOf(run, arm, "core");
    first.advance(0);
    options.push(["core", TEXT.readSets(shortLabel(run, arm), first.percent(0))]);
  }
  // shares of what is told in part would be wrong
  if (arm.scores.length && !onlyTop(arm)) for (const percent of ["20", "30", "50"]) options.push([percent, TEXT.topPercent(percent)]);
  return options;
}

/** Whether the highest tokens alone were recorded at some pass. @param {Arm} arm */
export function onlyTop(arm) {
  return arm.scores.length > 0 && arm.scores[arm.scores.length - 1].image.some((/** @type {string} */ one) => one.startsWith("t:"));
}

/** @param {Run} run @param {Arm} arm @param {string} kind @returns {Choices} */
export function choicesOf(run, arm, kind) {
  const own = known.get(arm) || new Map(), found = own.get(kind) || new Choices(run, arm.index, kind === "core" ? "core" : Number(kind));
  known.set(arm, own.set(kind, found));
  return found;
}

/**
 * The sets that are compared now, worked on for a while.
 * @param {import("./playhead.js").PlayerStore} store
 * @returns {{ run: Run, arm: Arm, kind: string, choices: Choices, at: number } | null} null where nothing can be compared
 */
export function compared(store) {
  const { run, focus, compared: wanted, ts } = store.state, arm = run && run.arms[focus];
  if (!run || !run.start || !arm) return null;
  const options = comparable(run, arm);
  if (!options.length) return null;
  const kind = options.some(([value]) => value === wanted) ? wanted : options[0][0] === "core" ? "core" : options[options.length - 1][0];
  const choices = choicesOf(run, arm, kind);
  if (!choices.advance(BUDGET)) store.touch("compared");
  return { run, arm, kind, choices, at: Math.min(choices.at(ts[focus] || 0), choices.rows.length - 1) };
}
