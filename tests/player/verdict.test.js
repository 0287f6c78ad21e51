// What a run shows, in sentences.

import assert from "node:assert/strict";
import test from "node:test";

import { Run } from "../../assets/player/trace/run.js";
import { predicted, rightOrWrong, timesInWords, verdict } from "../../assets/player/verdict.js";

const FULL = { label: "Full attention", title: "Full attention", policy: { name: "Full" }, implementation: "numba" };
const policy = (name, settings = "") => ({ label: `${name} ${settings}`.trim(), title: name, policy: { name }, implementation: "numba", predicted: Array(60).fill([50, 40]) });

/** A run of 30 steps: of each arm its spec, share of full attention's bytes, and ms per step. */
function made(...arms) {
  const run = new Run(), batch = 1, tokenBytes = 1000;
  run.push({ kind: "start", arms: arms.map(([spec]) => spec), n_image: 576, n_text: 24, layers: 8, token_bytes: tokenBytes, batch, limit: 40, grids: [], images: [], model: { device: "cpu" } });
  arms.forEach(([, share, ms], arm) => {
    run.push({ kind: "prefill", arm, ms: 100, token: 1, text: "a", stored: [1], stored_bytes: share * 600000, peak_bytes: 1 });
    for (let t = 1; t < 31; t++) {
      const bytes = share * run.fullBytes(t);
      run.push({ kind: "step", arm, t, token: t, text: "b", ms: ms + 0.01 * (t % 5), clock_ms: 100 + t * ms, stored: 1, read: 1, stored_bytes: bytes, read_bytes: bytes / 2, update: false });
    }
    run.push({ kind: "end", arm, reason: "length", text: "It is RED, of course.", peak_bytes: 1 });
  });
  return run;
}

/** Its sentences, none of which says the same twice. */
function told(run, arms = run.arms) {
  const sentences = verdict(run, arms).split(/(?<=\.) /);
  assert.equal(new Set(sentences).size, sentences.length, sentences.join("\n"));
  return sentences.join(" ");
}

test("two full attentions", () => {
  const text = told(made([FULL, 1, 2], [FULL, 1, 3]));
  assert.match(text, /Both arms are full attention/);
  assert.match(text, /a difference in time is noise/);
  assert.doesNotMatch(text, /stored 100/);
});

test("one policy twice with the same settings", () => {
  const text = told(made([policy("A-VL", "S=45"), 0.5, 2], [policy("A-VL", "S=45"), 0.5, 3]));
  assert.match(text, /Both arms \(A-VL S=45\) stored 50 %/);
  assert.match(text, /noise/);
  assert.doesNotMatch(text, /\(1\) stored/);
});

test("two policies without full attention", () => {
  const text = told(made([policy("H2O"), 0.5, 2], [policy("FastV"), 0.6, 2.5]));
  assert.match(text, /H2O stored 50 %.*FastV stored 60 %/);
  assert.match(text, /H2O stored 83 % of what FastV stored/);
  assert.doesNotMatch(text, /full attention’s/);
});

test("one policy with two settings is named by its settings", () => {
  const text = told(made([policy("A-VL", "S=40"), 0.4, 2], [policy("A-VL", "S=20"), 0.2, 2]));
  assert.match(text, /A-VL S=40 stored/);
  assert.match(text, /A-VL S=20 stored/);
  assert.doesNotMatch(text, /noise/);
});

test("who is faster, and why a policy is slower", () => {
  const fast = made([FULL, 1, 4], [policy("A-VL"), 0.5, 2]);
  assert.match(timesInWords(fast, fast.arms[0], fast.arms[1]), /^A-VL is 1\.99× faster per token than Full attention/);
  assert.match(told(fast), /Repeat the run/);
  const slow = told(made([FULL, 1, 2], [policy("A-VL"), 0.5, 4]));
  assert.match(slow, /Full attention is 1\.99× faster/);
  assert.match(slow, /At batch size 1, decoding is bound by reading the weights/);
  assert.match(told(made([FULL, 1, 2], [policy("A-VL"), 0.5, 2])), /too close to call/);
});

test("too few tokens, a single arm, and what was predicted", () => {
  const empty = new Run();
  empty.push({ kind: "start", arms: [FULL, policy("A-VL")], n_image: 4, n_text: 4, layers: 1, token_bytes: 8, batch: 1, limit: 4, grids: [], images: [], model: {} });
  assert.equal(verdict(empty, empty.arms), "Too few tokens to compare.");
  const one = made([policy("A-VL"), 0.5, 2]);
  assert.equal(told(one), "A-VL stored 50 % and read 25 % of the full KV cache.");
  const found = predicted(one, one.arms[0]);
  assert.equal(found.storedBytes, 50 * 1000 / 8);
  assert.equal(predicted(made([FULL, 1, 2]), made([FULL, 1, 2]).arms[0]), null, "a recording without predictions");
});

test("an answer is right where it holds the expected words, whole", () => {
  const [arm] = made([FULL, 1, 2]).arms;
  assert.equal(rightOrWrong(arm, "red"), "✓ right “red”");
  assert.equal(rightOrWrong(arm, "re"), "✗ not “re”");
});
