// Runs of many arms: which two are shown, the table of all, agreement with full attention, and the settings of many.

import assert from "node:assert/strict";
import test from "node:test";

import { shortened } from "../../assets/player/charts/track.js";
import { formatAgreed } from "../../assets/player/core/format.js";
import { progressOf, underWay } from "../../assets/player/labels.js";
import { referenceOf, sameAs, sortedBy } from "../../assets/player/panels/policies.js";
import { matchOf, nameOf, settingsInWords } from "../../assets/player/settings/arm.js";
import { choose, including, openingPair } from "../../assets/player/state.js";
import { agreementOf, strengthOf } from "../../assets/player/stats/agreement.js";
import { Run } from "../../assets/player/trace/run.js";

const NAMES = ["Full", "H2O", "AVL", "AVL"];

function runOf(names = NAMES) {
  const run = new Run();
  run.push({
    kind: "start", arms: names.map((name) => ({ label: name, title: name, policy: { name } })), n_image: 20, n_text: 10, layers: 2, token_bytes: 8, batch: 1, limit: 4, grids: [], images: [],
  });
  return run;
}

function answer(run, arm, tokens, reason = "length") {
  tokens.forEach((token, t) => run.push(t ? { kind: "step", arm, t, token, text: "x", ms: 1, clock_ms: t, stored_bytes: 1, read_bytes: 1 } : { kind: "prefill", arm, ms: 1, token, text: "x", stored: [1], stored_bytes: 1 }));
  if (reason) run.push({ kind: "end", arm, reason, text: "x" });
}

test("a run opens with full attention and A-VL, or with what was chosen", () => {
  const pair = (names, wanted = null) => openingPair(runOf(names).arms, wanted);
  assert.deepEqual(pair(["Full", "AVL"]), [0, 1]);
  assert.deepEqual(pair(["H2O", "Full"], [1, 0]), [0, 1], "two are always both shown, in their order");
  assert.deepEqual(pair(["Full"]), [0, 0]);
  assert.deepEqual(pair(NAMES), [0, 2]);
  assert.deepEqual(pair(["H2O", "SnapKV", "Full"]), [2, 0]);
  assert.deepEqual(pair(["H2O", "SnapKV", "FastV"]), [0, 1]);
  assert.deepEqual(pair(["Full", "Full", "Full"]), [0, 1], "never one arm twice");
  assert.deepEqual(pair(NAMES, [3, 1]), [3, 1]);
  for (const wrong of [[1, 1], [0, 4], [0, 99]]) assert.deepEqual(pair(NAMES, wrong), [0, 2]);
});

test("the two that are shown always differ", () => {
  assert.deepEqual(choose([0, 2], 0, 3), [3, 2]);
  assert.deepEqual(choose([0, 2], 1, 3), [0, 3]);
  assert.deepEqual(choose([0, 2], 0, 2), [2, 0], "B's arm as A: they swap");
  assert.deepEqual(choose([0, 2], 1, 0), [2, 0]);
  assert.deepEqual(choose([0, 2], 0, 0), [0, 2]);
  assert.deepEqual(including([0, 2], 2), [0, 2]);
  assert.deepEqual(including([0, 2], 5), [0, 5]);
});

test("answers are compared with full attention's, or with the first", () => {
  const run = runOf(), cells = () => run.arms.map((arm) => sameAs(run, arm, referenceOf(run)));
  assert.deepEqual(cells().map(({ text }) => text), ["–", "–", "–", "–"]);
  answer(run, 0, [1, 2, 3], "eos");
  answer(run, 1, [1, 2, 3], "eos");
  answer(run, 2, [1, 5]);
  answer(run, 3, [1, 2], null);
  assert.deepEqual(cells().map(({ text, below, order }) => [text, below, order]), [["–", undefined, -1], ["✓ identical", undefined, Infinity], ["✗ differs", "at token 2", 1], ["same", "for 2 tokens", 2]]);
  run.push({ kind: "end", arm: 3, reason: "eos", text: "x" });
  assert.equal(cells()[3].text, "✗ differs", "one that ends earlier differs");
  const plain = runOf(["H2O", "AVL", "FastV"]);
  assert.equal(referenceOf(plain), plain.arms[0]);
});

test("rows sort by value both ways, and what has none stays last", () => {
  assert.deepEqual(sortedBy([3, null, 1, 2, 1], false), [2, 4, 3, 0, 1]);
  assert.deepEqual(sortedBy([3, null, 1, 2, 1], true), [0, 3, 2, 4, 1]);
  assert.deepEqual(sortedBy([0, Infinity, -1], true), [1, 0, 2]);
});

test("how far each arm is", () => {
  const run = runOf(), state = { run, state: "running", now: 1500, eventAt: 1000 }, said = () => run.arms.map((arm) => progressOf(state, arm));
  answer(run, 0, [1, 2], null);
  assert.deepEqual(said(), ["token 2 of 4", "prefill … 0.5 s", "waiting", "waiting"]);
  run.start.mode = "isolated";
  assert.deepEqual(said().slice(0, 2), ["token 2 of 4", "waiting"], "its prompt comes after the answer before");
  run.push({ kind: "end", arm: 0, reason: "stopped", text: "x" });
  assert.equal(said()[1], "prefill … 0.5 s");
  run.push({ kind: "end", arm: 1, reason: "stopped", text: "" });
  assert.deepEqual(said().slice(0, 2), ["stopped, 2 tokens", "not started"]);
  state.state = "lost";
  assert.equal(said()[3], "not started", "a lost server starts nothing");
});

test("the status names the policy that the device works on", () => {
  const run = runOf(), said = () => underWay(run, 500);
  assert.equal(said(), "Prefill: reading the picture and the question … 0.5 s");
  answer(run, 0, [1], null);
  assert.equal(said(), "Prefill, policy 2 of 4: reading the picture and the question … 0.5 s", "the first token of one is not yet decoding");
  for (const arm of [1, 2, 3]) answer(run, arm, [1, 2], null);
  assert.equal(said(), "Decoding: token 2 of at most 4.");
  run.start.mode = "isolated";
  assert.equal(said(), "Decoding, policy 1 of 4: token 1 of at most 4.");
  run.push({ kind: "end", arm: 0, reason: "eos", text: "x" });
  assert.equal(said(), "Decoding, policy 2 of 4: token 2 of at most 4.");
  const one = runOf(["AVL"]);
  one.start.mode = "single";
  assert.equal(underWay(one, 0), "Prefill: reading the picture and the question … 0.0 s");
});

test("agreement: share, mean divergence, perplexities", () => {
  const run = runOf();
  assert.equal(agreementOf(run.arms[2]), null);
  run.push({ kind: "agreement", arm: 2, reference: 0, tokens: [1, 2, 3, 4], texts: ["a", "b", "c", "d"], top: [null, 9, null, null], top_texts: [null, "x", null, null], kl: [0, 1, 0, 1], nll: [0, 2, 0, 0], full_nll: [0, 0, 0, 0] });
  assert.deepEqual(agreementOf(run.arms[2]), { share: 0.75, kl: 0.5, perplexity: Math.exp(0.5), full: 1, n: 4 });
  assert.deepEqual([1, 255 / 256, 1999 / 2000, 0.994, 0.5].map(formatAgreed), ["100 %", "99.6 %", "99.9 %", "99 %", "50 %"], "one token that differs is not 100 %");
  assert.deepEqual([0, 0.5, 2, 99, -1].map(strengthOf), [0, 0.5, 1, 1, 0]);
});

const CATALOG = {
  Full: { title: "Full attention", budget: false, parameters: [] },
  AVL: { title: "A-VL", budget: true, parameters: [{ key: "S", choices: [] }, { key: "C", choices: [] }, { key: "update", choices: ["every", "after"], default: "every" }] },
  H2O: { title: "H2O", budget: true, parameters: [{ key: "keep", choices: [] }] },
};

test("a policy is offered the size of the first A-VL, else of the first with a budget", () => {
  const of = (...names) => names.map((_, index) => matchOf(names.map((policy) => ({ policy })), CATALOG, index));
  assert.deepEqual(of("Full", "AVL"), [-1, -1]);
  assert.deepEqual(of("H2O", "AVL"), [1, 0]);
  assert.deepEqual(of("Full", "H2O", "H2O", "AVL", "AVL"), [-1, 3, 3, 4, 3]);
  assert.deepEqual(of("H2O", "Full", "H2O"), [2, -1, 0]);
  const arms = ["AVL", "H2O", "AVL"].map((policy) => ({ policy }));
  assert.deepEqual(arms.map((_, index) => nameOf(arms, CATALOG, index)), ["policy 1", "H2O", "policy 3"], "equal titles would not tell them apart");
});

test("folded settings are one line", () => {
  assert.equal(settingsInWords(CATALOG, { policy: "AVL", S: 45, C: null, update: "every" }), "S 45");
  assert.equal(settingsInWords(CATALOG, { policy: "AVL", S: 45, C: 0, update: "after" }), "S 45 · C 0 · update after");
});

test("a lane's name is cut to its room", () => {
  const width = (text) => text.length;
  assert.equal(shortened("StreamingLLM", 12, width), "StreamingLLM");
  assert.equal(shortened("A-VL S=45 C=30", 11, width), "A-VL S=45…");
  assert.equal(shortened("A-VL", 0, width), "A…");
});
