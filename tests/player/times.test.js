// The statistics behind "faster" and "too close to call".

import assert from "node:assert/strict";
import test from "node:test";

import { compareTimes, median, quantile } from "../../assets/player/stats/times.js";

/** Numbers between 0 and 1 from a seed (mulberry32). */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Log-normal times around a middle. */
function noisy(middle, spread, n, seed) {
  const draw = random(seed), normal = () => Math.sqrt(-2 * Math.log(draw() || 1e-12)) * Math.cos(2 * Math.PI * draw());
  return Array.from({ length: n }, () => middle * Math.exp(spread * normal()));
}

const compare = (a, b, runs = [[], []], stopped = false) => compareTimes({ steps: a, runs: runs[0], stopped }, { steps: b, runs: runs[1], stopped });

test("quantiles", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(quantile([1, 2, 3, 4], 0.25), 1.75);
  assert.equal(median([]), null);
});

test("the same distribution is hardly ever called faster", () => {
  let wrong = 0;
  for (let seed = 0; seed < 200; seed++) wrong += compare(noisy(3, 0.2, 66, seed), noisy(3, 0.2, 66, seed + 1000)).kind === "apart";
  assert.equal(wrong, 0, "one run of 66 steps each");
  for (const n of [5, 9, 20]) {
    let apart = 0;
    for (let seed = 0; seed < 200; seed++) apart += compare([], [], [noisy(3, 0.1, n, seed), noisy(3, 0.1, n, seed + 1000)]).kind === "apart";
    assert.ok(apart <= 20, `${apart} of 200 with ${n} repeats`);
  }
});

test("a clear difference is told", () => {
  const steps = compare(noisy(4, 0.05, 66, 1), noisy(2, 0.05, 66, 2));
  assert.deepEqual([steps.kind, steps.basis, steps.n], ["apart", "steps", 66]);
  assert.ok(Math.abs(steps.ratio - 0.5) < 0.025);
  const runs = compare([], [], [noisy(4, 0.02, 5, 1), noisy(3.6, 0.02, 5, 2)]);
  assert.deepEqual([runs.kind, runs.basis, runs.n], ["apart", "runs", 5]);
});

test("as many repeats as are advised do tell", () => {
  const evenly = (n, by = 1) => Array.from({ length: n }, (_, i) => by * (2 + 0.2 * i / (n - 1)));
  const close = compare([], [], [evenly(3), evenly(3, 1.09)]), n = close.repeats;
  assert.equal(close.kind, "close");
  assert.ok(n > 3 && n <= 20);
  assert.deepEqual([n - 1, n].map((some) => compare([], [], [evenly(some), evenly(some, 1.09)]).kind), ["close", "apart"]);
  assert.equal(compare([], [], [evenly(3), evenly(3, 1.02)]).repeats, null);
});

test("one percent is no news", () => {
  assert.equal(compare([], [], [Array(9).fill(2), Array(9).fill(2.01)]).kind, "close");
  assert.deepEqual(compare([], [], [Array(9).fill(2), Array(9).fill(2)]), { kind: "close", basis: "runs", n: 9, ratio: 1, repeats: null });
});

test("only steps that both made are compared: a step takes longer the longer the answer is", () => {
  const growing = Array.from({ length: 200 }, (_, t) => 1 + 0.02 * t);
  const found = compare(growing, growing.slice(0, 60), [[], []], true);
  assert.deepEqual([found.kind, found.n, found.ratio], ["close", 60, 1]);
  assert.deepEqual([compare(growing, growing.slice(0, 19), [[], []], true)].map(({ kind, n }) => [kind, n]), [["few", 19]]);
  // answers of different lengths: their runs' medians are over different ranges
  const runs = [[2, 2, 2], [1.3, 1.3, 1.3]];
  assert.equal(compare(growing, growing.slice(0, 60), runs).basis, "steps");
  assert.equal(compare(growing, growing.slice(0, 190), runs).basis, "runs");
  assert.equal(compare(growing, growing, runs, true).basis, "steps");
  assert.equal(compare([], [], [[2, 2], [1, 1]]).kind, "few", "two runs are no spread");
});
