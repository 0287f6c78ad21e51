// The conversation so far: earlier questions, and each shown policy's own answers to them.

import { h, put, show } from "../core/dom.js";
import { shortLabel } from "../labels.js";
import { shownArms } from "../state.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const conversation = {
  name: "conversation",
  label: TEXT.turns.title,
  html: `<div class="avl-head"><h2 data-id="turn"></h2></div><ol class="avl-turns" data-id="turns"></ol>`,
  on: ["run", "opened", "pair"],
  mount({ node, parts: $, store }) {
    node.hidden = true;
    let built = "";
    return {
      update() {
        const { state } = store, { run, opened, pair } = state, start = run && run.start;
        show(node, Boolean(start && start.turn > 1));
        if (!run || node.hidden) return;
        const key = `${opened}/${pair}`;
        if (built === key) return;
        built = key;
        put($.turn, TEXT.turns.turn(start.turn));
        const arms = shownArms(state);
        $.turns.replaceChildren(...start.questions.map((/** @type {string} */ question, /** @type {number} */ number) => {
          const said = arms.map((arm) => String((arm.spec.answers || [])[number] || "").trim());
          const same = said.every((answer) => answer === said[0]);
          return h("li", {}, h("p", { class: "avl-question" }, question),
            same ? h("p", {}, said[0] || TEXT.noText) : arms.map((arm, place) => h("p", { class: `avl-arm-${place ? "b" : "a"}` }, h("i", { class: "avl-dot" }), h("b", {}, shortLabel(run, arm)), " ", said[place] || TEXT.noText)));
        }));
      },
    };
  },
};
