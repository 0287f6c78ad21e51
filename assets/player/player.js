// The player: one run, one playhead, every panel a view of them.

import { onTheme, mount, isDark, variable, debounce } from "./core/dom.js";
import { hear, offer } from "./core/page.js";
import { mountPanels } from "./core/panels.js";
import { Store } from "./core/store.js";
import { openingLink } from "./core/tab.js";
import { Chart, loadPlotly } from "./charts/line.js";
import { analysis } from "./panels/analysis.js";
import { agreement } from "./panels/agreement.js";
import { answers } from "./panels/answers.js";
import { askOn } from "./panels/ask_on.js";
import { asked } from "./panels/asked.js";
import { conversation } from "./panels/conversation.js";
import { continuity } from "./panels/continuity.js";
import { device } from "./panels/device.js";
import { history } from "./panels/history.js";
import { intro } from "./panels/intro.js";
import { latency } from "./panels/latency.js";
import { layers } from "./panels/layers.js";
import { memory } from "./panels/memory.js";
import { policies } from "./panels/policies.js";
import { race } from "./panels/race.js";
import { result } from "./panels/result.js";
import { shares } from "./panels/shares.js";
import { sparsity } from "./panels/sparsity.js";
import { status } from "./panels/status.js";
import { textTokens } from "./panels/text_tokens.js";
import { timeline } from "./panels/timeline.js";
import { tokens } from "./panels/tokens.js";
import { changedSince } from "./inputs.js";
import { Playhead } from "./playhead.js";
import { Receiver } from "./receive.js";
import { including, initialState } from "./state.js";
import { compareTimes } from "./stats/times.js";
import { TEXT } from "./text.js";
import { Tour } from "./tour.js";
import { predicted } from "./verdict.js";
import { Visit } from "./visit.js";

/**
 * What panels may use.
 * @typedef {Object} Tools
 * @property {HTMLElement} root
 * @property {any} server Gradio's functions of the component
 * @property {any} about facts about the model
 * @property {boolean} report the player is within a downloaded report
 * @property {Playhead} playhead
 * @property {Receiver} receiver
 * @property {Visit} visit
 * @property {(changes: { pair?: [number, number], focus?: number, layer?: number }) => void} look an arm that comes into focus joins the pair
 * @property {() => { a: string, b: string, line: string, text: string, muted: string }} colors
 * @property {(element: any, options: import("./charts/line.js").ChartOptions) => Chart} chart
 * @property {() => void} tour
 * @property {() => void} rerun
 * @property {(wanted: { run: string | null, question: string, reread: boolean }) => void} askOn
 * @property {() => Promise<any>} viewAsPng
 * @property {any} overlay
 * @property {{ frames: number, overlayMs: number[], flushMs: number[] }} measures for tests
 */

// in the order of the page
const PANELS = [status, asked, intro, conversation, answers, askOn, policies, agreement, race, timeline, tokens, textTokens, memory, latency, device, analysis, continuity, layers, shares, sparsity, result, history];

const root = mount(element, STYLE, "");
const store = new Store(initialState());
const link = openingLink(), linked = (/** @type {string} */ name) => (/^\d{1,4}$/.test(link.get(name) || "") ? Number(link.get(name)) : null);
const layer = linked("l"), mode = link.get("v") || "";
if (layer !== null) store.set({ layer, touchedLayer: true });
if (mode in TEXT.modes) store.set({ mode: /** @type {any} */ (mode) });

const about = props.about || {}, report = Boolean(props.value && props.value.source === "report");
const arms = /^(\d)-(\d)$/.exec(link.get("arms") || "");
/** @type {{ focus: number | null, step: number | null, pair: [number, number] | null }} */
const wanted = { focus: linked("f"), step: linked("t"), pair: arms && [Number(arms[1]) - 1, Number(arms[2]) - 1] };
const visit = new Visit(store, server);
const receiver = new Receiver(store, server, { wanted, visit, join: (run) => trigger("select", { run, first: 0 }) });
/** @type {Chart[]} */ const charts = [];
/** @type {any} */ let plotly = null;
/** @type {ReturnType<Tools["colors"]> | null} */ let palette = null;

/** @type {Tools} */
const tools = {
  root, server, about, report, receiver, visit,
  playhead: new Playhead(store),
  look({ pair, focus, layer: chosen }) {
    const { run, pair: before, focus: at } = store.state;
    if (!run || !run.start) return;
    if (pair) {
      wanted.pair = pair;
      wanted.focus = pair.includes(at) ? at : pair.find((index) => !before.includes(index)) ?? pair[1];
      store.set({ pair, focus: wanted.focus });
    }
    if (focus !== undefined) {
      wanted.focus = focus;
      store.set({ focus, ...(run.arms.length > 1 ? { pair: including(before, focus) } : {}) });
    }
    if (chosen !== undefined) store.set({ touchedLayer: true, layer: Math.max(0, Math.min(run.start.layers - 1, chosen)) });
  },
  colors: () => palette ||= { a: variable(root, "--avl-a"), b: variable(root, "--avl-b"), line: variable(root, "--avl-line"), text: variable(root, "--avl-text"), muted: variable(root, "--avl-muted") },
  chart(node, options) {
    const chart = new Chart(node, options);
    charts.push(chart);
    if (plotly) chart.use(plotly);
    return chart;
  },
  tour: () => tour.show(0),
  rerun: () => { const run = document.querySelector("#avl-run"); if (run) /** @type {HTMLElement} */ (run).click(); },
  askOn: (question) => trigger("submit", question),
  viewAsPng: () => Promise.reject(new Error("there is no picture")),
  overlay: null,
  measures: { frames: 0, overlayMs: [], flushMs: [] },
};
store.subscribe(/** @type {any} */ (Object.keys(store.state)), () => { tools.measures.frames++; });
const tour = new Tour(root, mountPanels(root, PANELS, store, tools));

async function loadCharts() {
  const library = await loadPlotly(props.plotly).catch(() => null);
  plotly = library;
  for (const chart of charts) {
    await new Promise((resolve) => setTimeout(resolve)); // a task each: the page answers in between
    if (library) chart.use(library); else chart.fail();
  }
}

root.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { tagName } = /** @type {HTMLElement} */ (event.target), { playhead } = tools, { layer: at, differences } = store.state;
  const own = tagName === "BUTTON" || (tagName === "INPUT" && /** @type {HTMLInputElement} */ (event.target).type !== "range"); // the space key presses it
  if (tagName === "SELECT" || tagName === "TEXTAREA" || (own && event.key === " ")) return;
  const act = /** @type {Record<string, () => void>} */ ({
    ArrowLeft: () => playhead.jump(playhead.step - 1), ArrowRight: () => playhead.jump(playhead.step + 1), ArrowUp: () => tools.look({ layer: at - 1 }),
    ArrowDown: () => tools.look({ layer: at + 1 }), Home: () => playhead.jump(0), End: () => playhead.jump(Infinity), " ": () => playhead.toggle(),
    d: () => store.set({ differences: !differences }),
  })[event.key];
  // a field keeps its own keys; elsewhere they move the playhead
  if (!act || (tagName === "INPUT" && event.key !== " ") || !store.state.run) return;
  event.preventDefault();
  act();
});

// a click on Stop is shown at once; the engine confirms at its next step
hear("stop", () => { if (["running", "queued"].includes(store.state.state)) store.set({ state: "stopping" }); });
hear("edited", debounce(() => store.set({ edited: store.state.edited + 1 }), 60));
onTheme(() => {
  palette = null;
  for (const chart of charts) chart.retheme();
  store.set({ theme: isDark() ? "dark" : "light" });
});
new ResizeObserver(debounce(() => store.set({ width: root.clientWidth }), 80)).observe(root);

// for tests and for the curious: read only
offer("avlPlayer", {
  view: store.state, store, measures: tools.measures, get overlay() { return tools.overlay; }, receiver, compareTimes, changedSince,
  predicted: (/** @type {any} */ arm) => (store.state.run ? predicted(store.state.run, arm) : null),
});
watch("value", () => receiver.receive(props.value));
if (props.value) receiver.receive(props.value); else receiver.open({});
root.dataset.ready = "yes";
// a frame later: what can be seen without the charts is seen first
if (/** @type {any} */ (window).Plotly) loadCharts(); else requestAnimationFrame(() => setTimeout(loadCharts));
