// The run as data: codecs and questions about (arm, step, layer).

import assert from "node:assert/strict";
import test from "node:test";

import { unpackBits, unpackScores, unpackWords, wordsOf } from "../../assets/player/trace/codec.js";
import { Lattice, finestOf, latticesOf } from "../../assets/player/trace/grid.js";
import { CORE, MINOR, PRUNED, Run, SECONDARY } from "../../assets/player/trace/run.js";

const base64 = (bytes) => Buffer.from(bytes).toString("base64");

/** numpy.packbits of a list of members */
function pack(members, n) {
  const bytes = new Uint8Array((n + 7) >> 3);
  for (const i of members) bytes[i >> 3] |= 128 >> (i & 7);
  return base64(bytes);
}

function startEvent(changes = {}) {
  return {
    kind: "start", arms: [{ label: "Full", policy: { name: "Full" } }, { label: "A-VL", policy: { name: "AVL" }, pruned_from: 1, predicted: [[10, 5], [12, 7]] }],
    n_image: 20, n_text: 10, layers: 2, token_bytes: 8, batch: 3, limit: 4, grids: [], images: [], ...changes,
  };
}

const step = (arm, t, token, more = {}) => ({ kind: "step", arm, t, token, text: `${token}`, ms: 2, clock_ms: 10 + 2 * t, stored: 9, read: 4, stored_bytes: 90, read_bytes: 40 + t, update: t % 3 === 0, ...more });
const prefill = (arm, token = 7) => ({ kind: "prefill", arm, ms: 10, token, text: "x", stored: [5, 6], stored_bytes: 100, peak_bytes: 120 });

test("sets are unpacked to bytes and to words that count alike", () => {
  for (const n of [1, 7, 8, 31, 32, 33, 576, 2928]) {
    const members = [...Array(n).keys()].filter((i) => (i * 7919) % 5 < 2), text = pack(members, n), bits = unpackBits(text, n);
    assert.deepEqual([...bits.keys()].filter((i) => bits[i]), members);
    assert.deepEqual(unpackWords(text, n), wordsOf(bits));
  }
});

test("scores of all tokens, of the highest ones, and of older recordings", () => {
  const dense = unpackScores(`d:${base64([0, 255, 243, 1])}`, 4);
  assert.equal(dense[0], 0);
  assert.equal(dense[1], 1);
  assert.ok(Math.abs(dense[2] - 0.5) < 1e-6);
  assert.ok(dense[3] > 4e-7 && dense[3] < 5e-7);
  // 3 tokens: 0, 5 and 205; a gap of 200 takes two bytes
  const top = unpackScores(`t:${base64([3, 1, 5, 0xc8, 0x01, 255, 243, 231])}`, 300);
  assert.deepEqual([...top.keys()].filter((i) => top[i] >= 0), [0, 5, 205]);
  assert.ok(Number.isNaN(top[1]));
  assert.ok(Math.abs(top[205] - 0.25) < 1e-6);
  const halves = unpackScores(base64([0x00, 0x3c, 0x00, 0xb8, 0x01, 0x00]), 3);
  assert.deepEqual([...halves], [1, -0.5, 2 ** -24]);
});

test("classes follow the sets that a step reads by", () => {
  const run = new Run();
  run.push(startEvent());
  run.push(prefill(1));
  run.push({ kind: "sets", arm: 1, t: 0, stored: [pack([0, 1, 2], 20), pack([0, 1], 20)], core: [pack([0], 20), pack([1], 20)], pruned: pack([19], 20) });
  run.push({ kind: "sets", arm: 1, t: 3, stored: null, core: [pack([2], 20), pack([0], 20)] });
  const first = run.classes(1, 1, 0), later = run.classes(1, 4, 0);
  assert.deepEqual([first[0], first[1], first[5], first[19]], [CORE, SECONDARY, MINOR, MINOR]);
  assert.deepEqual([later[0], later[2]], [SECONDARY, CORE]);
  assert.equal(run.classes(1, 1, 1)[19], PRUNED, "from layer 1 on it left during prefill");
  assert.deepEqual(run.classes(1, 3, 0), first, "the step that chooses still reads by the sets before");
  assert.equal(run.drift(1, 4, 0)[2], 1);
  assert.equal(run.drift(1, 4, 0)[0], -1);
  assert.equal(run.consensus(1, 1)[0], 1);
  assert.deepEqual(run.counts(0, 1, 0), [0, 0, 20, 0], "full attention stores and reads all");
});

test("numbers of an arm: means, shares, predictions, the clock", () => {
  const run = new Run();
  run.push(startEvent());
  for (const arm of [0, 1]) {
    run.push(prefill(arm));
    for (let t = 1; t < 4; t++) run.push(step(arm, t, t));
  }
  const arm = run.arms[1];
  assert.equal(run.fullBytes(2), 8 * (20 + 10 + 2) * 3);
  assert.equal(arm.meanBytes(arm.readBytes), 42);
  assert.equal(run.meanShare(arm, arm.readBytes), 42 / run.meanFullBytes(3));
  assert.deepEqual(arm.predicted(2), { stored: 11, read: 6 });
  assert.equal(arm.predicted(3), null, "a prediction for two steps says nothing of three");
  assert.deepEqual([9, 10, 12, 13, 99].map((ms) => arm.stepAt(ms)), [-1, 0, 1, 1, 3]);
  assert.equal(run.arms[0].isFull, true);
});

test("where two answers part", () => {
  const run = new Run();
  run.push(startEvent());
  for (const arm of [0, 1]) run.push(prefill(arm));
  run.push(step(0, 1, 1));
  assert.deepEqual(run.commonPrefix(run.arms[0], run.arms[1]), { same: 1, differs: false }, "the other has not come so far");
  run.push({ kind: "end", arm: 1, reason: "eos", text: "", peak_bytes: 1 });
  assert.deepEqual(run.commonPrefix(run.arms[0], run.arms[1]), { same: 1, differs: true }, "one ended where the other goes on");
  assert.equal(run.commonPrefix(run.arms[0], undefined), null);
});

test("scores are those of the pass in force", () => {
  const run = new Run();
  run.push(startEvent({ n_image: 4 }));
  const event = (t, code) => ({ kind: "scores", arm: 1, t, image: [`d:${base64([code, 0, 0, 0])}`, `t:${base64([1, 2, code])}`], rest: [0, 0.25], mean: `d:${base64([0, code, 0, 0])}` });
  assert.equal(run.scoresAt(1, 5, 0), null);
  run.push(event(0, 255));
  run.push(event(2, 243));
  assert.equal(run.scoresAt(1, 1, 0).values[0], 1);
  assert.equal(run.scoresAt(1, 9, 0).t, 2);
  assert.equal(run.scoresAt(1, 9, 1).rest, 0.25);
  assert.ok(Math.abs(run.scoresAt(1, 9, -1).values[1] - 0.5) < 1e-6, "the mean over the layers");
});

test("token to cell to rectangle and back, for tiles with and without newlines", () => {
  const width = 300, height = 200, tile = (first, box) => ({ image: 0, first, rows: 3, cols: 4, newline: true, box });
  const grids = [tile(0, [0, 0, 150, 200]), tile(15, [150, 0, 300, 200]), { image: 0, first: 30, rows: 2, cols: 2, newline: false, box: [0, 0, 300, 200] }];
  const lattices = latticesOf(grids, [[width, height]]);
  assert.equal(lattices.length, 2);
  assert.equal(finestOf(lattices), 0);
  assert.equal(lattices[0].cut, true);
  for (const lattice of lattices) {
    for (let row = 0; row < lattice.rows; row++) for (let col = 0; col < lattice.cols; col++) {
      const token = lattice.token(row, col), [left, top, right, bottom] = lattice.rectangle(row, col);
      assert.deepEqual(lattice.cell(token), [row, col]);
      assert.equal(lattice.tokenAt((left + right) / 2, (top + bottom) / 2), token);
    }
  }
  assert.equal(lattices[0].cell(4), null, "a newline has no cell");
  assert.equal(lattices[0].tokenAt(-1, 5), -1);
  assert.equal(new Lattice([grids[2]]).tokens.length, 4);
});
