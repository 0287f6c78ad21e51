// Do layers agree? Overlap of the sets of every two layers at the playhead (A-VL, Figure 4).

import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { tableWhenOpen } from "../core/panels.js";
import { compared } from "../analysis.js";
import { Heat, heatMarkup } from "../charts/heat.js";
import { meanOf } from "../stats/sets.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const layers = {
  name: "layers",
  far: 400,
  label: TEXT.layers,
  column: "right",
  lazy: true,
  html: heatMarkup("layers", TEXT.layersLabel),
  on: ["run", "opened", "focus", "compared", "ts", "layer", "theme", "width"],
  mount({ node, parts: $, store, tools }) {
    const heat = new Heat($.layers, (layer) => tools.look({ layer }));
    tableWhenOpen($.layersTable, () => heat.table(), (value) => fixed(value, 2));
    let drawn = "", cells = "";
    return {
      update() {
        const found = compared(store);
        show(node, found);
        if (!found) return;
        const { run, arm, kind, choices, at } = found, { layer, theme, width, opened } = store.state, n = run.start.layers;
        const same = `${opened}/${arm.index}/${kind}/${at}/${choices.rows.length > at}`, key = `${same}/${layer}/${theme}/${width}`;
        if (drawn === key) return;
        const matrix = choices.between(at);
        put($.layersTitle, kind === "core" ? TEXT.layers : TEXT.layersTop(kind));
        heat.draw({
          rows: n, cols: n, value: (r, c) => (matrix[r] ? matrix[r][c] : null), rowTitle: TEXT.axisLayer, colTitle: TEXT.axisLayer,
          axis: TEXT.axisRows(TEXT.axisLayer, TEXT.axisLayer), colName: (c) => c, mark: [layer, layer],
        }, tools.colors(), cells === same);
        const chance = choices.percent(Math.max(0, at)); // expected overlap of random sets as large as those drawn
        put($.layersNote, TEXT.layersNote(matrix.length ? meanOf(matrix[0].slice(1)) : null, chance === null ? null : chance / 100));
        drawn = key;
        cells = same;
      },
    };
  },
};
