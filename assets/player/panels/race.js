// The race: compute time of each policy as lanes on one clock, who is faster, and where the answers part.

import { put, show } from "../core/dom.js";
import { Track } from "../charts/track.js";
import { quoted, shortLabel } from "../labels.js";
import { shownArms, sideOf } from "../state.js";
import { TEXT } from "../text.js";
import { timesInWords } from "../verdict.js";

/** @type {import("../core/panels.js").Panel} */
export const race = {
  name: "race",
  label: "Race",
  help: TEXT.raceHelp,
  html: `<div class="avl-head" data-id="raceHead"><h2>${TEXT.race}</h2><span class="avl-note" data-id="lead"></span></div>
<div class="avl-lanes"><canvas class="avl-track" data-id="track" role="img" aria-label="${TEXT.raceTrack}"></canvas></div>
<p class="avl-diverge" data-id="diverge"></p>`,
  on: ["run", "opened", "ts", "clock", "follow", "pair", "theme", "width", "now", "state", "complete"],
  mount({ node, parts: $, store, tools }) {
    const track = new Track($.track, (arm, clock) => {
      tools.playhead.pause();
      tools.playhead.seekClock(clock);
      tools.look({ focus: arm });
    });
    node.hidden = true;
    let said = "";
    return {
      update() {
        const { state } = store, { run } = state;
        show(node, Boolean(run && run.start) && !(state.complete === state.opened && run && run.last < 0));
        if (!run || !run.start || node.hidden) return;
        const colors = tools.colors(), waiting = state.state === "running" && run.prefilling >= 0;
        track.draw(run, state.follow && !run.finished ? null : tools.playhead.clock, waiting ? Math.max(0, state.now - state.eventAt) : 0, {
          ...colors, names: run.arms.length > 2 ? run.arms.map((arm) => shortLabel(run, arm)) : [],
          colors: run.arms.map((_, index) => (/** @type {Record<string, string>} */ ({ a: colors.a, b: colors.b })[sideOf(state, index)] || colors.muted)),
        }, state.width);
        const arms = shownArms(state), known = `${state.opened}/${run.count}/${state.pair}`;
        if (said === known) return;
        said = known;
        put($.lead, arms.length < 2 || arms.some((arm) => arm.last < 1) ? "" :
          [timesInWords(run, arms[0], arms[1]), run.arms.some((arm) => arm.repeats.length) ? TEXT.firstRunDrawn : ""].filter(Boolean).join(" · "));
        drawDivergence($.diverge, run, arms);
      },
    };
  },
};

/** @param {any} node @param {import("../trace/run.js").Run} run @param {import("../trace/run.js").Arm[]} arms */
function drawDivergence(node, run, [a, b]) {
  const prefix = run.commonPrefix(a, b);
  if (!prefix || run.last < 0) { put(node, ""); return; }
  const { same, differs } = prefix;
  if (differs) put(node, TEXT.diverges(same, `${shortLabel(run, a)} ${quoted(a, same)}`, `${shortLabel(run, b)} ${quoted(b, same)}`));
  else if (!run.finished) put(node, TEXT.identicalSoFar(same));
  else put(node, a.tokens.length === b.tokens.length ? TEXT.identical(same) : same ? TEXT.identicalPart(same) : "");
  node.classList.toggle("avl-differs", differs);
}
