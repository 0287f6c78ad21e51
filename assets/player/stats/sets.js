// Sets of image tokens and what attention concentrates on: functions of numbers (A-VL, Equation 2 and Figures 1, 3, 4 and 5).

import { unpackWords, wordsOf } from "../trace/codec.js";

/** @param {number} word */
function bitsIn(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return (((word + (word >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** Members of a set. @param {Uint32Array} set */
export function sizeOf(set) {
  let size = 0;
  for (let i = 0; i < set.length; i++) size += bitsIn(set[i]);
  return size;
}

/** PPCI (Equation 2): share of one set that is also in the other, null for an empty one. @param {Uint32Array} a @param {Uint32Array} b */
export function overlapOf(a, b, size = sizeOf(a)) {
  let both = 0;
  for (let i = 0; i < a.length; i++) both += bitsIn(a[i] & b[i]);
  return size ? both / size : null;
}

/**
 * The best p % of a score vector. Ties go to the lower position; what was not read (0) or not told (NaN) is never in it.
 * @param {Float32Array} values
 * @param {number} percent
 */
export function topShare(values, percent) {
  const n = values.length, count = Math.ceil(percent * n / 100 - 1e-9); // guarded against the float error of 0.07 * 100
  const order = [...values.keys()].filter((i) => values[i] > 0).sort((a, b) => values[b] - values[a] || a - b);
  const chosen = new Uint8Array(n);
  for (const i of order.slice(0, count)) chosen[i] = 1;
  return chosen;
}

/** Cumulative attention by share of the tokens, best first; entry i holds the best i + 1 tokens. @param {Float32Array} values */
export function concentration(values) {
  const sorted = Float32Array.from(values).sort().reverse(), total = sorted.reduce((a, b) => a + b, 0);
  let sum = 0;
  return Array.from(sorted, (value) => { sum += value; return total > 0 ? sum / total : 0; });
}

/** Smallest share of the tokens that holds 80 % of the attention. @param {number[]} curve of concentration() */
export function sparsityOf(curve) {
  const at = curve.findIndex((sum) => sum >= 0.8);
  return at < 0 ? null : (at + 1) / curve.length;
}

/** Mean of the values that are there, null without any. @param {(number | null | undefined)[]} values */
export function meanOf(values) {
  let sum = 0, n = 0;
  for (const value of values) if (value !== null && value !== undefined) { sum += value; n++; }
  return n ? sum / n : null;
}

/** Sets of every layer, choice by choice: what the policy chose ("core"), or the top p % of recorded scores. */
export class Choices {
  /** @param {import("../trace/run.js").Run} run @param {number} armIndex @param {"core" | number} kind */
  constructor(run, armIndex, kind) {
    this.run = run;
    this.arm = run.arms[armIndex];
    this.kind = kind;
    /** @type {Uint32Array[][]} */ this.bits = [];
    /** @type {(number | null)[][]} */ this.rows = [];
    this._between = { at: -1, matrix: /** @type {(number | null)[][]} */ ([]) };
  }

  /** Number of choices. */
  get total() { return this.kind === "core" ? this.arm.sets.length : this.arm.scores.length; }

  /** Token after which choice c was made. @param {number} c @returns {number} */
  t(c) { return this.kind === "core" ? this.arm.sets[c].t : this.arm.scores[c].t; }

  /** The choice in force when step t reads. @param {number} t */
  at(t) { return this.kind === "core" ? this.arm.setsIndex(t) : this.arm.scoresIndex(t); }

  /** @param {number} c */
  _bits(c) {
    const { run, arm, kind } = this, { layers, n_image: n } = run.start, all = Array.from({ length: layers }, (_, layer) => layer);
    if (kind !== "core") {
      const none = new Float32Array(n);
      return all.map((layer) => wordsOf(topShare(run.scoresAt(arm.index, this.t(c), layer)?.values || none, kind)));
    }
    const packed = arm.sets[c].core || arm.sets[c].stored;
    return all.map((layer) => (packed ? unpackWords(packed[layer], n) : wordsOf(new Uint8Array(n).fill(1))));
  }

  /** Work on until the budget is used; true when all is there. @param {number} ms */
  advance(ms) {
    const began = performance.now();
    while (this.rows.length < this.total) {
      const bits = this._bits(this.rows.length);
      this.bits.push(bits);
      this.rows.push(bits.map((one, layer) => overlapOf(this.bits[0][layer], one)));
      if (performance.now() - began > ms) break;
    }
    return this.rows.length >= this.total;
  }

  /** Overlap of every two layers. @param {number} c */
  between(c) {
    const bits = this.bits[c];
    if (!bits) return [];
    if (this._between.at !== c) {
      const sizes = bits.map(sizeOf);
      this._between = { at: c, matrix: bits.map((a, i) => bits.map((b) => overlapOf(a, b, sizes[i]))) };
    }
    return this._between.matrix;
  }

  /** Percent of the image tokens in the sets of one choice, mean over the layers. @param {number} c */
  percent(c) {
    const bits = this.bits[c];
    return bits ? 100 * Number(meanOf(bits.map(sizeOf))) / this.run.start.n_image : null;
  }
}
