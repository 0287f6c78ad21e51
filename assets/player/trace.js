// The model behind the player: events in, questions about (arm, step, layer) out. It draws nothing.

const MINOR = 0, SECONDARY = 1, CORE = 2, PRUNED = 3;
const NO_TEXT = "";

// base64 of numpy.packbits (highest bit first) -> one byte per token
function unpackBits(text, n) {
  const raw = atob(text);
  const bits = new Uint8Array(n);
  for (let i = 0; i < n; i++) bits[i] = (raw.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return bits;
}

// base64 of little-endian float16 -> Float32Array
function unpackScores(text, n) {
  const raw = atob(text);
  const scores = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    const half = raw.charCodeAt(2 * i) | (raw.charCodeAt(2 * i + 1) << 8);
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    scores[i] = half & 0x8000 ? -size : size;
  }
  return scores;
}

class ArmTrace {
  constructor(index, spec) {
    this.index = index;
    this.spec = spec;
    this.prefill = null;
    this.end = null;
    this.error = null;
    // entry t of each list belongs to token t; t = 0 is prefill
    this.tokens = [];
    this.texts = [];
    this.ms = [];
    this.clock = [];
    this.storedBytes = [];
    this.readBytes = [];
    this.stored = [];
    this.read = [];
    this.update = [];
    this.sets = [];
    this.scores = [];
    this.repeats = [];
    this.pruned = null;
    this._decoded = new Map();
  }

  get last() { return this.tokens.length - 1; }

  get clockNow() { return this.clock.length ? this.clock[this.clock.length - 1] : 0; }

  stepMs(upTo = this.last) { return this.ms.slice(1, upTo + 1); }

  meanBytes(list, upTo = this.last) {
    const values = list.slice(1, upTo + 1);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  }

  // index of the last token that is finished by clockMs, -1 if none
  stepAt(clockMs) {
    let low = -1, high = this.last;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.clock[middle] <= clockMs) low = middle; else high = middle - 1;
    }
    return low;
  }

  // a recording from before this was told has no such layer, and shows tokens dropped in prefill as evicted after it
  prunedIn(layer) { return Number.isInteger(this.spec.pruned_from) && layer >= this.spec.pruned_from; }

  // means over the first steps, tokens of one row in all layers; null where a recording lacks them
  predicted(steps) {
    const told = (this.spec.predicted || []).slice(0, steps);
    if (steps < 1 || told.length < steps) return null;
    const [stored, read] = [0, 1].map((kind) => told.reduce((sum, step) => sum + step[kind], 0) / steps);
    return { stored, read };
  }

  // the sets that step t reads by: the latest chosen before it (for t = 0: those that prefill chose)
  setsIndex(t) {
    let low = -1, high = this.sets.length - 1;
    const before = Math.max(t, 1);
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.sets[middle].t < before) low = middle; else high = middle - 1;
    }
    return low;
  }
}

class Run {
  constructor() {
    this.start = null;
    this.arms = [];
    this.readings = [];
    this.warnings = [];
    this.error = null;
    this.images = [];
    this.meta = {};
    this.count = 0;
  }

  push(event) {
    this.count++;
    const arm = this.arms[event.arm];
    switch (event.kind) {
      case "start":
        this.start = event;
        this.arms = event.arms.map((spec, index) => new ArmTrace(index, spec));
        break;
      case "prefill":
        if (!arm) break;
        arm.prefill = event;
        this._token(arm, 0, event.token, event.text, event.ms, event.ms, event.stored_bytes, null, event.stored.reduce((a, b) => a + b, 0), null, false);
        break;
      case "step":
        if (!arm) break;
        this._token(arm, event.t, event.token, event.text, event.ms, event.clock_ms, event.stored_bytes, event.read_bytes, event.stored, event.read, event.update);
        break;
      case "sets": {
        if (!arm) break;
        const before = arm.sets[arm.sets.length - 1];
        if (event.pruned) arm.pruned = unpackBits(event.pruned, this.start.n_image);
        arm.sets.push({ t: event.t, stored: event.stored || (before && before.stored) || null, core: event.core, id: arm.sets.length });
        break;
      }
      case "scores":
        if (arm) arm.scores.push(event);
        break;
      case "repeat":
        if (arm) arm.repeats.push(event);
        break;
      case "reading":
        this.readings.push(event);
        break;
      case "warning":
        if (!this.warnings.includes(event.message)) this.warnings.push(event.message); // what holds for both arms is said once
        break;
      case "error":
        this.error = event.message;
        if (arm) arm.error = event.message;
        break;
      case "end":
        if (arm) arm.end = event;
        break;
    }
  }

  _token(arm, t, token, text, ms, clock, storedBytes, readBytes, stored, read, update) {
    arm.tokens[t] = token;
    arm.texts[t] = text;
    arm.ms[t] = ms;
    arm.clock[t] = clock;
    arm.storedBytes[t] = storedBytes;
    arm.readBytes[t] = readBytes;
    arm.stored[t] = stored;
    arm.read[t] = read;
    arm.update[t] = update;
  }

  get finished() { return this.arms.length > 0 && this.arms.every((arm) => arm.end) || Boolean(this.error); }

  get last() { return this.arms.reduce((most, arm) => Math.max(most, arm.last), -1); }

  get clockEnd() { return this.arms.reduce((most, arm) => Math.max(most, arm.clockNow), 0); }

  // bytes that full attention holds, and reads, at step t of all rows
  fullBytes(t) {
    const start = this.start;
    return start.token_bytes * (start.n_image + start.n_text + t) * start.batch;
  }

  meanFullBytes(steps) {
    return steps < 1 ? this.fullBytes(0) : this.fullBytes((steps + 1) / 2);
  }

  // tokens both arms agree on before the first difference; null while there is nothing to compare
  commonPrefix(upTo = Infinity) {
    if (this.arms.length < 2) return null;
    const [a, b] = this.arms;
    const shared = Math.min(a.tokens.length, b.tokens.length, upTo);
    for (let t = 0; t < shared; t++) if (a.tokens[t] !== b.tokens[t]) return { same: t, differs: true };
    // one arm ended where the other went on: that is a difference too
    const longer = a.tokens.length > b.tokens.length ? b : a;
    const differs = a.tokens.length !== b.tokens.length && Boolean(longer.end) && longer.end.reason === "eos" && shared < upTo;
    return { same: shared, differs };
  }

  // class of each image token in one layer: Uint8Array, shared between calls, not to be written to
  classes(armIndex, t, layer) {
    const arm = this.arms[armIndex], n = this.start.n_image;
    const at = arm.setsIndex(t);
    const key = at * 4096 + layer;
    let found = arm._decoded.get(key);
    if (found) return found;
    found = new Uint8Array(n);
    const sets = at < 0 ? null : arm.sets[at];
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

  // image tokens that a layer holds whatever they score, null where scores alone choose
  spread(armIndex, layer) {
    const arm = this.arms[armIndex], packed = (arm.spec.spread || [])[layer];
    if (!packed) return null;
    if (!arm._spread) arm._spread = [];
    return arm._spread[layer] || (arm._spread[layer] = unpackBits(packed, this.start.n_image));
  }

  hasSets(armIndex) { return this.arms[armIndex].sets.length > 0; }

  // what changed in the core with the update before step t: 1 gained, -1 lost, 0 no change
  drift(armIndex, t, layer) {
    const arm = this.arms[armIndex], n = this.start.n_image;
    const at = arm.setsIndex(t);
    const change = new Int8Array(n);
    if (at < 1) return change;
    const now = this.classes(armIndex, t, layer);
    const before = this.classes(armIndex, arm.sets[at - 1].t + 1, layer);
    for (let i = 0; i < n; i++) change[i] = (now[i] === CORE) - (before[i] === CORE);
    return change;
  }

  // in how many layers each token is core
  consensus(armIndex, t) {
    const n = this.start.n_image, votes = new Uint16Array(n);
    for (let layer = 0; layer < this.start.layers; layer++) {
      const classes = this.classes(armIndex, t, layer);
      for (let i = 0; i < n; i++) votes[i] += classes[i] === CORE;
    }
    return votes;
  }

  counts(armIndex, t, layer) {
    const counts = [0, 0, 0, 0];
    for (const value of this.classes(armIndex, t, layer)) counts[value]++;
    return counts;
  }

  // time per token of this run and of each repetition of it
  medians(armIndex) {
    const arm = this.arms[armIndex];
    return [median(arm.stepMs()), ...arm.repeats.map((event) => event.median_ms)].filter((ms) => ms !== null && ms !== undefined);
  }

  scoresAt(armIndex, t, layer) {
    const arm = this.arms[armIndex];
    let found = null;
    for (const event of arm.scores) if (event.t <= t) found = event;
    return found ? { t: found.t, values: unpackScores(found.image[layer], this.start.n_image) } : null;
  }
}
