// Beside the run: a sweep of a setting on this picture, and what another GPU would take. Both are folded until somebody asks.

import { Chart, loadPlotly } from "./charts/line.js";
import { debounce, mount, onTheme, partsOf, put, show, variable } from "./core/dom.js";
import { hear } from "./core/page.js";
import { busy } from "./core/panels.js";
import { recall, remember, save } from "./core/tab.js";
import { named } from "./sweep/data.js";
import { FORM, sweepForm } from "./sweep/form.js";
import { RESULTS, sweepResults } from "./sweep/results.js";
import { SweepStream } from "./sweep/stream.js";
import { WHAT_IF, whatIf } from "./sweep/what_if.js";
import { TEXT } from "./text.js";

const KEY = "avl-sweep"; // what the tab remembers its sweep by
const SILENCE = 20000; // ms; the server says something every second while a sweep waits or goes on

const root = mount(element, STYLE, `<details class="avl-panel avl-free avl-fold" data-id="sweepFold"><summary><h2>${TEXT.sweep}</h2></summary><div>${FORM}
<div data-id="sweepBusy" hidden><p class="avl-sweep-state" data-id="sweepState" role="status"></p><progress class="avl-sweep-bar" data-id="sweepBar" aria-label="${TEXT.sweepProgress}" value="0" max="1"></progress></div>
${RESULTS}</div></details>
<details class="avl-panel avl-free avl-fold" data-id="whatIfFold"><summary><h2>${TEXT.whatIf.title}</h2></summary><div>${WHAT_IF}</div></details>`);
const $ = partsOf(root);
/** @type {Chart[]} */ const charts = [];
const tools = {
  server, catalog: props.policies,
  chart(/** @type {any} */ node, /** @type {any} */ options) { const made = new Chart(node, options); charts.push(made); return made; },
  colors: () => ({ text: variable(root, "--avl-text"), muted: variable(root, "--avl-muted") }),
};

/** @type {any} */ let plan = null;
let heard = 0;

const results = sweepResults($, tools);
const form = sweepForm($, tools, (found) => { plan = found; drawButton(); });
const machines = whatIf($, tools);
const stream = new SweepStream((wanted) => server.sweep_missing(wanted), {
  begun() { show($.sweepResult, false); remember(KEY, stream.key || ""); },
  events(sweep, events) {
    if (events.some((event) => event.kind === "sweep_start")) { results.begin(sweep); show($.sweepPreview, false); }
    // a later row of a point replaces the one before
    for (const at of new Set(events.filter((event) => event.kind === "sweep_point").map((event) => event.point ?? -1))) results.place(at);
    if (events.some((event) => event.kind !== "sweep_progress") || sweep.axes.length === 2) results.drawSoon();
  },
  changed() {
    if (!stream.going) results.draw();
    drawState();
  },
});

// the server's buttons say whether this visitor runs anything; a sweep would wait behind it, out of Stop's reach
const runButton = () => /** @type {HTMLButtonElement | null} */ (document.querySelector("#avl-run"));

function drawButton() {
  const run = runButton(), waits = Boolean(run && run.disabled) && !stream.going, points = plan ? plan.points.length : 0;
  $.sweepGo.disabled = !points || waits || stream.going;
  put($.sweepGo, TEXT.sweepGo(points));
  $.sweepGo.title = waits ? TEXT.sweepGoTitle : "";
}

function drawState() {
  const { sweep, state, problem } = stream, planned = sweep && sweep.start ? sweep.start.points.length : 0;
  drawButton();
  show($.sweepBusy, state !== "idle" && state !== "refused");
  show($.sweepBar, stream.going && planned > 0);
  $.sweepBar.max = planned + 1;
  $.sweepBar.value = sweep ? sweep.rows.size : 0;
  put($.sweepState, inWords(sweep, planned));
  put($.sweepProblem, problem);
  show($.sweepProblem, Boolean(problem));
}

/** @param {import("./sweep/data.js").Sweep | null} sweep @param {number} planned */
function inWords(sweep, planned) {
  const { state } = stream, done = sweep ? sweep.points.length : 0;
  if (state === "lost") return TEXT.lost;
  if (state === "queued") return TEXT.queued(stream.position);
  if (state === "stopping") return TEXT.stopping;
  if (state === "running") {
    const { start, progress } = sweep || { start: null, progress: null };
    if (!start || !progress) return TEXT.sweepWarming;
    return progress.point === null ? TEXT.sweepFullNow(progress.tokens) : TEXT.sweepPointNow(progress.point + 1, planned, named(start.points[progress.point].values), progress.tokens);
  }
  const reason = sweep && sweep.end ? sweep.end.reason : sweep && sweep.error ? "failed" : "stopped";
  return reason === "done" ? TEXT.sweepDone(done) : reason === "failed" ? TEXT.sweepFailed(done, planned) : planned ? TEXT.sweepStopped(done, planned) : TEXT.stoppedBefore;
}

function receive(/** @type {any} */ value) {
  if (!value || typeof value !== "object") return;
  heard = performance.now();
  stream.receive(value);
}

// the page was loaded anew: the server keeps a sweep for an hour, like a run
function comeBack() {
  const key = recall(KEY);
  if (!key) return;
  server.sweep_missing({ run: key, first: 0 }).then((/** @type {string | null} */ text) => {
    const events = text ? JSON.parse(text) : [];
    if (stream.state !== "idle") return; // another one was begun meanwhile
    if (!events.some((/** @type {any} */ event) => event.kind === "sweep_start")) { remember(KEY, ""); return; }
    stream.reopen(key, events);
    $.sweepFold.open = true;
  }, () => {});
}

$.sweepGo.addEventListener("click", () => {
  Object.assign(stream, { state: "queued", position: 0, problem: "" });
  heard = performance.now();
  drawState();
  trigger("select", form.wanted());
});
for (const [button, kind, type] of [[$.sweepCsv, "csv", "text/csv"], [$.sweepJson, "json", "application/json"]]) {
  button.addEventListener("click", () => busy(button, async () => {
    const { key, sweep } = stream, text = await server.sweep_download({ run: key, kind });
    save(`avl-sweep-${String(sweep && sweep.start.date).slice(0, 19).replace(/[^0-9A-Za-z]+/g, "-")}.${kind}`, type, text);
  }, () => { stream.problem = TEXT.sweepGone; drawState(); }));
}

// charts come when a panel is opened: until then nobody sees them
let loading = false;
function loadCharts() {
  if (loading) return;
  loading = true;
  loadPlotly(props.plotly).then((library) => { for (const chart of charts) chart.use(library); }, () => { for (const chart of charts) chart.fail(); });
}
$.sweepFold.addEventListener("toggle", () => { if ($.sweepFold.open) { loadCharts(); form.ask(); results.draw(); } });
$.whatIfFold.addEventListener("toggle", () => { if ($.whatIfFold.open) { loadCharts(); machines.begin(); } });

const inputsChanged = debounce(() => {
  if ($.sweepFold.open) { form.ask(); if (!stream.going) show($.sweepPreview, true); }
  if ($.whatIfFold.open) machines.refresh();
}, 200);
hear("edited", inputsChanged);
hear("prompt", inputsChanged);
$.sweepForm.addEventListener("input", () => { if (!stream.going) show($.sweepPreview, true); });
// a click on Stop is shown at once; the engine confirms at its next step
hear("stop", () => { if (stream.going) { stream.state = "stopping"; drawState(); } });
const go = document.querySelector("#avl-go");
if (go) new MutationObserver(drawButton).observe(go, { subtree: true, attributes: true, attributeFilter: ["disabled"] });
addEventListener("beforeunload", (event) => { if (stream.going) event.preventDefault(); }); // leaving ends the sweep
setInterval(() => {
  if (!stream.going || performance.now() - heard < SILENCE) return;
  stream.state = "lost";
  stream.problem = TEXT.serverSilent;
  drawState();
}, 2000);
const redraw = () => { for (const chart of charts) chart.retheme(); form.draw(); results.draw(); };
onTheme(redraw);
new ResizeObserver(debounce(() => { if ($.sweepFold.open) { form.draw(); results.draw(); } }, 80)).observe(root);
watch("value", () => receive(props.value));
if (props.value) receive(props.value); else comeBack();
root.dataset.ready = "yes";
drawState();
