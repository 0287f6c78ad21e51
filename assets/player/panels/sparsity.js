// How few image tokens hold the attention: cumulative share, best first (A-VL, Figure 3). Needs recorded attention.

import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { drawKeys, tableWhenOpen } from "../core/panels.js";
import { chartMarkup } from "../charts/per_token.js";
import { concentration, meanOf, sparsityOf } from "../stats/sets.js";
import { TEXT } from "../text.js";

const POINTS = 51;

/** @type {import("../core/panels.js").Panel} */
export const sparsity = {
  name: "sparsity",
  far: 300,
  label: TEXT.sparsity,
  column: "right",
  lazy: true,
  html: `${chartMarkup("sparsity", TEXT.sparsity, "h3")}<p class="avl-note" data-id="sparsityWords"></p>`,
  on: ["run", "opened", "focus", "layer"],
  mount({ node, parts: $, store, tools }) {
    const chart = tools.chart($.sparsity, { x: TEXT.xShare, unit: "% of the attention", hover: ".1f", height: 140 });
    tableWhenOpen($.sparsityTable, () => chart.table(), (value) => fixed(value, 2));
    let drawn = "", worked = "";
    /** @type {number[][]} */ let curves = [];
    return {
      update() {
        const { run, focus, opened, layer } = store.state, arm = run && run.arms[focus];
        show(node, arm && arm.scores.length);
        if (!run || !arm || node.hidden) return;
        const own = `${opened}/${focus}`, key = `${own}/${layer}`;
        if (drawn === key) return;
        drawn = key;
        // of the prompt's last token, which is always recorded whole
        if (worked !== own) {
          worked = own;
          curves = Array.from({ length: run.start.layers }, (_, one) => concentration(run.scoresAt(focus, 0, one)?.values || new Float32Array(0)));
        }
        const n = run.start.n_image, at = Array.from({ length: POINTS }, (_, i) => Math.max(1, Math.round((i / (POINTS - 1)) * n)) - 1);
        const x = at.map((i) => +(((i + 1) / n) * 100).toFixed(2));
        const lines = [{ name: TEXT.meanOfLayers, color: "--avl-a", width: 2.2 }, { name: TEXT.oneLayer(layer), color: "--avl-b", dash: "dot", width: 2 }];
        chart.reset(lines, [[x, at.map((i) => Number(meanOf(curves.map((curve) => curve[i]))) * 100)], [x, at.map((i) => curves[layer][i] * 100)]]);
        drawKeys($.sparsityKeys, lines);
        const held = curves.map(sparsityOf), there = /** @type {number[]} */ (held.filter((value) => value !== null));
        put($.sparsityWords, TEXT.sparsityNote(meanOf(held), Math.min(...there), Math.max(...there)));
      },
    };
  },
};
