// One position for every panel: a token of each arm, or a compute time.

/** @typedef {import("./core/store.js").Store<import("./state.js").State>} PlayerStore */

export class Playhead {
  /** @param {PlayerStore} store */
  constructor(store) { this.store = store; }

  /** The token it stands at. */
  get step() { return this.store.state.run ? Math.max(0, ...this.store.state.ts) : 0; }

  /** Go to a token. @param {number} t */
  seek(t) {
    const { run, playing } = this.store.state;
    if (!run || run.last < 0) return;
    const at = Math.max(0, Math.min(run.last, Math.round(t)));
    this.store.set({ follow: at === run.last && !playing, clock: null, ts: run.arms.map((arm) => Math.max(0, Math.min(arm.last, at))) });
  }

  /** Go to a compute time, ms. @param {number} clock */
  seekClock(clock) {
    const { run } = this.store.state;
    if (!run || run.last < 0) return;
    const at = Math.max(0, Math.min(run.clockEnd, clock));
    this.store.set({ follow: false, clock: at, ts: run.arms.map((arm) => Math.max(0, arm.stepAt(at))) });
  }

  /** Pause, and go to a token. @param {number} t */
  jump(t) {
    this.pause();
    this.seek(t);
  }

  pause() { this.store.set({ playing: false }); }

  play() {
    const { run, clock: from, ts } = this.store.state;
    if (!run || run.last < 1) return;
    this.store.set({ playing: true });
    const end = run.clockEnd, here = Math.min(...run.arms.map((arm, index) => arm.clock[ts[index]] ?? 0));
    let clock = from !== null && from < end ? from : Math.max(...ts) >= run.last ? 0 : here;
    let before = performance.now();
    const tick = (/** @type {number} */ now) => {
      const { state } = this.store;
      if (!state.playing || state.run !== run) return;
      clock += (now - before) * state.speed;
      before = now;
      this.seekClock(clock);
      if (clock >= run.clockEnd) this.pause(); else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  toggle() { if (this.store.state.playing) this.pause(); else this.play(); }

  /** Where it stands, ms; null while there is nothing. */
  get clock() {
    const { run, clock, ts } = this.store.state;
    if (clock !== null || !run || !run.arms.length) return clock;
    return Math.max(...run.arms.map((arm, index) => arm.clock[ts[index]] || 0));
  }
}
