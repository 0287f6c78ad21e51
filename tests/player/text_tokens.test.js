// Text tokens that a layer lost, followed forward and back; the prompt in order.

import assert from "node:assert/strict";
import test from "node:test";

import { LostText, promptPieces } from "../../assets/player/trace/text.js";

const START = { n_text: 10, limit: 20, layers: 2 };
// layer 0 keeps 0..7 of the prompt, layer 1 all; later each loses one or two
const bits = (kept) => {
  const bytes = [0, 0];
  for (const token of kept) bytes[token >> 3] |= 128 >> (token & 7);
  return btoa(String.fromCharCode(...bytes));
};
const all = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
const EVENTS = [
  { t: 0, kept: [bits(all.slice(0, 8)), bits(all)], gone: [] },
  { t: 3, kept: null, gone: [[2, 11], []] },
  { t: 5, kept: null, gone: [[], [0]] },
  { t: 9, kept: null, gone: [[3], [12, 13]] },
];

/** The tokens that are gone, by going through all events. */
function plainly(layer, t) {
  const gone = new Set();
  for (const event of EVENTS.filter((one) => one.t <= t)) {
    if (event.kept && layer === 0) { gone.add(8); gone.add(9); }
    for (const token of event.gone[layer] || []) gone.add(token);
  }
  return [...gone].sort((a, b) => a - b);
}

test("wherever it jumps, it knows what is gone, and says what changed", () => {
  const lost = new LostText(START, EVENTS), seen = new Set();
  let state = 1;
  for (let i = 0; i < 400; i++) {
    state = (state * 16807) % 2147483647;
    const layer = state % 2, t = (state >> 3) % 12;
    for (const token of lost.moveTo(layer, t)) if (lost.gone[token]) seen.add(token); else seen.delete(token);
    assert.deepEqual([...seen].sort((a, b) => a - b), plainly(layer, t), `layer ${layer}, step ${t}`);
    assert.deepEqual(lost.counts(t), { all: 10 + t, kept: 10 + t - plainly(layer, t).length });
  }
});

test("one step applies one event, however long the run is", () => {
  const events = Array.from({ length: 1000 }, (_, t) => ({ t, kept: null, gone: [[t]] }));
  const lost = new LostText({ n_text: 1000, limit: 1000 }, events);
  lost.moveTo(0, 500);
  assert.deepEqual(lost.moveTo(0, 501), [501]);
  assert.deepEqual(lost.moveTo(0, 500), [501]);
  assert.deepEqual(lost.moveTo(0, 500), []);
});

test("events that come while the run goes on are taken in", () => {
  const events = EVENTS.slice(0, 1), lost = new LostText(START, events);
  assert.deepEqual(lost.moveTo(0, 4), [8, 9]);
  events.push(EVENTS[1]);
  assert.deepEqual(lost.moveTo(0, 4), [2, 11]);
});

test("without events every text token is held", () => {
  const lost = new LostText(START, []);
  assert.deepEqual(lost.moveTo(1, 7), []);
  assert.deepEqual(lost.counts(7), { all: 17, kept: 17 });
});

test("the prompt has its pictures where they stand", () => {
  const start = { n_text: 4, spans: [["system", 0, 2], ["image", 2, 8], ["between", 8, 9], ["image", 9, 15], ["instruction", 15, 16]] };
  assert.deepEqual(promptPieces(start), [{ token: 0 }, { token: 1 }, { images: 6 }, { token: 2 }, { images: 6 }, { token: 3 }]);
  assert.deepEqual(promptPieces({ n_text: 2, spans: [["image", 0, 6]] }), [{ token: 0 }, { token: 1 }], "spans that do not fit say nothing");
});
