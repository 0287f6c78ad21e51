// The state of a component: one object that only set() writes, and subscribers that hear, once per frame, which keys changed.

/**
 * @template {Record<string, any>} S
 */
export class Store {
  /** @param {S} initial every key there is */
  constructor(initial) {
    this._values = initial;
    this._subscribers = /** @type {{ keys: Set<keyof S>, callback: (changed: Set<keyof S>) => void }[]} */ ([]);
    this._changed = /** @type {Set<keyof S>} */ (new Set());
    this._scheduled = false;
    /** @type {Readonly<S>} */
    this.state = new Proxy(initial, {
      set: (_, key) => { throw new TypeError(`state.${String(key)} is written through store.set()`); },
    });
  }

  /** Change some values. @param {Partial<S>} values */
  set(values) {
    for (const key of /** @type {(keyof S)[]} */ (Object.keys(values))) {
      if (!(key in this._values)) throw new TypeError(`the state has no ${String(key)}`);
      if (Object.is(this._values[key], values[key])) continue;
      this._values[key] = /** @type {S[keyof S]} */ (values[key]);
      this._changed.add(key);
    }
    if (this._changed.size) this._schedule();
  }

  /** Say that something within a value changed: a run took events. @param {keyof S} key */
  touch(key) {
    this._changed.add(key);
    this._schedule();
  }

  /**
   * @param {(keyof S)[]} keys
   * @param {(changed: Set<keyof S>) => void} callback
   */
  subscribe(keys, callback) {
    this._subscribers.push({ keys: new Set(keys), callback });
  }

  _schedule() {
    if (this._scheduled) return;
    this._scheduled = true;
    // a hidden tab gets no animation frames, and needs no drawing
    requestAnimationFrame(() => { this._scheduled = false; this.flush(); });
  }

  /** Tell the subscribers at once. */
  flush() {
    const changed = this._changed;
    this._changed = new Set();
    if (!changed.size) return;
    for (const { keys, callback } of this._subscribers) {
      for (const key of changed) if (keys.has(key)) { callback(changed); break; }
    }
  }
}
