// What the server sends becomes a sweep: batches of events, gaps that are fetched, refusals.

import { TEXT } from "../text.js";
import { Sweep } from "./data.js";

export class SweepStream {
  /**
   * @param {(wanted: { run: string, first: number }) => Promise<string | null>} missing events from a number on, as a batch has them
   * @param {{ begun: () => void, events: (sweep: Sweep, events: any[]) => void, changed: () => void }} listener another sweep; its events; or anything else
   */
  constructor(missing, listener) {
    this.missing = missing;
    this.listener = listener;
    /** @type {"idle" | "queued" | "running" | "stopping" | "done" | "stopped" | "refused" | "lost"} */ this.state = "idle";
    /** @type {string | null} */ this.key = null;
    /** @type {Sweep | null} */ this.sweep = null;
    this.position = 0;
    this.problem = "";
    /** @type {any} */ this.ending = null;
    this.fetching = false;
  }

  get going() { return ["queued", "running", "stopping"].includes(this.state); }

  get received() { return this.sweep ? this.sweep.received : 0; }

  /** Take one value of the component. @param {any} value */
  receive(value) {
    if (value.state === "refused") { this.state = "refused"; this.problem = value.message || TEXT.endedEarly; this.listener.changed(); return; }
    if (value.run && value.run !== this.key) {
      this.key = value.run;
      this.sweep = this.ending = null;
      this.problem = "";
      this.fetching = false;
      this.listener.begun();
    }
    this.position = value.position || 0;
    if (value.state === "done") this.ending = value;
    const events = value.events ? JSON.parse(value.events) : [];
    if (events.length && value.first > this.received) this._fetch();
    else this._accept(events.slice(Math.max(0, this.received - (value.first || 0))));
    if (this.ending && this.received < (this.ending.count || 0)) this._fetch(); else if (value.state) this._become(value.state);
    this.listener.changed();
  }

  /** Show a sweep that the server still has. @param {string} key @param {any[]} events all of it */
  reopen(key, events) {
    this.key = key;
    this.sweep = this.ending = null;
    this.problem = "";
    this.listener.begun();
    this._accept(events);
    this._become("done");
    this.listener.changed();
  }

  /** @param {any[]} events */
  _accept(events) {
    if (!events.length) return;
    this.sweep ||= new Sweep();
    for (const event of events) this.sweep.push(event);
    if (this.sweep.error) this.problem = this.sweep.error;
    this.listener.events(this.sweep, events);
  }

  // a batch never arrived (a sleeping tab): ask for everything from the gap on
  _fetch() {
    if (this.fetching || !this.key) return;
    this.fetching = true;
    const run = this.key, first = this.received;
    this.missing({ run, first }).then((text) => {
      if (run !== this.key) return;
      this.fetching = false;
      const events = text ? JSON.parse(text) : [];
      this._accept(events.slice(this.received - first));
      if (this.ending && this.received < this.ending.count && events.length) this._fetch();
      else if (this.ending) this._become("done");
      this.listener.changed();
    }, () => { if (run === this.key) this.fetching = false; });
  }

  /** @param {any} state */
  _become(state) {
    this.state = state;
    // it may have ended with an error before it began
    if (state === "done" && this.sweep && !this.sweep.start && this.sweep.error) this.state = "refused";
  }
}
