// The first line: what the page is doing; errors; the tour and the link.

import { calm, debounce, put, show } from "../core/dom.js";
import { linkOfInputs } from "../core/page.js";
import { formatTime } from "../core/format.js";
import { machineOf, ofAnotherModel, underWay } from "../labels.js";
import { TEXT } from "../text.js";

const SPEAK_AFTER = 5000; // ms: a screen reader hears what matters, not every token

/** @type {import("../core/panels.js").Panel} */
export const status = {
  name: "status",
  className: "avl-top",
  html: `<div class="avl-status">
  <span class="avl-badge" data-id="badge"></span>
  <span class="avl-status-text" data-id="status"></span>
  <span class="avl-sr" role="status" data-id="spoken"></span>
  <span class="avl-actions">
    <button type="button" class="avl-btn" data-id="tour" hidden></button>
    <button type="button" class="avl-btn" data-id="copy"></button>
  </span>
</div>
<div class="avl-alert" data-id="alert" role="alert" hidden></div>`,
  on: ["run", "state", "source", "place", "stream", "id", "unrun", "error", "now", "edited"],
  mount({ parts: $, store, tools }) {
    let spokenAt = 0;
    put($.tour, TEXT.tour);
    put($.copy, TEXT.copyLink);
    $.copy.title = TEXT.copyLinkTitle;
    show($.copy, !tools.report); // a report has no server to link to
    $.tour.addEventListener("click", () => tools.tour());
    const rename = debounce(() => put($.copy, TEXT.copyLink), 2500);
    $.copy.addEventListener("click", async () => {
      const address = `${location.origin}${location.pathname}?${linkOf(store.state, tools.playhead.step)}`;
      try {
        await navigator.clipboard.writeText(address);
        put($.copy, TEXT.copied);
      } catch {
        // no permission (a frame, plain http): the address bar can be copied by hand
        history.replaceState(null, "", address);
        put($.copy, TEXT.seeAddress);
      }
      rename();
    });
    let opened = -1;
    const update = () => {
      const { state } = store, text = statusOf(state, tools.about.name || ""), now = performance.now();
      put($.status, text);
      put($.badge, badgeOf(state));
      put($.alert, state.error);
      show($.alert, Boolean(state.error));
      show($.tour, Boolean(state.run && state.run.start));
      tools.root.dataset.state = state.recorded && ["idle", "done"].includes(state.state) ? "recorded" : state.state;
      if (now - spokenAt > SPEAK_AFTER || state.state === "done") { spokenAt = now; put($.spoken, text); }
      if (state.opened !== opened) {
        opened = state.opened;
        if (state.source === "live" && state.id !== null && innerWidth <= 760) tools.root.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
      }
    };
    update();
    return { update };
  },
};

/** @typedef {Readonly<import("../state.js").State>} State */

/** What is looked at, as an address with the inputs. @param {State} state @param {number} step */
function linkOf(state, step) {
  const parameters = new URLSearchParams(linkOfInputs());
  parameters.set("l", String(state.layer));
  if (state.run && state.run.start) parameters.set("f", String(state.focus));
  if (state.run && state.run.arms.length > 2) parameters.set("arms", state.pair.map((index) => index + 1).join("-"));
  if (state.mode !== "sets") parameters.set("v", state.mode);
  if (state.run && !state.follow) parameters.set("t", String(step));
  return parameters;
}

/** @param {State} state */
function badgeOf({ run, state, source }) {
  const busy = /** @type {Record<string, string>} */ (TEXT.badges)[state];
  if (busy) return busy;
  if (!run || !run.start) return TEXT.ready;
  return run.error && source === "live" ? TEXT.failed : TEXT.sources[source];
}

/** Words for a run that was not the last thing asked for, or never began. @param {State} state */
function plain({ state, place, unrun }) {
  return {
    idle: unrun ? TEXT.unrun : TEXT.idle, queued: TEXT.queued(place), running: TEXT.starting, stopping: TEXT.stopping, refused: TEXT.refused,
    lost: TEXT.lost, done: TEXT.stoppedBefore,
  }[state] || "";
}

/** @param {State} state @param {string} own name of the model that Run asks */
function statusOf(state, own) {
  const { run, stream, id } = state;
  const shown = run && run.start && (stream === null || stream === id) && !["refused", "lost", "queued"].includes(state.state);
  return shown ? ofRun(state, own) : plain(state);
}

/** @param {State} state @param {string} own */
function ofRun(state, own) {
  const run = /** @type {import("../trace/run.js").Run} */ (state.run), { start } = run, date = String(start.date).slice(0, 10);
  if (state.state === "running") {
    if (run.finished) return further(run);
    return underWay(run, Math.max(0, state.now - state.eventAt));
  }
  if (state.state !== "done") return plain(state);
  const stopped = !run.finished || run.arms.some((arm) => arm.end && arm.end.reason === "stopped");
  const done = Math.min(...run.arms.map((arm) => arm.repeats.length)) + 1, asked = run.meta.repeats || done;
  const ended = run.error ? TEXT.endedEarly : stopped ? TEXT.stopped : done < asked ? TEXT.repeatsStopped(done, asked) : TEXT.finished;
  if (state.source === "recorded") return ofAnotherModel(run) ? TEXT.recordedOther(date, run.meta.other_model, own) : TEXT.recorded(date);
  if (state.source === "report") return TEXT.report(`${machineOf(start).split(" · ")[0]}, ${(start.machine || {}).gpu || (start.machine || {}).cpu || start.model.device || ""}, ${date}`);
  const how = stopped ? TEXT.lastStopped : ended;
  return state.source === "last" ? TEXT.last(how) : state.source === "earlier" ? TEXT.earlier(formatTime(start.date), how) : ended;
}

/** What a run still does when its answers stand. @param {import("../trace/run.js").Run} run */
function further(run) {
  const again = run.arms.reduce((most, arm) => Math.max(most, arm.repeats.length), 0);
  if (run.arms.some((arm) => arm.scores.length)) return TEXT.recordingAttention;
  const measured = run.arms.filter((arm) => arm.agreement).length;
  if (measured) return TEXT.measuringAgreement(measured, run.arms.length);
  return again ? TEXT.repeating(again + 1, run.meta.repeats) : TEXT.measuring;
}
