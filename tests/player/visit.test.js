// The visitor's runs: keys in the browser, and two runs side by side.

import assert from "node:assert/strict";
import test from "node:test";

import { comparison } from "../../assets/player/stats/compare.js";
import { Visit, goesOn, keysFrom, withKey } from "../../assets/player/visit.js";

test("keys are the newest first, each once, 24 at most, whatever is stored", () => {
  assert.deepEqual(withKey(["b", "a"], "a"), ["a", "b"]);
  const many = Array.from({ length: 40 }, (_, i) => `k${i}`);
  assert.equal(withKey(many, "new").length, 24);
  assert.equal(withKey(many, "new")[0], "new");
  assert.equal(keysFrom(JSON.stringify(many)).length, 24);
  for (const text of ["", "{", "null", "3", "\"x\"", "{\"a\":1}"]) assert.deepEqual(keysFrom(text), []);
  assert.deepEqual(keysFrom(JSON.stringify([1, null, "a", "a", ["b"], "", "x".repeat(65), "c"])), ["a", "c"]);
});

/** A browser's memory and a server that has some runs. */
function setting(stored, there) {
  const memory = { "avl-runs": JSON.stringify(stored) };
  globalThis.localStorage = { getItem: (key) => memory[key] ?? null, setItem: (key, text) => { memory[key] = text; } };
  const store = { state: { visit: [] }, set(values) { Object.assign(this.state, values); } };
  const server = { history: async ({ runs }) => { if (!there) throw new Error("away"); return runs.filter((key) => there.includes(key)).map((run) => ({ run, state: "done" })); } };
  return { memory, store, there, visit: new Visit(store, server) };
}

test("runs that the server no longer has are forgotten; said only if they left while the page was open", async () => {
  const { memory, store, there, visit } = setting(["c", "b", "old"], ["a", "b", "c"]);
  await visit.refresh();
  assert.deepEqual(store.state.visit.map(({ run }) => run), ["c", "b"]);
  assert.equal(visit.expired, 0);
  assert.deepEqual(JSON.parse(memory["avl-runs"]), ["c", "b"]);
  there.splice(there.indexOf("b"), 1);
  await visit.refresh();
  assert.equal(visit.expired, 1);
  assert.deepEqual(JSON.parse(memory["avl-runs"]), ["c"]);
});

test("a server that does not answer takes no run away", async () => {
  const { memory, visit } = setting(["c"], null);
  assert.deepEqual(await visit.refresh(), []);
  assert.deepEqual(JSON.parse(memory["avl-runs"]), ["c"]);
});

test("a browser without memory has no runs", async () => {
  const { visit } = setting([], ["a"]);
  globalThis.localStorage = { getItem() { throw new Error("forbidden"); }, setItem() { throw new Error("forbidden"); } };
  visit.add("a");
  assert.deepEqual(await visit.refresh(), []);
});

test("what goes on", () => assert.deepEqual(["queued", "running", "stopping", "done", "stopped", "failed"].map((state) => goesOn({ state })), [true, true, true, false, false, false]));

test("two runs side by side: what differs, and each policy of both", () => {
  const full = { policy: "Full", title: "Full attention", parameters: { name: "Full" } };
  const avl = (S, C) => ({ policy: "AVL", title: "A-VL", parameters: { name: "AVL", S, C } });
  const a = { question: "What?", pictures: ["sea"], batch: 1, seed: null, arms: [full, avl(45, 30), { policy: "H2O", title: "H2O", parameters: {} }] };
  const b = { question: "Why?", pictures: ["sea"], batch: 1, seed: null, arms: [full, avl(60, 30), avl(20, null)] };
  const { settings, policies } = comparison(a, b);
  assert.deepEqual(settings, [["question", "What?", "Why?"]]);
  assert.deepEqual(policies.map(({ title, a: one, b: other, parameters }) => [title, Boolean(one), Boolean(other), parameters]), [
    ["Full attention", true, true, []], ["A-VL", true, true, [["S", 45, 60]]], ["H2O", true, false, []], ["A-VL", false, true, []],
  ]);
  assert.deepEqual(comparison(a, a).settings, []);
});
