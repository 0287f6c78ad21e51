// The model behind the player: events in, questions about (arm, step, layer) out. It draws nothing.

import { unpackBits, unpackScores } from "./codec.js";
import { median } from "../stats/times.js";

// classes of an image token in one layer
export const MINOR = 0;
export const SECONDARY = 1;
export const CORE = 2;
export const PRUNED = 3;

/** @typedef {Record<string, any>} Event as avl/trace/events.py describes them */

/** One policy's share of a run. Entry t of each list belongs to token t; t = 0 is prefill. */
export class Arm {
  /** @param {number} index @param {any} spec of the start event */
  constructor(index, spec) {
    this.index = index;
    this.spec = spec;
    /** @type {Event | null} */ this.prefill = null;
    /** @type {Event | null} */ this.end = null;
    /** @type {string | null} */ this.error = null;
    /** @type {Event | null} */ this.agreement = null;
    /** @type {number[]} */ this.tokens = [];
    /** @type {string[]} */ this.texts = [];
    /** @type {number[]} */ this.ms = [];
    /** @type {number[]} */ this.clock = [];
    /** @type {number[]} */ this.storedBytes = [];
    /** @type {number[]} */ this.readBytes = [];
    /** @type {number[]} */ this.stored = [];
    /** @type {number[]} */ this.read = [];
    /** @type {boolean[]} */ this.update = [];
    /** @type {{ t: number, stored: string[] | null, core: string[] | null }[]} */ this.sets = [];
    /** @type {Event[]} */ this.scores = [];
    /** @type {Event[]} */ this.textSets = [];
    /** @type {Event[]} */ this.repeats = [];
    /** @type {Uint8Array | null} */ this.pruned = null;
    /** @type {(Uint8Array | undefined)[]} */ this._spread = [];
    /** @type {Map<number, Uint8Array>} */ this._decoded = new Map();
    /** @type {Map<string, Float32Array>} */ this._scores = new Map();
  }

  get isFull() { return this.spec.policy.name === "Full"; }

  get last() { return this.tokens.length - 1; }

  get clockNow() { return this.clock.length ? this.clock[this.clock.length - 1] : 0; }

  stepMs(upTo = this.last) { return this.ms.slice(1, upTo + 1); }

  /** Mean over the decode steps, null without any. @param {number[]} list */
  meanBytes(list, upTo = this.last) {
    const values = list.slice(1, upTo + 1);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  }

  /** Index of the last token that is finished by clockMs, -1 if none. @param {number} clockMs */
  stepAt(clockMs) { return lastWhere(this.clock.length, (at) => this.clock[at] <= clockMs); }

  /** The answer. */
  get text() { return this.end ? this.end.text : this.texts.join(""); }

  /** Whether tokens dropped in prefill are missing there; recordings from before this was told show them as evicted after it. @param {number} layer */
  prunedIn(layer) { return Number.isInteger(this.spec.pruned_from) && layer >= this.spec.pruned_from; }

  /** Means over the first steps, tokens of one row in all layers; null where a recording lacks them. @param {number} steps */
  predicted(steps) {
    const told = (this.spec.predicted || []).slice(0, steps);
    if (steps < 1 || told.length < steps) return null;
    const [stored, read] = [0, 1].map((kind) => told.reduce((/** @type {number} */ total, /** @type {number[]} */ step) => total + step[kind], 0) / steps);
    return { stored, read };
  }

  /** The sets that step t reads by: the latest chosen before it (for t = 0: those that prefill chose). @param {number} t */
  setsIndex(t) { return lastWhere(this.sets.length, (at) => this.sets[at].t < Math.max(t, 1)); }

  /** The recorded pass in force at step t, -1 if none. @param {number} t */
  scoresIndex(t) { return lastWhere(this.scores.length, (at) => this.scores[at].t <= t); }
}

/** Last index below n for which a condition holds that holds up to some index and not after; -1 if none. @param {number} n @param {(at: number) => boolean} holds */
function lastWhere(n, holds) {
  let low = -1, high = n - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (holds(middle)) low = middle; else high = middle - 1;
  }
  return low;
}

/** A run: one arm per policy, whatever their number. */
export class Run {
  constructor() {
    /** @type {any} */ this.start = null;
    /** @type {Arm[]} */ this.arms = [];
    /** @type {Event[]} */ this.readings = [];
    /** @type {string[]} */ this.warnings = [];
    /** @type {string | null} */ this.error = null;
    /** @type {string[]} */ this.images = [];
    /** @type {Record<string, any>} */ this.meta = {};
    this.count = 0;
    this.joined = false; // another page asked for it
  }

  /** @param {Event} event */
  push(event) {
    this.count++;
    const arm = this.arms[event.arm];
    if (arm) this._ofArm(arm, event);
    switch (event.kind) {
      case "start":
        this.start = event;
        this.arms = event.arms.map((/** @type {any} */ spec, /** @type {number} */ index) => new Arm(index, spec));
        break;
      case "reading":
        this.readings.push(event);
        break;
      case "warning":
        this._warn(arm && this.start.turn > 1 ? `${arm.spec.label}: ${event.message}` : event.message);
        break;
      case "error":
        this.error = event.message;
        break;
    }
  }

  /** @param {Arm} arm @param {Event} event */
  _ofArm(arm, event) {
    switch (event.kind) {
      case "prefill":
        arm.prefill = event;
        this._token(arm, { ...event, t: 0, clock_ms: event.ms, read_bytes: null, read: null, update: false, stored: sum(event.stored) });
        break;
      case "step":
        this._token(arm, event);
        break;
      case "sets": {
        const before = arm.sets[arm.sets.length - 1];
        if (event.pruned) arm.pruned = unpackBits(event.pruned, this.start.n_image);
        arm.sets.push({ t: event.t, stored: event.stored || (before && before.stored) || null, core: event.core });
        break;
      }
      case "scores":
        arm.scores.push(event);
        break;
      case "text":
        arm.textSets.push(event);
        break;
      case "agreement":
        arm.agreement = event;
        break;
      case "repeat":
        arm.repeats.push(event);
        break;
      case "error":
        arm.error = event.message;
        break;
      case "end":
        arm.end = event;
        break;
    }
  }

  /** What holds for both arms is said once. @param {string} text */
  _warn(text) { if (!this.warnings.includes(text)) this.warnings.push(text); }

  /** @param {Arm} arm @param {Event} event */
  _token(arm, event) {
    const { t } = event;
    arm.tokens[t] = event.token;
    arm.texts[t] = event.text;
    arm.ms[t] = event.ms;
    arm.clock[t] = event.clock_ms;
    arm.storedBytes[t] = event.stored_bytes;
    arm.readBytes[t] = event.read_bytes;
    arm.stored[t] = event.stored;
    arm.read[t] = event.read;
    arm.update[t] = event.update;
  }

  get finished() { return this.arms.length > 0 && this.arms.every((arm) => arm.end) || Boolean(this.error); }

  get last() { return this.arms.reduce((most, arm) => Math.max(most, arm.last), -1); }

  /** The arm whose prompt is processed now, -1 if none: prompts come one after the other, in isolated mode each after the answer before. */
  get prefilling() {
    const at = this.arms.findIndex((arm) => !arm.end && (this.start.mode === "isolated" || !arm.prefill));
    return at >= 0 && !this.arms[at].prefill ? at : -1;
  }

  get clockEnd() { return this.arms.reduce((most, arm) => Math.max(most, arm.clockNow), 0); }

  /** Bytes that full attention holds, and reads, at step t of all rows; arms of a later turn have prompts of their own. @param {number} t @param {Arm} [arm] */
  fullBytes(t, arm) {
    const start = this.start;
    return start.token_bytes * (start.n_image + ((arm && arm.spec.n_text) ?? start.n_text) + t) * start.batch;
  }

  /** @param {number} steps @param {Arm} [arm] */
  meanFullBytes(steps, arm) { return steps < 1 ? this.fullBytes(0, arm) : this.fullBytes((steps + 1) / 2, arm); }

  /** Share of what full attention holds, mean over the steps. @param {Arm} arm @param {number[]} list */
  meanShare(arm, list, upTo = arm.last) {
    const mean = arm.meanBytes(list, upTo);
    return mean === null ? null : mean / this.meanFullBytes(upTo, arm);
  }

  /**
   * Tokens that two arms agree on before their first difference.
   * @param {Arm | undefined} a
   * @param {Arm | undefined} b
   * @returns {{ same: number, differs: boolean } | null} null while there is nothing to compare
   */
  commonPrefix(a, b) {
    if (!a || !b) return null;
    const shared = Math.min(a.tokens.length, b.tokens.length);
    for (let t = 0; t < shared; t++) if (a.tokens[t] !== b.tokens[t]) return { same: t, differs: true };
    // one arm ended where the other went on: that is a difference too
    const shorter = a.tokens.length > b.tokens.length ? b : a;
    return { same: shared, differs: a.tokens.length !== b.tokens.length && shorter.end?.reason === "eos" };
  }

  /** Class of each image token in one layer; shared between calls, not to be written to. @param {number} armIndex @param {number} t @param {number} layer */
  classes(armIndex, t, layer) {
    const arm = this.arms[armIndex], n = this.start.n_image, at = arm.setsIndex(t), key = at * 4096 + layer;
    const known = arm._decoded.get(key);
    if (known) return known;
    const found = new Uint8Array(n), sets = at < 0 ? null : arm.sets[at];
    if (!sets || !sets.stored) {
      // no sets: every image token is stored, and read, as long as the arm exists
      found.fill(CORE);
    } else {
      const stored = unpackBits(sets.stored[layer], n);
      const core = sets.core ? unpackBits(sets.core[layer], n) : stored;
      const pruned = arm.prunedIn(layer) ? arm.pruned : null;
      for (let i = 0; i < n; i++) found[i] = stored[i] ? (core[i] ? CORE : SECONDARY) : pruned && pruned[i] ? PRUNED : MINOR;
    }
    if (arm._decoded.size > 6000) arm._decoded.clear();
    arm._decoded.set(key, found);
    return found;
  }

  /** Image tokens that a layer holds whatever they score, null where scores alone choose. @param {number} armIndex @param {number} layer */
  spread(armIndex, layer) {
    const arm = this.arms[armIndex], packed = (arm.spec.spread || [])[layer];
    return packed ? (arm._spread[layer] ||= unpackBits(packed, this.start.n_image)) : null;
  }

  /** What the update before step t changed in the core: 1 gained, -1 lost, 0 no change. @param {number} armIndex @param {number} t @param {number} layer */
  drift(armIndex, t, layer) {
    const arm = this.arms[armIndex], n = this.start.n_image, at = arm.setsIndex(t), change = new Int8Array(n);
    if (at < 1) return change;
    const now = this.classes(armIndex, t, layer), before = this.classes(armIndex, arm.sets[at - 1].t + 1, layer);
    for (let i = 0; i < n; i++) change[i] = Number(now[i] === CORE) - Number(before[i] === CORE);
    return change;
  }

  /** In how many layers each token is core. @param {number} armIndex @param {number} t */
  consensus(armIndex, t) {
    const n = this.start.n_image, votes = new Uint16Array(n);
    for (let layer = 0; layer < this.start.layers; layer++) {
      const classes = this.classes(armIndex, t, layer);
      for (let i = 0; i < n; i++) votes[i] += classes[i] === CORE ? 1 : 0;
    }
    return votes;
  }

  /** Tokens of each class. @param {number} armIndex @param {number} t @param {number} layer */
  counts(armIndex, t, layer) {
    const counts = [0, 0, 0, 0];
    for (const value of this.classes(armIndex, t, layer)) counts[value]++;
    return counts;
  }

  /** Time per token of this run and of each repetition of it. @param {number} armIndex @returns {number[]} */
  medians(armIndex) {
    const arm = this.arms[armIndex];
    return [median(arm.stepMs()), ...arm.repeats.map((event) => event.median_ms)].filter((ms) => ms !== null && ms !== undefined);
  }

  /**
   * Recorded attention of the pass in force at step t.
   * @param {number} armIndex
   * @param {number} t
   * @param {number} layer -1: mean over the layers
   * @returns {{ t: number, values: Float32Array, rest: number | null } | null} tokens that are not told are NaN; rest: their sum
   */
  scoresAt(armIndex, t, layer) {
    const arm = this.arms[armIndex], at = arm.scoresIndex(t);
    if (at < 0) return null;
    const event = arm.scores[at], key = `${at}/${layer}`, n = this.start.n_image;
    let values = arm._scores.get(key);
    if (!values) {
      values = layer >= 0 ? unpackScores(event.image[layer], n) : event.mean ? unpackScores(event.mean, n) : meanScores(event.image, n);
      if (arm._scores.size > 64) arm._scores.clear();
      arm._scores.set(key, values);
    }
    return { t: event.t, values, rest: layer >= 0 && event.rest ? event.rest[layer] : null };
  }
}

/** @param {number[]} values */
function sum(values) { return values.reduce((a, b) => a + b, 0); }

/** Recordings from before the mean was told have every token. @param {string[]} layers @param {number} n */
function meanScores(layers, n) {
  const mean = new Float32Array(n);
  for (const packed of layers) unpackScores(packed, n).forEach((value, i) => { mean[i] += value / layers.length; });
  return mean;
}
