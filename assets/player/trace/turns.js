// A later question of a conversation: which arm re-reads for which, what each one's prompt is, and what eviction cost.

import { CORE, SECONDARY } from "./run.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").Arm} Arm */

const AGAIN = " re-read"; // as avl/engine/conversation.py writes it

/** Every policy's line, and the arm that reads its whole conversation again, if one does. @param {Run} run @returns {{ kept: Arm, again: Arm | null }[]} */
export function linesOf(run) {
  const again = run.arms.filter((arm) => arm.spec.reread);
  return run.arms.filter((arm) => !arm.spec.reread).map((kept) => ({ kept, again: again.find((arm) => arm.spec.label === kept.spec.label + AGAIN) || null }));
}

/** The line that an arm belongs to. @param {Run} run @param {number} index */
export function lineOf(run, index) { return linesOf(run).find(({ kept, again }) => kept.index === index || (again && again.index === index)) || null; }

/** The prompt of an arm: in a later turn each has its own. @param {any} start @param {any} spec of the arm */
export function promptOf(start, spec) {
  if (!spec || spec.n_text === null || spec.n_text === undefined) return start;
  return { ...start, n_text: spec.n_text, spans: spec.spans, text: spec.text };
}

/**
 * Image tokens that the new question wants, in one layer: the core that re-reading chooses for it (or all that it stores), and which of them
 * the kept line no longer has.
 * @param {Run} run @param {Arm} kept @param {Arm} again @param {number} layer
 * @returns {{ wanted: number, evicted: number, marks: Uint8Array }} marks: 1 wanted and still kept, 2 wanted and evicted
 */
export function missedIn(run, kept, again, layer) {
  const asks = run.classes(again.index, 0, layer), has = run.classes(kept.index, 0, layer), marks = new Uint8Array(asks.length);
  let wanted = 0, evicted = 0;
  for (let i = 0; i < marks.length; i++) {
    if (asks[i] !== CORE) continue;
    wanted++;
    const held = has[i] === CORE || has[i] === SECONDARY;
    if (!held) evicted++;
    marks[i] = held ? 1 : 2;
  }
  return { wanted, evicted, marks };
}

/** The same over all layers: sums. @param {Run} run @param {Arm} kept @param {Arm} again */
export function missedInAll(run, kept, again) {
  let wanted = 0, evicted = 0;
  for (let layer = 0; layer < run.start.layers; layer++) {
    const found = missedIn(run, kept, again, layer);
    wanted += found.wanted;
    evicted += found.evicted;
  }
  return { wanted, evicted };
}

/** KV tokens that a layer stores of an arm's conversation at its end, mean over the layers, and how many there were. @param {Run} run @param {Arm} arm */
export function keptAtEnd(run, arm) {
  const { start } = run, t = Math.max(0, arm.last), stored = arm.stored[t] ?? 0;
  return { stored: Math.round(stored / start.layers / start.batch), all: start.n_image + promptOf(start, arm.spec).n_text + t };
}

/** Whether two answers are the same, token by token; null while one of them is not complete. @param {Arm} a @param {Arm} b */
export function sameAnswer(a, b) {
  if (!a.end || !b.end || a.end.reason === "stopped" || b.end.reason === "stopped") return null;
  return a.tokens.length === b.tokens.length && a.tokens.every((token, t) => token === b.tokens[t]);
}

/**
 * Why a run cannot be asked on: the name of a sentence in text.js, or "".
 * @param {Readonly<import("../state.js").State>} state
 * @param {{ no_turns?: string }} about
 */
export function refusalOf({ run, source, state, complete, opened }, about) {
  if (about.no_turns) return "model";
  if (!run || !run.start || source === "recorded") return "recorded";
  if (["queued", "running", "stopping"].includes(state)) return "running";
  if (complete !== opened) return "running";
  if (run.start.batch !== 1) return "batch";
  if (!run.arms.every((arm) => arm.prefill || arm.spec.reread)) return "unanswered";
  return "";
}
