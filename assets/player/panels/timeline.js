// The playhead's controls, always in sight: every panel below follows them.

import { h, mark, put, show } from "../core/dom.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const timeline = {
  name: "timeline",
  label: "Timeline",
  className: "avl-timeline-box",
  html: `<div class="avl-timeline">
  <button type="button" class="avl-btn" data-id="play" title="${TEXT.replayTitle}">▶</button>
  <select class="avl-select" data-id="speed" aria-label="${TEXT.replaySpeed}"></select>
  <button type="button" class="avl-btn" data-id="back" title="${TEXT.stepBackTitle}" aria-label="${TEXT.stepBack}">‹</button>
  <span class="avl-seek"><input type="range" class="avl-range" data-id="step" min="0" max="0" value="0" step="1" aria-label="${TEXT.generatedToken}"></span>
  <button type="button" class="avl-btn" data-id="forth" title="${TEXT.stepOnTitle}" aria-label="${TEXT.stepOn}">›</button>
  <output class="avl-where avl-cell"><span data-id="where"></span></output>
</div>`,
  on: ["run", "ts", "playing", "complete"],
  mount({ node, parts: $, store, tools }) {
    const { playhead } = tools;
    node.hidden = true;
    $.speed.append(...[["1", "1×"], ["0.5", "½×"], ["0.25", "¼×"], ["0.1", "⅒×"]].map(([value, name]) => h("option", { value }, name)));
    $.speed.addEventListener("change", () => store.set({ speed: Number($.speed.value) }));
    $.play.addEventListener("click", () => playhead.toggle());
    $.back.addEventListener("click", () => playhead.jump(playhead.step - 1));
    $.forth.addEventListener("click", () => playhead.jump(playhead.step + 1));
    $.step.addEventListener("input", () => playhead.jump(Number($.step.value)));
    let rail = "";
    return {
      update() {
        const { run, playing, complete, opened } = store.state;
        show(node, Boolean(run && run.start) && !(complete === opened && run && run.last < 0));
        if (!run) return;
        const last = Math.max(0, run.last), now = playhead.step;
        if (Number($.step.max) !== last) $.step.max = String(last);
        if (Number($.step.value) !== now) $.step.value = String(now);
        put($.play, playing ? "❚❚" : "▶");
        mark($.play, "aria-label", playing ? TEXT.pause : TEXT.replay);
        const at = `${last ? (100 * now) / last : 0}%`;
        if (rail !== at) { rail = at; $.step.style.setProperty("--at", at); }
        put($.where, TEXT.where(now + 1, Math.max(0, run.last + 1)));
      },
    };
  },
};
