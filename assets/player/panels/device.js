// Memory of the device, as NVML and torch see it; without a device there is nothing to draw.

import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { drawKeys, tableWhenOpen } from "../core/panels.js";
import { chartMarkup } from "../charts/per_token.js";
import { TEXT } from "../text.js";

const READINGS = /** @type {const} */ ([["device_bytes", "--avl-a", ""], ["allocated_bytes", "--avl-b", "dash"]]);
const EVERY = 500; // ms between two redraws: it is context only

/** @type {import("../core/panels.js").Panel} */
export const device = {
  name: "device",
  far: 230,
  label: TEXT.device,
  help: TEXT.deviceHelp,
  column: "right",
  html: `<div data-id="devicePart">${chartMarkup("device", TEXT.device)}</div>`,
  on: ["run", "opened"],
  mount({ node, parts: $, store, tools }) {
    const chart = tools.chart($.device, { x: TEXT.xClock, unit: "MiB", hover: ".1f", height: 140 });
    tableWhenOpen($.deviceTable, () => chart.table(), (value) => fixed(value, 1));
    node.hidden = true;
    let built = "", timer = 0, drawn = 0;
    const flush = () => {
      timer = 0;
      const { run, opened } = store.state;
      if (!run || !run.start) return;
      // the process's memory is the weights, a flat line
      const shown = READINGS.filter(([key]) => run.readings.some((event) => typeof event[key] === "number"));
      show(node, shown.length > 0);
      if (!shown.length) return;
      const key = `${opened}/${shown.map(([name]) => name)}`, from = built === key ? drawn : 0;
      const points = shown.map(([name]) => {
        const told = run.readings.slice(from).filter((event) => typeof event[name] === "number");
        return /** @type {[number[], number[]]} */ ([told.map((event) => +event.clock_ms.toFixed(2)), told.map((event) => event[name] / 2 ** 20)]);
      });
      drawn = run.readings.length;
      if (built === key) { chart.add(points); return; }
      built = key;
      const lines = shown.map(([name, color, dash]) => ({ name: TEXT.deviceLines[name], color, dash }));
      chart.reset(lines, points);
      drawKeys($.deviceKeys, lines);
    };
    return {
      update() {
        const { run } = store.state, last = run && run.readings[run.readings.length - 1];
        if (!run) return;
        if (!timer) timer = window.setTimeout(flush, built.startsWith(`${store.state.opened}/`) ? EVERY : 0);
        put($.deviceNote, last ? last.note || "" : "");
      },
    };
  },
};
