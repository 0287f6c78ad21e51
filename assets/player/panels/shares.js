// Where attention goes: its share by type of token, pass by pass (A-VL, Figure 1). Needs recorded attention.

import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { drawKeys, tableWhenOpen } from "../core/panels.js";
import { chartMarkup } from "../charts/per_token.js";
import { TEXT } from "../text.js";

const STYLES = [["--avl-muted", "dash"], ["--avl-b", "solid"], ["--avl-a", "solid"], ["--avl-good", "dot"], ["--avl-muted", "dot"]];

/** @type {import("../core/panels.js").Panel} */
export const shares = {
  name: "shares",
  far: 300,
  label: TEXT.shares,
  column: "left",
  lazy: true,
  html: `${chartMarkup("shares", TEXT.shares, "h3")}<p class="avl-note" data-id="sharesWords"></p>`,
  on: ["run", "opened", "focus", "ts"],
  mount({ node, parts: $, store, tools }) {
    const chart = tools.chart($.shares, { x: TEXT.xToken, unit: "%", hover: ".1f", height: 140, pick: (t) => tools.playhead.jump(t) });
    tableWhenOpen($.sharesTable, () => chart.table(), (value) => fixed(value, 2));
    let drawn = "";
    return {
      update() {
        const { run, focus, opened, ts } = store.state, arm = run && run.arms[focus];
        show(node, arm && arm.scores.length && arm.scores[0].shares);
        if (!arm || node.hidden) return;
        chart.moveCursor(ts[focus] || 0);
        const key = `${opened}/${focus}/${arm.scores.length}`;
        if (drawn === key) return;
        drawn = key;
        const rows = arm.scores.map((event) => TEXT.modalities.map((_, m) => event.shares.reduce((/** @type {number} */ sum, /** @type {number[]} */ layer) => sum + (layer[m] || 0) / event.shares.length, 0)));
        const present = TEXT.modalities.map((_, m) => m).filter((m) => m < 4 || rows.some((row) => row[m] > 0)); // most prompts have nothing between
        const lines = present.map((m) => ({ name: TEXT.modalities[m], color: STYLES[m][0], dash: STYLES[m][1], width: 2 }));
        chart.reset(lines, present.map((m) => [arm.scores.map((event) => event.t), rows.map((row) => row[m] * 100)]));
        drawKeys($.sharesKeys, lines);
        const first = rows[0], last = rows[rows.length - 1];
        put($.sharesWords, TEXT.sharesNote([first[1], last[1], first[2], last[2]]));
      },
    };
  },
};
