// Does a layer keep its choice? Overlap of each set with the layer's first one (A-VL, Figure 5).

import { put, show } from "../core/dom.js";
import { fixed } from "../core/format.js";
import { tableWhenOpen } from "../core/panels.js";
import { compared } from "../analysis.js";
import { Heat, heatMarkup } from "../charts/heat.js";
import { meanOf } from "../stats/sets.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const continuity = {
  name: "continuity",
  far: 400,
  label: TEXT.continuity,
  column: "left",
  lazy: true,
  html: heatMarkup("continuity", TEXT.continuityLabel),
  on: ["run", "opened", "focus", "compared", "ts", "layer", "theme", "width"],
  mount({ node, parts: $, store, tools }) {
    const heat = new Heat($.continuity, (layer, choice) => {
      const found = compared(store);
      if (!found) return;
      tools.look({ layer });
      tools.playhead.jump(found.choices.t(choice) + (found.kind === "core" ? 1 : 0));
    });
    tableWhenOpen($.continuityTable, () => heat.table(), (value) => fixed(value, 2));
    let drawn = "", cells = "";
    return {
      update() {
        const found = compared(store);
        show(node, found);
        if (!found) return;
        const { run, arm, kind, choices, at } = found, { rows } = choices, core = kind === "core", { layer, theme, width, opened } = store.state;
        const same = `${opened}/${arm.index}/${kind}/${rows.length}`, key = `${same}/${at}/${layer}/${theme}/${width}`;
        if (drawn === key) return;
        put($.continuityTitle, core ? TEXT.continuity : TEXT.continuityTop(kind));
        heat.draw({
          rows: run.start.layers, cols: rows.length, value: (r, c) => rows[c][r], rowTitle: TEXT.axisLayer, colTitle: core ? TEXT.axisChoice : TEXT.axisToken,
          axis: TEXT.axisRows(core ? TEXT.axisChoice : TEXT.axisToken, TEXT.axisLayer), colName: (c) => choices.t(c) + 1, mark: [layer, at],
        }, tools.colors(), cells === same);
        put($.continuityNote, TEXT.continuityNote(rows.length > 1 ? meanOf(rows[rows.length - 1]) : null));
        drawn = key;
        cells = same;
      },
    };
  },
};
