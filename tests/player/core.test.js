// The store, the numbers in words, zooming, links.

import assert from "node:assert/strict";
import test from "node:test";

import { byteUnit, counted, formatBytes, formatElapsed, formatMs, formatPercent, listed, ranges } from "../../assets/player/core/format.js";
import { Store } from "../../assets/player/core/store.js";
import { moved, zoomed } from "../../assets/player/charts/zoom.js";
import { niceStep } from "../../assets/player/charts/track.js";
import { outliersAbove } from "../../assets/player/panels/latency.js";
import { fitting } from "../../assets/player/settings/arm.js";
import { fromLink, toLink } from "../../assets/player/settings/link.js";

/** Animation frames that the test lets pass. */
function frames() {
  const waiting = [];
  globalThis.requestAnimationFrame = (callback) => waiting.push(callback);
  return () => { for (const callback of waiting.splice(0)) callback(0); };
}

test("subscribers hear once per frame, of their own keys, and only of changes", () => {
  const next = frames(), store = new Store({ a: 1, b: 2, run: null }), heard = [];
  store.subscribe(["a", "run"], (changed) => heard.push([...changed]));
  store.set({ a: 2 });
  store.set({ a: 3, b: 3 });
  assert.equal(heard.length, 0, "before the frame");
  next();
  assert.deepEqual(heard, [["a", "b"]]);
  store.set({ a: 3 });
  store.set({ b: 4 });
  next();
  assert.equal(heard.length, 1);
  store.touch("run");
  next();
  assert.equal(heard.length, 2);
});

test("the state is written through the store alone", () => {
  frames();
  const store = new Store({ a: 1 });
  assert.throws(() => { store.state.a = 2; }, /through store.set/);
  assert.throws(() => store.set({ other: 1 }), /no other/);
  assert.equal(store.state.a, 1);
});

test("numbers in words", () => {
  assert.equal(formatMs(null), "–");
  assert.deepEqual([0.5, 12.34, 345.6, 12345].map(formatMs), ["0.50 ms", "12.3 ms", "346 ms", "12.3 s"]);
  assert.deepEqual([512, 2 ** 20 * 3.82, 2 ** 30 * 1.5].map(formatBytes), ["0.50 KiB", "3.82 MiB", "1.50 GiB"]);
  assert.equal(byteUnit(2 ** 21).name, "MiB");
  assert.deepEqual([0.05, 0.48, 1].map(formatPercent), ["5.0 %", "48 %", "100 %"]);
  assert.equal(formatElapsed(1234), "1.2 s");
  assert.equal(ranges([0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
  assert.equal(listed(["a", "b", "c"]), "a, b and c");
  assert.equal(counted(1), "1 token");
  assert.deepEqual([0.3, 1.1, 4, 7].map(niceStep), [0.5, 2, 5, 10]);
});

test("zooming keeps the point under the pointer and never leaves the frame", () => {
  const frame = [100, 0, 500, 400];
  const once = zoomed(null, frame, 2, [200, 100]);
  assert.deepEqual(once, [150, 50, 350, 250]);
  assert.equal(zoomed(once, frame, 0.4, [200, 100]), null, "out again");
  assert.deepEqual(moved(once, frame, -1000, 1000), [100, 200, 300, 400]);
  const deep = zoomed(null, frame, 1e6, [100, 0]);
  assert.equal(deep[2] - deep[0], 400 / 16);
});

test("an outlier is cut off, a usual spread is not", () => {
  const usual = Array.from({ length: 100 }, (_, i) => 10 + (i % 7));
  assert.equal(outliersAbove(usual), null);
  assert.equal(outliersAbove([...usual, 1200]), 24);
  assert.equal(outliersAbove([1, 1, 1200]), null, "three steps have no usual");
});

test("how many rows fit", () => {
  assert.deepEqual(fitting({ mode: "race" }, [60, 40], 90, 1000), { row: 100, rows: 10 });
  assert.deepEqual(fitting({ mode: "race" }, Array(8).fill(60), 90, 1000), { row: 480, rows: 2 });
  assert.deepEqual(fitting({ mode: "isolated" }, [60, 40], 90, 1000), { row: 60, rows: 16 });
  // agreement needs a row of full attention once the answers are done
  assert.deepEqual(fitting({ mode: "isolated", agreement: true }, [60, 40], 90, 1000), { row: 60, rows: 16 });
  assert.deepEqual(fitting({ mode: "isolated", agreement: true }, [60, 40], 90, 80), { row: 90, rows: 0 });
});

const parameter = (key, more = {}) => ({ key, low: 1, high: 100, step: 1, off: true, default: 50, choices: [], ...more });
const CATALOG = {
  Full: { parameters: [] },
  AVL: { parameters: [parameter("S", { off: false, default: 45 }), parameter("C", { default: 30 }), parameter("update", { choices: ["before", "after"], default: "before" })] },
  H2O: { parameters: [parameter("keep", { off: false })] },
};
const SETTINGS = {
  arms: [{ policy: "Full" }, { policy: "AVL", S: 45, C: 30, update: "before" }], max_new_tokens: 64, mode: "race", batch: 1, temperature: 0, top_p: 1, seed: 0,
  repeats: 1, scores: false, agreement: false,
};
const ABOUT = { max_tokens: 256, max_arms: 8 }, MODES = ["race", "isolated"];

test("a link restores the settings of up to eight arms", () => {
  const settings = {
    ...SETTINGS, arms: [{ policy: "Full" }, { policy: "AVL", S: 20, C: null, update: "after" }, { policy: "H2O", keep: 33 }, { policy: "AVL", S: 60, C: 10, update: "before" }],
    max_new_tokens: 99, mode: "isolated", batch: 4, temperature: 0.7, top_p: 0.9, seed: 5, repeats: 3, scores: true, agreement: true,
  };
  const text = toLink(settings, CATALOG, "ex=sea", " What? ");
  assert.match(text, /^ex=sea&q=What%3F&a=Full&b=AVL&S=20&C=off&update=after&c=H2O&c.keep=33&d=AVL&d.S=60/);
  assert.deepEqual(fromLink(SETTINGS, new URLSearchParams(text), CATALOG, ABOUT, MODES), settings);
});

test("what a link says wrong is ignored", () => {
  const link = new URLSearchParams("a=__proto__&b=AVL&S=abc&C=999&n=99999&B=-3&mode=other&temp=x&seed=1e9&h=H2O");
  const made = fromLink(SETTINGS, link, CATALOG, ABOUT, MODES);
  assert.deepEqual(made.arms, [{ policy: "Full" }, { policy: "AVL", S: 45, C: 45, update: "before" }]);
  assert.equal(made.max_new_tokens, 256);
  assert.deepEqual([made.batch, made.mode, made.temperature, made.seed], [1, "race", 0, 0]);
});
