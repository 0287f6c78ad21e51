// What the server sends becomes the run that is shown: batches of events, gaps that are fetched, refusals, runs from before a reload.

import { inputsNow } from "./core/page.js";
import { loadedAgain, recall, remember } from "./core/tab.js";
import { changedSince } from "./inputs.js";
import { including, openingPair } from "./state.js";
import { goesOn } from "./visit.js";
import { finestOf, latticesOf } from "./trace/grid.js";
import { Run } from "./trace/run.js";
import { TEXT } from "./text.js";

const SILENCE = 20000; // ms; the server says something every second while a run waits or goes on

/** @typedef {import("./core/store.js").Store<import("./state.js").State>} PlayerStore */

export class Receiver {
  /**
   * @param {PlayerStore} store
   * @param {any} server Gradio's functions of the component
   * @param {{ wanted: { focus: number | null, step: number | null, pair: [number, number] | null }, visit: import("./visit.js").Visit, join: (run: string) => void }} options
   *   wanted: what a link asks for, or somebody chose; join: have the server send a run that goes on
   */
  constructor(store, server, options) {
    this.store = store;
    this.server = server;
    this.options = options;
    /** @type {{ images: string[], meta: any, error: any, count: number } | null} */ this.arriving = null;
    this.received = 0;
    this.fetching = false;
    /** @type {any} */ this.ending = null; // the last value, while events before it are fetched
    this.batches = 0;
    /** @type {() => any} */ this.recording = () => null; // shows what the page opens with
    this.joining = ""; // a run that another page began
    /** @type {Set<string>} */ this.over = new Set(); // Gradio sends the last value of a run twice
    setInterval(() => this._listen(), 2000);
    setInterval(() => this._tick(), 100);
  }

  /** Take one value of the component. @param {any} value */
  receive(value) {
    if (!value || typeof value !== "object") return;
    this.batches++;
    if (value.recorded && !value.trace) { this.open(value); return; }
    this.store.set({ heard: performance.now() });
    if (value.state === "refused") { this._refuse(value.message); return; }
    if (value.state === "gone") { this._gone(value.message); return; }
    if (value.run && this.over.has(value.run) && !value.trace) return;
    if (value.trace) { this._whole(value); return; }
    if (value.run && value.run !== this.store.state.stream) this._hear(value);
    const { state, count, first } = value, events = listOf(value.events);
    this.store.set({ place: value.position || 0 });
    if (value.meta && this.arriving) this.arriving.meta = value.meta;
    if (events.length) {
      if (first > this.received) { this._fetch(value.run, first + events.length, value); return; }
      this._accept(events.slice(this.received - first));
    }
    if (state === "done" && count > this.received) { this._fetch(value.run, count, value); return; }
    if (state === "done") this._finish(value); else if (state) this.store.set({ state });
  }

  /**
   * Show the run that the page opens with, after the first paint, unless the visitor is faster: in a tab that was loaded anew its last one,
   * which may go on; elsewhere a run that goes on and that no page reads, such as of a tab that was closed by mistake; else the recording,
   * unless a link asks for something else.
   * @param {any} value
   */
  open(value) {
    const own = loadedAgain() ? recall("avl-run") : "", { server } = this, { visit } = this.options;
    const show = (/** @type {string | null} */ text, /** @type {any} */ more) => {
      const { id, state } = this.store.state;
      if (!text || id !== null || state !== "idle") return false;
      const found = JSON.parse(text);
      if (more.source === "recorded" && location.search && this._asksForAnother(found)) { this.store.set({ unrun: true }); return true; }
      this.receive({ ...value, ...more, trace: found });
      return true;
    };
    this.recording = () => (value.recorded && server.recording ? server.recording({}).then((/** @type {string} */ text) => whenInputs(() => show(text, { source: "recorded" }))) : null);
    requestAnimationFrame(() => setTimeout(async () => {
      const runs = await visit.refresh(), mine = runs.find(({ run }) => run === own);
      const going = mine || own ? mine : runs.find((run) => goesOn(run) && !run.read && !location.search);
      if (going && goesOn(going)) { if (this.store.state.state === "idle") this.join(going.run); return; }
      const last = mine && mine.started ? await server.last({ run: own }) : null;
      if (!show(last, { run: own, source: "last", state: "done" })) await this.recording();
    }));
  }

  /** Read a run that another page began, or this one before it was loaded anew. @param {string} key */
  join(key) {
    this.joining = key;
    this.options.join(key);
  }

  /** Open a run of this visit. @param {string} key @returns {Promise<string>} why that cannot be, one sentence; empty where it can */
  async reopen(key) {
    const { visit } = this.options, runs = await visit.refresh(), found = runs.find(({ run }) => run === key);
    if (["queued", "running", "stopping"].includes(this.store.state.state)) return TEXT.openLater;
    if (found && goesOn(found)) { this.join(key); return ""; }
    const text = found && await this.server.last({ run: key });
    if (!text) return TEXT.gone;
    this.show(key, JSON.parse(text), runs[0].run === key ? "last" : "earlier");
    return "";
  }

  /** A run that was to be joined is not there, or is read by too many. @param {string} message */
  _gone(message) {
    const { store, options } = this;
    this.joining = "";
    store.set({ state: store.state.run ? "done" : "idle", error: message || TEXT.gone });
    options.visit.refresh();
    if (!store.state.run) this.recording();
  }

  /** Show a whole trace: the recording, a report, an earlier run. @param {any} value */
  _whole(value) {
    const { events, images } = value.trace;
    if (!events.some((/** @type {any} */ event) => event.kind === "start")) {
      const error = events.find((/** @type {any} */ event) => event.kind === "error");
      if (error) this._refuse(error.message); else this.store.set({ state: value.state || "done" });
      return;
    }
    const run = this._begin(value.run, images || [], value.source || "live");
    run.meta = value.trace.meta || {};
    for (const event of events) run.push(event);
    this._started();
    this.store.set({ state: value.state || "done", error: run.error || "", ts: run.arms.map((arm) => Math.max(0, arm.last)) });
    this._finish(value);
  }

  /** Show a run that is at hand as a trace. @param {string} id @param {any} trace @param {"last" | "earlier" | "live"} source */
  show(id, trace, source) {
    this.store.set({ stream: null }); // what is shown is what was asked for last
    this._whole({ run: id, trace, source, state: "done" });
  }

  /** @param {string} message */
  _refuse(message) { this.store.set({ state: "refused", error: message || TEXT.endedEarly }); }

  // a run was asked for; it is shown once it has begun
  /** @param {any} value */
  _hear(value) {
    this.received = 0;
    this.ending = null;
    this.arriving = { images: value.images || [], meta: value.meta || {}, error: null, count: 0 };
    this.over.delete(value.run);
    this.store.set({ stream: value.run, error: "" });
    remember("avl-run", value.run);
    this.options.visit.add(value.run);
  }

  // a batch never arrived (a sleeping tab): ask for everything from the gap on, an answer at a time
  /** @param {string} run @param {number} until number of events @param {any} value what to go on with */
  _fetch(run, until, value) {
    if (value.state === "done") this.ending = value;
    if (this.fetching || !this.server.missing) return;
    this.fetching = true;
    const first = this.received;
    this.server.missing({ run, first }).then((/** @type {string | null} */ text) => {
      this.fetching = false;
      const events = listOf(text);
      if (this.store.state.stream !== run || this.received !== first) return;
      this._accept(events);
      if (events.length && this.received < Math.max(until, this.ending ? this.ending.count : 0)) this._fetch(run, until, value);
      else if (this.ending) this._finish(this.ending);
    }, () => { this.fetching = false; });
  }

  /** @param {string} id @param {string[]} images @param {import("./state.js").State["source"]} source @returns {Run} */
  _begin(id, images, source) {
    const run = new Run();
    run.images = images;
    this.store.set({
      run, id, source, recorded: source === "recorded", follow: true, playing: false, clock: null, patch: -1, ts: [], word: null, region: null,
      error: "", unrun: false, opened: this.store.state.opened + 1, eventAt: performance.now(),
    });
    return run;
  }

  /** @param {any[]} events */
  _accept(events) {
    const { store, arriving } = this;
    for (const event of events) {
      this.received++;
      if (event.kind === "start" && arriving) {
        const begun = this._begin(/** @type {string} */ (store.state.stream), arriving.images, "live");
        begun.meta = arriving.meta;
        begun.joined = store.state.stream === this.joining;
      }
      const { run, id, stream } = store.state;
      if (!run || id !== stream) {
        if (event.kind === "error" && arriving) arriving.error = event;
        continue;
      }
      run.push(event);
      if (event.kind === "start") this._started();
      if (event.kind === "error") store.set({ error: event.message });
      if (event.kind !== "reading") store.set({ eventAt: performance.now() });
    }
    const { run, id, stream, follow } = store.state;
    if (!run || id !== stream) return;
    store.touch("run");
    if (follow && run.start) store.set({ ts: run.arms.map((arm) => Math.max(0, arm.last)) });
  }

  // a run has its start event: what is looked at suits it
  _started() {
    const { store } = this, { run, touchedLayer, layer } = store.state;
    if (!run) return;
    const { layers, grids, images } = run.start, n = run.arms.length, { focus, pair: chosen } = this.options.wanted;
    const lattices = latticesOf(grids, images);
    const opening = openingPair(run.arms, chosen), adaptive = opening.find((index) => !run.arms[index].isFull) ?? opening[0];
    const arm = Math.max(0, Math.min(n - 1, focus ?? adaptive)), pair = n < 2 ? opening : including(opening, arm);
    store.set({
      ts: run.arms.map(() => 0), lattices, grid: finestOf(lattices), whole: false, pair,
      focus: arm, layer: Math.min(layers - 1, touchedLayer ? layer : Math.floor(layers / 2)),
    });
  }

  /** @param {any} value */
  _finish(value) {
    const { store, arriving } = this, { run, id, stream } = store.state;
    if (value.source === undefined && stream) {
      this.over.add(stream);
      this.options.visit.refresh();
    }
    if (value.source === undefined && id !== stream) {
      // it never began: what was shown before stays, whole and with its own label
      if (arriving && arriving.error) this._refuse(arriving.error.message); else store.set({ state: value.state || "done" });
      return;
    }
    store.set({ state: value.state || "done" });
    if (!run || !run.start) return;
    if (value.meta) run.meta = value.meta;
    store.set({ complete: store.state.opened });
    store.touch("run");
    const { wanted } = this.options;
    if (wanted.step !== null && run.last >= 0 && !changedSince(run).length) {
      const t = Math.min(run.last, wanted.step);
      store.set({ follow: t === run.last, clock: null, ts: run.arms.map((arm) => Math.max(0, Math.min(arm.last, t))) });
      wanted.step = null;
    }
  }

  // a server that said nothing for long is lost
  _listen() {
    const { state, heard } = this.store.state;
    if (!["queued", "running", "stopping"].includes(state) || performance.now() - heard < SILENCE) return;
    this.store.set({ state: "lost", error: TEXT.serverSilent });
  }

  // a prompt takes seconds on a large model: the panels show how many
  _tick() {
    const { state, run } = this.store.state;
    if (state === "running" && run && run.start && run.prefilling >= 0) this.store.set({ now: performance.now() });
  }

  /** @param {any} found */
  _asksForAnother(found) {
    const link = new URLSearchParams(location.search), now = inputsNow(), run = new Run();
    const ours = ["ex", "scene", "q", "a", "b", "n", "B"].some((key) => link.has(key)) || [...link.keys()].some((key) => /^([a-h]\.)?[A-Z]$/.test(key));
    if (!ours || !now) return false;
    run.push(found.events[0]);
    run.meta = found.meta || {};
    // the example that a link names may still be on its way
    const picture = link.has("ex") ? `ex=${link.get("ex")}` : link.has("scene") ? `scene=${link.get("scene")}` : now.link;
    return changedSince(run, { ...now, id: "", link: picture, question: link.get("q") || (picture === run.meta.link ? run.start.question : now.question) }).length > 0;
  }
}

/** Events travel as the text of a list. @param {any} events @returns {any[]} */
function listOf(events) {
  return typeof events === "string" ? JSON.parse(events) : Array.isArray(events) ? events : [];
}

/** The settings and the strip mount on their own time. @param {() => void} then */
function whenInputs(then, tries = 60) {
  if (inputsNow() || !tries) then(); else setTimeout(() => whenInputs(then, tries - 1), 50);
}
