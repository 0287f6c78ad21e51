// What was asked: shown with every answer, and compared with what the page would ask now.

import { put, show } from "../core/dom.js";
import { listed } from "../core/format.js";
import { changedSince } from "../inputs.js";
import { ofAnotherModel, samplingOf } from "../labels.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const asked = {
  name: "asked",
  className: "",
  html: `<div class="avl-asked" data-id="askedPanel" hidden>
  <p><b data-id="askedWord"></b> <span class="avl-question" data-id="asked"></span></p>
  <p class="avl-note" data-id="askedFacts"></p>
  <p class="avl-stale" data-id="stale" role="status"></p>
</div>`,
  on: ["run", "state", "source", "stream", "id", "edited"],
  mount({ parts: $, store, tools }) {
    const update = () => {
      const { run, state, source, stream, id } = store.state, start = run && run.start;
      show($.askedPanel, Boolean(start));
      if (!run || !start) return;
      const old = stream !== null && stream !== id; // another run was asked for and has not begun
      const waiting = old && ["queued", "running", "stopping"].includes(state), failed = state === "refused" || (old && !waiting);
      const other = ofAnotherModel(run), changed = other ? [] : changedSince(run), which = source === "recorded" ? TEXT.which.recorded : TEXT.which.previous;
      put($.askedWord, waiting || failed || changed.length ? TEXT.answersTo : TEXT.asked);
      put($.asked, start.question);
      put($.askedFacts, [
        picturesOf(run), start.mode === "single" ? "" : start.mode, TEXT.limit(start.limit), start.batch > 1 ? TEXT.batch(start.batch) : "",
        samplingOf(start), TEXT.promptTokens(start.n_image, start.n_text),
      ].filter(Boolean).join(" · "));
      put($.stale, waiting ? TEXT.untilStart(which) : failed ? TEXT.nothingNew(which) : changed.length ? (run.joined || ["last", "earlier"].includes(source) ? TEXT.otherInputs : TEXT.changed)(listed(changed)) : "");
      tools.root.classList.toggle("avl-old", Boolean(waiting || failed || changed.length));
      tools.root.classList.toggle("avl-other", Boolean(other || changed.length));
    };
    return { update };
  },
};

/** @param {import("../trace/run.js").Run} run */
function picturesOf(run) {
  const names = Array.isArray(run.meta.pictures) ? run.meta.pictures.map(String) : [];
  return names.length ? names.join(", ") : run.start.images.length > 1 ? TEXT.pictures(run.start.images.length) : "";
}
