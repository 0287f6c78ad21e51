// Runs of this visit: the browser has their keys, the server has the runs, for an hour.

import { recallAlways, rememberAlways } from "./core/tab.js";

const KEYS = "avl-runs";
const MOST = 24; // as many as the server keeps of a visitor, and tells of in one answer

/** @typedef {import("./core/store.js").Store<import("./state.js").State>} PlayerStore */
/** @typedef {Record<string, any>} Summary of a run, as avl/ui/history.py writes it */

/** The keys in a stored text; anything else in it is left out. @param {string} text @returns {string[]} */
export function keysFrom(text) {
  try {
    const found = JSON.parse(text || "[]");
    return Array.isArray(found) ? [...new Set(found.filter((key) => typeof key === "string" && key.length > 0 && key.length <= 64))].slice(0, MOST) : [];
  } catch {
    return [];
  }
}

/** The newest first. @param {string[]} keys @param {string} key */
export function withKey(keys, key) { return [key, ...keys.filter((one) => one !== key)].slice(0, MOST); }

/** Whether more of a run may follow. @param {Summary} run */
export function goesOn(run) { return ["queued", "running", "stopping"].includes(run.state); }

export class Visit {
  /** @param {PlayerStore} store @param {any} server Gradio's functions of the component */
  constructor(store, server) {
    this.store = store;
    this.server = server;
    this.expired = 0; // runs that left the server while this page was open
    this._asked = false;
  }

  /** @param {string} key */
  add(key) {
    rememberAlways(KEYS, JSON.stringify(withKey(keysFrom(recallAlways(KEYS)), key)));
    this.refresh();
  }

  /** Ask the server which of the runs it has; the others are forgotten. @returns {Promise<Summary[]>} the newest first */
  async refresh() {
    const keys = keysFrom(recallAlways(KEYS));
    if (!this.server.history) return [];
    const found = keys.length ? await this.server.history({ runs: keys }).catch(() => null) : [];
    if (!found) return this.store.state.visit; // no answer says nothing of them
    const kept = new Set(found.map((/** @type {Summary} */ run) => run.run)), gone = keys.filter((key) => !kept.has(key));
    if (gone.length) {
      if (this._asked) this.expired += gone.length;
      rememberAlways(KEYS, JSON.stringify(keysFrom(recallAlways(KEYS)).filter((key) => !gone.includes(key)))); // another tab may have added some meanwhile
    }
    this._asked = true;
    this.store.set({ visit: found });
    return found;
  }
}
