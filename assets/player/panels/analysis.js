// Head of the analysis: which sets are compared below.

import { h, put, show } from "../core/dom.js";
import { comparable, onlyTop } from "../analysis.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const analysis = {
  name: "analysis",
  label: "Attention",
  help: TEXT.analysisHelp,
  html: `<div class="avl-head" data-id="analysisHead"><h2>${TEXT.analysis}</h2><span class="avl-note" data-id="analysisNote"></span></div>
<div class="avl-tools">
  <label for="avl-compared">${TEXT.compare}</label>
  <select class="avl-select" id="avl-compared" data-id="compared"></select>
  <span class="avl-note" data-id="comparedNote"></span>
</div>`,
  on: ["run", "opened", "focus", "compared", "complete"],
  mount({ node, parts: $, store }) {
    node.hidden = true;
    $.compared.addEventListener("change", () => store.set({ compared: $.compared.value }));
    return {
      update() {
        const { run, focus, compared } = store.state, arm = run && run.arms[focus], options = run && run.start && arm ? comparable(run, arm) : [];
        show(node, options.length > 0);
        if (!run || !arm || !options.length) return;
        const words = JSON.stringify(options);
        if ($.compared.dataset.words !== words) {
          $.compared.dataset.words = words;
          $.compared.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
        }
        const kept = options.some(([value]) => value === compared) ? compared : options[options[0][0] === "core" ? 0 : options.length - 1][0];
        if ($.compared.value !== kept) $.compared.value = kept;
        put($.analysisNote, TEXT.overlapNote + (kept === "core" && !arm.scores.length ? TEXT.overlapMore : ""));
        put($.comparedNote, onlyTop(arm) ? TEXT.topRecorded : "");
      },
    };
  },
};
