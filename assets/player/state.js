// What the player knows: written by store.set() alone, read by every panel.

/** @typedef {import("./trace/run.js").Run} Run */
/** @typedef {import("./trace/grid.js").Lattice} Lattice */

/**
 * @typedef {Object} State
 * The run that is shown:
 * @property {Run | null} run touched when it takes events
 * @property {string | null} id
 * @property {"live" | "recorded" | "report" | "last" | "earlier"} source "last" and "earlier": the visitor's, opened again; "last" is his newest
 * @property {boolean} recorded source is "recorded"
 * @property {number} opened grows when a run is shown from its beginning
 * @property {number} complete the value of opened whose run has ended
 *
 * The run that is received, shown from its first event on:
 * @property {"idle" | "queued" | "running" | "stopping" | "done" | "refused" | "lost"} state
 * @property {string | null} stream
 * @property {number} place in the queue
 * @property {number} heard when the server last said something, ms
 * @property {number} eventAt when the last event of the run came that was no reading, ms
 * @property {number} now of a clock that ticks while a prompt is processed, ms
 * @property {string} error what went wrong, one sentence; empty where nothing did
 * @property {boolean} unrun a link asked for something that was not run yet
 * @property {number} edited grows when the inputs of the page changed
 * @property {Record<string, any>[]} visit the visitor's runs that the server has, in short, the newest first
 *
 * The playhead:
 * @property {number[]} ts token of each arm
 * @property {number | null} clock compute time, ms; null: tokens rule
 * @property {boolean} follow the newest token
 * @property {boolean} playing
 * @property {number} speed of a replay
 *
 * What is looked at:
 * @property {[number, number]} pair the two arms that are shown
 * @property {number} focus arm whose tokens the picture shows
 * @property {boolean} both pictures, one per arm of the pair
 * @property {number} layer
 * @property {boolean} touchedLayer somebody chose it
 * @property {"sets" | "missed" | "drift" | "consensus" | "scores" | "heat" | "plain"} mode of the picture
 * @property {number} opacity of what lies over the picture, 0 to 1
 * @property {{ arm: number, t: number } | null} word under the pointer
 * @property {Lattice[]} lattices
 * @property {number} grid index into lattices
 * @property {number} patch token that was clicked, -1
 * @property {boolean} whole the whole picture, not only what the model sees
 * @property {[number, number, number, number] | null} region zoomed into, pixels of the picture
 * @property {string} compared "core", or percent of the recorded attention
 * @property {boolean} differences only what the other arm has not
 * @property {string} theme
 * @property {number} width of the player, pixels
 */

/** @returns {State} */
export function initialState() {
  return {
    run: null, id: null, source: "live", recorded: false, opened: 0, complete: -1,
    state: "idle", stream: null, place: 0, heard: 0, eventAt: 0, now: 0, error: "", unrun: false, edited: 0, visit: [],
    ts: [0, 0], clock: null, follow: true, playing: false, speed: 1,
    pair: [0, 1], focus: 0, both: false, layer: 0, touchedLayer: false, mode: "sets", opacity: 1, word: null,
    lattices: [], grid: 0, patch: -1, whole: false, region: null, compared: "core", differences: false,
    theme: "", width: 0,
  };
}

/** The two arms that are shown; one where there is one. @param {Readonly<State>} state */
export function shownArms({ run, pair }) {
  if (!run) return [];
  return (run.arms.length < 2 ? [0] : pair).map((index) => run.arms[index]);
}

/** The pair that a run opens with: in a later turn a policy and its re-reading; what was chosen before, else full attention and the first A-VL. @param {import("./trace/run.js").Arm[]} arms @param {[number, number] | null} wanted @returns {[number, number]} */
export function openingPair(arms, wanted) {
  const n = arms.length, again = arms.filter((arm) => arm.spec.reread), read = again.find((arm) => !arm.isFull) || again[0];
  if (read) return [arms.findIndex((arm) => !arm.spec.reread && `${arm.spec.label} re-read` === read.spec.label), read.index]; // what it kept beside what it reads again
  if (n < 3) return [0, Math.min(1, n - 1)];
  if (wanted && wanted[0] !== wanted[1] && wanted.every((index) => index < n)) return wanted;
  const full = arms.findIndex((arm) => arm.isFull), first = Math.max(0, full);
  const other = [(/** @type {import("./trace/run.js").Arm} */ arm) => arm.spec.policy.name === "AVL", (/** @type {import("./trace/run.js").Arm} */ arm) => !arm.isFull, () => true]
    .map((suits) => arms.findIndex((arm, index) => index !== first && suits(arm))).find((index) => index >= 0);
  return [first, other ?? 1];
}

/** A pair with another arm in one place; the arm of the other place swaps them. @param {[number, number]} pair @param {0 | 1} place @param {number} index @returns {[number, number]} */
export function choose(pair, place, index) {
  const other = pair[1 - place] === index ? pair[place] : pair[1 - place];
  return place ? [other, index] : [index, other];
}

/** A pair that has an arm: the second one gives way. @param {[number, number]} pair @param {number} index @returns {[number, number]} */
export function including(pair, index) { return pair.includes(index) ? pair : choose(pair, 1, index); }

/** "a" or "b": the color of an arm, "" for one that is not shown. @param {Readonly<State>} state @param {number} index */
export function sideOf({ run, pair }, index) {
  const place = run && run.arms.length < 2 ? 0 : pair.indexOf(index);
  return place < 0 ? "" : place ? "b" : "a";
}
