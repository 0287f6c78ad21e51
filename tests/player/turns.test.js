// A later question: lines and their re-reading arms, prompts of their own, what was evicted, why a run cannot be asked on.

import assert from "node:assert/strict";
import test from "node:test";

import { openingPair } from "../../assets/player/state.js";
import { Run } from "../../assets/player/trace/run.js";
import { keptAtEnd, lineOf, linesOf, missedIn, missedInAll, promptOf, refusalOf, sameAnswer } from "../../assets/player/trace/turns.js";

const bits = (/** @type {number[]} */ tokens) => btoa(String.fromCharCode(tokens.reduce((byte, token) => byte | (128 >> token), 0)));
const arm = (/** @type {string} */ name, /** @type {any} */ more) => ({ label: `${name} S=45`, title: name, policy: { name }, predicted: [], spread: [], answers: ["one"], n_text: 9, text: [], spans: [], ...more });
const ARMS = [arm("Full", {}), arm("AVL", { n_text: 8 }), arm("Full", { label: "Full S=45 re-read", reread: true }), arm("AVL", { label: "AVL S=45 re-read", reread: true })];

function conversation() {
  const run = new Run();
  run.push({ kind: "start", arms: ARMS, n_image: 8, n_text: 9, layers: 2, batch: 1, limit: 4, token_bytes: 2, turn: 2, questions: ["?"], date: "" });
  for (let index = 0; index < 4; index++) {
    run.push({ kind: "prefill", arm: index, ms: 1, token: 5, text: "a", stored: [8, 8], stored_bytes: 16, peak_bytes: 16 });
    if (index % 2) run.push({ kind: "sets", arm: index, t: 0, stored: index === 1 ? [bits([0, 1, 2]), bits([7])] : [bits([2, 3, 4, 5]), bits([6, 7])], core: index === 1 ? [bits([0]), bits([7])] : [bits([2, 3]), bits([6, 7])] });
    run.push({ kind: "step", arm: index, t: 1, token: 6 + Number(index === 3), text: "b", ms: 1, clock_ms: 2, stored: 22, read: 9, stored_bytes: 22, read_bytes: 9, update: false });
  }
  return run;
}

test("lines and what they miss", () => {
  const run = conversation(), lines = linesOf(run);
  assert.deepEqual(lines.map(({ kept, again }) => [kept.index, again && again.index]), [[0, 2], [1, 3]]);
  assert.equal(lineOf(run, 3)?.kept.index, 1);
  const [, { kept, again }] = lines;
  assert.ok(again);
  const here = missedIn(run, kept, again, 0);
  assert.deepEqual([here.wanted, here.evicted, [...here.marks]], [2, 1, [0, 0, 1, 2, 0, 0, 0, 0]]);
  assert.deepEqual(missedInAll(run, kept, again), { wanted: 4, evicted: 2 });
  assert.deepEqual(openingPair(run.arms, [0, 1]), [1, 3]);
});

test("sizes are those of the arm's own prompt", () => {
  const run = conversation();
  assert.equal(promptOf(run.start, run.arms[1].spec).n_text, 8);
  assert.equal(promptOf(run.start, { n_text: null }).n_text, 9);
  assert.deepEqual(keptAtEnd(run, run.arms[1]), { stored: 11, all: 17 });
  assert.equal(run.fullBytes(1, run.arms[1]), 2 * (8 + 8 + 1));
  assert.equal(run.fullBytes(1), 2 * (8 + 9 + 1));
});

test("answers are the same token by token, once both are complete", () => {
  const run = conversation(), [a, b, c, d] = run.arms;
  assert.equal(sameAnswer(a, c), null);
  for (let index = 0; index < 4; index++) run.push({ kind: "end", arm: index, reason: index === 1 ? "stopped" : "eos", text: "ab", tokens: [] });
  assert.equal(sameAnswer(a, c), true);
  assert.equal(sameAnswer(a, d), false);
  assert.equal(sameAnswer(b, d), null);
});

test("why a run cannot be asked on", () => {
  const run = conversation(), state = /** @type {any} */ ({ run, source: "live", state: "done", complete: 1, opened: 1 });
  assert.equal(refusalOf(state, {}), "");
  assert.equal(refusalOf(state, { no_turns: "why" }), "model");
  assert.equal(refusalOf({ ...state, source: "recorded" }, {}), "recorded");
  assert.equal(refusalOf({ ...state, state: "queued" }, {}), "running");
  assert.equal(refusalOf({ ...state, complete: 0 }, {}), "running");
  assert.equal(refusalOf({ ...state, run: { ...run, start: { ...run.start, batch: 2 } } }, {}), "batch");
  run.arms[1].prefill = null;
  assert.equal(refusalOf(state, {}), "unanswered");
});
