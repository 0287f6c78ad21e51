// A chart with a point per token of each shown arm: what its panel says about lines and points, kept up to date at a bounded cost.

import { drawKeys, tableWhenOpen } from "../core/panels.js";
import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { shownArms } from "../state.js";
import { TEXT } from "../text.js";

/** @typedef {import("./line.js").Line} Line */
/** @typedef {import("../trace/run.js").Run} Run */
/** @typedef {import("../trace/run.js").Arm} Arm */

/**
 * What a chart draws.
 * @typedef {Object} Drawing
 * @property {(run: Run, arms: Arm[]) => Line[]} lines
 * @property {(run: Run, arm: Arm, t: number, add: (line: number, y: number) => void, place: number) => void} points of one token
 * @property {(run: Run, arms: Arm[]) => string} note beside the title
 * @property {(run: Run, arms: Arm[], chart: import("./line.js").Chart) => void} [settle] after new points
 * @property {(run: Run, arms: Arm[], lines: Line[]) => Line[]} [keys] lines that have a key; those with a name where it is left out
 */

/**
 * The markup of a chart called x: its parts are xHead, xKeys, x, xNote and xTable.
 * @param {string} name
 * @param {string} title
 * @param {"h2" | "h3"} [tag]
 */
export function chartMarkup(name, title, tag = "h2") {
  return `<div class="avl-head" data-id="${name}Head"><${tag}>${title}</${tag}><span class="avl-note" data-id="${name}Note"></span></div>
<div class="avl-keys" data-id="${name}Keys"></div>
<div class="avl-plot" data-id="${name}"></div>
<details class="avl-table" data-id="${name}Table"><summary>${TEXT.table}</summary><div tabindex="0"></div></details>`;
}

// Charts take the time they need, but at most a sixth of it all: a slow machine gets fewer redraws, never a growing backlog
const SHARE = 5, SOONEST = 100;

/**
 * Keep a chart up to date with the run.
 * @param {import("../core/panels.js").Context} context
 * @param {string} name
 * @param {import("./line.js").ChartOptions} options
 * @param {Drawing} drawing
 */
export function perToken({ node, parts: $, store, tools }, name, options, drawing) {
  const chart = tools.chart($[name], { pick: (t) => tools.playhead.jump(t), ...options });
  tableWhenOpen($[`${name}Table`], () => chart.table(), (value) => fixed(value, 2));
  let built = "", timer = 0, allowed = 0;
  /** @type {number[]} */ let drawn = [];
  node.hidden = true;

  /** @param {Run} run @param {Arm[]} arms @param {number[]} from */
  const pointsSince = (run, arms, from) => {
    const points = /** @type {[number[], number[]][]} */ (chart.lines.map(() => [[], []]));
    arms.forEach((arm, place) => {
      for (let t = from[place] + 1; t <= arm.last; t++) drawing.points(run, arm, t, (line, y) => { points[line][0].push(t); points[line][1].push(y); }, place);
    });
    return points;
  };
  const flush = () => {
    timer = 0;
    const { run } = store.state, arms = shownArms(store.state);
    if (!run || !run.start) return;
    const began = performance.now(), key = `${store.state.opened}/${arms.map((arm) => arm.index)}`;
    if (built !== key) {
      built = key;
      chart.top = null;
      chart.lines = drawing.lines(run, arms);
      chart.reset(chart.lines, pointsSince(run, arms, arms.map(() => -1)));
      put($[`${name}Note`], drawing.note(run, arms));
    } else if (arms.some((arm, place) => arm.last > drawn[place])) chart.add(pointsSince(run, arms, drawn));
    else return;
    drawn = arms.map((arm) => arm.last);
    if (drawing.settle) drawing.settle(run, arms, chart);
    drawKeys($[`${name}Keys`], drawing.keys ? drawing.keys(run, arms, chart.lines) : chart.lines.filter((line) => line.name));
    const cost = performance.now() - began;
    tools.measures.flushMs.push(cost);
    allowed = performance.now() + Math.max(SOONEST, SHARE * cost);
  };
  return {
    update() {
      const { run, complete, opened, focus, ts } = store.state;
      show(node, Boolean(run && run.start) && !(complete === opened && run && run.last < 0));
      if (!run || !run.start || node.hidden) return;
      // a task each, so that the page answers in between
      if (!timer) timer = window.setTimeout(flush, Math.max(0, allowed - performance.now()));
      chart.moveCursor(run.last > 0 ? ts[focus] || 0 : null);
    },
  };
}
