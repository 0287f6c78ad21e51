// A sweep as data: what its events come to, curves, grids, and the ranges that the form begins with.

import assert from "node:assert/strict";
import test from "node:test";

import { SweepStream } from "../../assets/player/sweep/stream.js";
import { SHADES, Sweep, cellsOf, curves, fromDifference, listOfNumbers, named, parametersOf, placeOf, range, shortened } from "../../assets/player/sweep/data.js";

const MIB = 2 ** 20;
const axis = (name, values) => ({ name, label: name, unit: "%", values });
const row = (point, values, more = {}) => ({
  kind: "sweep_point", point, values, label: "", policy: {}, text: "", tokens: [1, 2, 3, 4], same: true, identical: 4, stored_bytes: (point === null ? 8 : point + 1) * MIB,
  read_bytes: MIB, stored_share: 0.5, read_share: 0.25, ttft_ms: 9, median_ms: 3, runs: [], notes: [], ...more,
});

function sweepOf(axes, rows) {
  const sweep = new Sweep();
  sweep.push({ kind: "sweep_start", axes, points: [] });
  for (const one of rows) sweep.push(one);
  return sweep;
}

test("a later row of a point replaces it, rows are in the order of the points, progress is the latest", () => {
  const sweep = sweepOf([axis("S", [10, 20])], [row(null, {}), row(1, { S: 20 }), row(0, { S: 10 })]);
  assert.equal(sweep.push(row(0, { S: 10 }, { ttft_ms: 1 })), 0);
  assert.equal(sweep.push({ kind: "sweep_progress", point: 1, tokens: 7 }), null);
  assert.deepEqual(sweep.points.map((one) => [one.point, one.ttft_ms]), [[0, 1], [1, 9]]);
  assert.equal(sweep.full.point, null);
  assert.equal(sweep.progress.tokens, 7);
  assert.equal(sweep.received, 6);
  assert.equal(sweep.push(row(null, {})), -1);
});

test("curves: full attention is a level from end to end, values that are off and steps that never were have no place", () => {
  const rows = [row(null, {}), row(0, { S: null }), row(1, { S: 20 }, { same: false, identical: 2 }), row(2, { S: 40 }, { median_ms: null })];
  const found = curves(sweepOf([axis("S", [null, 20, 40])], rows));
  assert.equal(found.unit, "MiB");
  assert.deepEqual(found.full, [[20, 40], [8, 8]]);
  assert.deepEqual(found.stored, [[20, 40], [2, 3]]);
  assert.deepEqual(found.same, [[40], [3]]);
  assert.deepEqual(found.ms, [[20], [3]]);
  assert.deepEqual(found.fullMs, [[20, 40], [3, 3]]);
  assert.deepEqual(curves(sweepOf([axis("S", [20])], [row(null, {}, { median_ms: null })])).fullMs, [[], []]);
});

test("a grid finds its points, and only an answer that is the same is wholly bright", () => {
  const axes = [axis("S", [10, 20]), axis("K", [1, null])];
  const sweep = sweepOf(axes, [row(null, {}), row(0, { S: 10, K: 1 }, { same: false }), row(1, { S: 20, K: null }, { same: false, identical: 1 })]);
  const cell = cellsOf(axes, sweep.points);
  assert.equal(cell(0, 0).point, 0);
  assert.equal(cell(1, 1).point, 1);
  assert.equal(cell(0, 1), null);
  assert.deepEqual(placeOf(axes, { S: 20, K: null }), [1, 1]);
  assert.deepEqual(placeOf(axes, null), [-1, -1]);
  assert.ok(SHADES.same(cell(0, 0), sweep.full) < 1, "all tokens alike, but it ended elsewhere");
  assert.equal(SHADES.same(cell(1, 1), sweep.full), 0.25);
  assert.equal(SHADES.same(row(2, {}), sweep.full), 1);
});

test("ranges begin round, within the slider, with about as many values as asked for", () => {
  assert.deepEqual(range({ low: 1, high: 100, step: 1, start: 45 }, 12), { from: 10, to: 100, step: 10 });
  assert.deepEqual(range({ low: 1, high: 32, step: 1, start: 3 }, 12), { from: 1, to: 12, step: 1 });
  assert.deepEqual(range({ low: 1, high: 31, step: 2, start: 7 }, 12), { from: 1, to: 27, step: 2 });
  for (const low of [0, 1, 5]) for (const high of [6, 31, 64, 100, 128, 1000]) for (const start of [null, 1, 4, 50]) for (const count of [6, 12]) {
    const { from, to, step } = range({ low, high, step: 1, start }, count);
    assert.ok(from >= low && to <= high && from <= to && step > 0, JSON.stringify({ low, high, start, count, from, to, step }));
    assert.ok((to - from) / step <= count, "never many more than asked for");
  }
});

test("words: values, parameters worth naming, lists of numbers, short answers", () => {
  assert.equal(named({ S: 20, C: null }), "S=20, C=off");
  const catalog = { AVL: { parameters: [{ key: "S", choices: [], default: 45 }, { key: "update", choices: ["every", "shift"], default: "every" }] } };
  assert.deepEqual(parametersOf(catalog, { policy: "AVL", S: 45, update: "every" }), { S: 45 });
  assert.deepEqual(parametersOf(catalog, { policy: "AVL", S: 45, update: "shift" }), { S: 45, update: "shift" });
  assert.deepEqual(listOfNumbers("1, 8;32 64"), [1, 8, 32, 64]);
  assert.deepEqual(listOfNumbers("1, x"), [1, null]);
  assert.deepEqual(listOfNumbers("  "), []);
  assert.equal(shortened(" a\n b ", 9), "a b");
  assert.equal(shortened("abcdefghij", 5), "abcd…");
});

test("a long answer is shown from a little before its first difference", () => {
  const same = "one two three four five six seven eight nine ten eleven twelve", full = `${same} red house and more of it`, other = `${same} blue house and more of it`;
  const found = fromDifference(other, full, 50);
  assert.equal(found, "… nine ten eleven twelve blue house and more of it");
  assert.equal(fromDifference("short", full, 50), "short");
  assert.equal(fromDifference(`x${other}`, full, 20), "xone two three four…", "it differs at once");
  assert.ok(fromDifference(full, full, 40).startsWith("…"), "the end of a token sequence alone differs");
  assert.ok(fromDifference("a".repeat(200), "a".repeat(100), 40).length <= 40, "no spaces");
});

// the server's side of a stream: all events, and answers to what was missed
function streamed(all) {
  const told = [], asked = [];
  const stream = new SweepStream(async ({ run, first }) => { asked.push([run, first]); return JSON.stringify(all.slice(first, all.known)); },
    { begun: () => told.push("begun"), events: (_, events) => told.push(...events.map((event) => event.kind)), changed() {} });
  const batch = (first, until, state = "running") => stream.receive({ run: "r", state, position: 0, first, events: JSON.stringify(all.slice(first, until)) });
  return { stream, told, asked, batch, done: () => stream.receive({ run: "r", state: "done", count: all.length }) };
}
const settle = () => new Promise((resolve) => setTimeout(resolve));
const ALL = () => [{ kind: "sweep_start", axes: [], points: [] }, row(null, {}), row(0, {}), row(1, {}), row(2, {}), { kind: "sweep_end", reason: "done" }];
const KINDS = ["begun", "sweep_start", ...Array(4).fill("sweep_point"), "sweep_end"];

test("batches are taken once, also where the last value comes twice", () => {
  const { stream, told, batch, done } = streamed(ALL());
  batch(0, 0, "queued");
  assert.ok(stream.going);
  batch(0, 3);
  batch(0, 3);
  batch(2, 6);
  done();
  done();
  assert.deepEqual(told, KINDS);
  assert.equal(stream.state, "done");
});

test("events that never arrived are fetched, also while others are dropped and the end comes", async () => {
  const all = ALL(), { stream, told, asked, batch, done } = streamed(all);
  batch(0, 1);
  all.known = 4; // what the server has when it is asked
  batch(3, 4);
  batch(4, 5); // dropped: the answer is on its way
  done();
  assert.equal(stream.state, "running", "it waits for the rest");
  all.known = undefined;
  await settle();
  await settle();
  assert.deepEqual(told, KINDS);
  assert.deepEqual(asked, [["r", 1], ["r", 4]]);
  assert.equal(stream.state, "done");
});

test("a refusal and an error before the start are sentences; the next sweep forgets them", () => {
  const { stream, batch, done } = streamed([{ kind: "error", message: "There is no room." }]);
  stream.receive({ state: "refused", message: "No." });
  assert.deepEqual([stream.state, stream.problem], ["refused", "No."]);
  batch(0, 1);
  done();
  assert.deepEqual([stream.state, stream.problem], ["refused", "There is no room."]);
  stream.receive({ run: "other", state: "queued", position: 1 });
  assert.deepEqual([stream.state, stream.problem, stream.sweep], ["queued", "", null]);
});
