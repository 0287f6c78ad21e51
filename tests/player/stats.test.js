// Statistics of sets and answers: functions of numbers.

import assert from "node:assert/strict";
import test from "node:test";

import { aligned } from "../../assets/player/stats/diff.js";
import { Choices, concentration, meanOf, overlapOf, sizeOf, sparsityOf, topShare } from "../../assets/player/stats/sets.js";
import { wordsOf } from "../../assets/player/trace/codec.js";
import { Run } from "../../assets/player/trace/run.js";

const bits = (members, n) => Uint8Array.from({ length: n }, (_, i) => (members.includes(i) ? 1 : 0));

test("overlap is the share of one set that is in the other", () => {
  const a = wordsOf(bits([0, 31, 32, 99], 100)), b = wordsOf(bits([31, 99, 50], 100));
  assert.equal(sizeOf(a), 4);
  assert.equal(overlapOf(a, b), 0.5);
  assert.equal(overlapOf(b, a), 2 / 3);
  assert.equal(overlapOf(wordsOf(bits([], 100)), b), null);
});

test("the top share takes the lower position at a tie, and never what was not read or not told", () => {
  const chosen = (values, percent) => { const found = topShare(Float32Array.from(values), percent); return [...found.keys()].filter((i) => found[i]); };
  assert.deepEqual(chosen([0.1, 0.3, 0.3, 0.2, 0.1], 40), [1, 2]);
  assert.deepEqual(chosen([0.3, 0.3, 0.3], 34), [0, 1]);
  assert.deepEqual(chosen([0, 0, 0.5, NaN], 100), [2]);
  assert.equal(chosen(Array(100).fill(0.1), 7).length, 7, "0.07 * 100 is above 7 as a float");
});

test("concentration and the share that holds 80 %", () => {
  const curve = concentration(Float32Array.from([0.5, 0.125, 0.25, 0.125]));
  assert.deepEqual(curve, [0.5, 0.75, 0.875, 1]);
  assert.equal(sparsityOf(curve), 0.75);
  assert.equal(sparsityOf(concentration(new Float32Array(3))), null);
  assert.equal(meanOf([1, null, 3]), 2);
  assert.equal(meanOf([]), null);
});

test("only what the other answer lacks is marked", () => {
  const [a, b] = aligned([1, 2, 3, 4, 5], [1, 2, 9, 4, 5, 6], 2);
  assert.deepEqual([...a], [0, 0, 1, 0, 0]);
  assert.deepEqual([...b], [0, 0, 1, 0, 0, 1]);
});

test("choices at LLaVA-1.6's size are worked out within a frame or two", () => {
  const n = 2928, layers = 40, run = new Run();
  const packed = (seed) => Buffer.from(Uint8Array.from({ length: n / 8 }, (_, i) => (i * 31 + seed * 17) & 255)).toString("base64");
  run.push({ kind: "start", arms: [{ label: "A-VL", policy: { name: "AVL" } }], n_image: n, layers });
  for (let t = 0; t < 85; t++) run.push({ kind: "sets", arm: 0, t: 3 * t, stored: t ? null : Array.from({ length: layers }, (_, i) => packed(i)), core: Array.from({ length: layers }, (_, i) => packed(i + t)) });
  const choices = new Choices(run, 0, "core");
  while (!choices.advance(1000));
  assert.equal(choices.rows.length, 85);
  assert.ok(choices.rows[0].every((value) => value === 1));
  const began = performance.now(), matrix = choices.between(84), cost = performance.now() - began;
  assert.equal(matrix.length, layers);
  for (let i = 0; i < layers; i++) assert.equal(matrix[i][i], 1);
  assert.ok(cost < 60, `${cost} ms for the overlap of every two of 40 layers`);
  assert.equal(choices.between(84), matrix, "a second look costs nothing");
});
