// The player: one trace, one playhead, every panel a view of them. Values arrive as batches of events; the last one is the whole trace.

const root = mount(element);
const $ = {};
for (const node of root.querySelectorAll("[data-id]")) $[node.dataset.id] = node;

const view = {
  run: null, id: null, source: "live", recorded: false, // the run that is shown; "recorded" and "last" (before a reload) are other sources
  state: "idle", stream: null, arriving: null, heard: 0, // the run that is received: shown from its first event on
  follow: true, playing: false, compared: "core", clock: null, ts: [0, 0],
  focus: 0, layer: 0, mode: "sets", lattices: [], grid: 0, patch: -1, whole: false,
  touchedLayer: false, wantedFocus: null, wantedStep: null, // what a visitor or a link chose
  received: 0, fetching: false, place: 0, // of the stream; place in the queue
  pending: [], pendingReadings: [], fullDrawn: -1, flushTimer: 0, flushAfter: 0, // points that the charts do not have yet
  thumbKey: "", analysisKey: "", recordedKey: "", // what was drawn last
};
const cards = [];
const overlay = new Overlay($.overlay);
const track = new Track($.track, (arm, clock) => { pause(); seekClock(clock); setFocus(arm); });
const charts = {
  memory: new Chart($.memory, { x: "generated token", unit: "MiB", hover: ".2f", height: 200, pick: seek }),
  latency: new Chart($.latency, { x: "generated token", unit: "ms", hover: ".2f", height: 190, pick: seek }),
  device: new Chart($.device, { x: "compute time, ms", unit: "MiB", hover: ".1f", height: 140 }),
  shares: new Chart($.shares, { x: "generated token", unit: "%", hover: ".1f", height: 140, pick: seek }),
  sparsity: new Chart($.sparsity, { x: "share of the image tokens, %", unit: "% of the attention", hover: ".1f", height: 140 }),
};
async function loadCharts() {
  const library = await loadPlotly(props.plotly).catch(() => null);
  for (const chart of Object.values(charts)) {
    await new Promise((resolve) => setTimeout(resolve)); // a task each: the page answers in between
    if (library) chart.use(library); else chart.fail();
  }
}
const heats = {
  continuity: new Heat($.continuity, (layer, choice) => { pause(); setLayer(layer); seek(Number(heats.continuity.shown.colName(choice)) - (view.compared === "core" ? 0 : 1)); }),
  layers: new Heat($.layers, (layer) => setLayer(layer)),
};
setUpHelp($);
const tour = new Tour(root, $);
$.tour.addEventListener("click", () => tour.show(0));
let unit = { name: "MiB", size: 2 ** 20 };
let measures = { frames: 0, overlayMs: [], flushMs: [], batches: 0 };
window.avlPlayer = { view, measures, overlay, predicted, compareTimes, changedSince }; // for tests and for the curious: read only

function receive(value) {
  if (!value || typeof value !== "object") return;
  measures.batches++;
  if (value.recorded && !value.trace) return fetchFirst(value);
  view.heard = performance.now();
  if (value.state === "refused") { refuse(value.message); return; }
  if (value.run && !value.source && value.run !== view.stream) hear(value);
  if (value.trace) return complete(value);
  const before = view.state;
  if (value.state) view.state = value.state;
  view.place = value.position || 0;
  if (Array.isArray(value.events) && value.events.length) {
    if (value.first > view.received) return fetchMissing(value.run, view.received);
    accept(value.events.slice(view.received - value.first));
  }
  if (before !== view.state || value.state === "queued") drawAsked();
  setStatus();
}

// complete: replaces what was streamed, so nothing that got lost on the way can stay lost
function complete(value) {
  const { events, images } = value.trace, meta = value.trace.meta || {};
  view.state = value.state || "done";
  if (!events.some((event) => event.kind === "start")) {
    // it never began: what was shown before stays, whole and with its own label
    const error = events.find((event) => event.kind === "error") || (view.arriving && view.arriving.error);
    if (error) { view.state = "refused"; showError(error.message); }
    drawAsked();
    finish();
    return;
  }
  if (view.id !== value.run || view.run.count !== events.length) {
    const follow = view.id === value.run ? view.follow : true;
    begin(value.run, images && images.length ? images : view.arriving ? view.arriving.images : [], value.source || "live");
    view.run.meta = meta;
    for (const event of events) view.run.push(event);
    setUp();
    refill();
    view.follow = follow;
  } else {
    view.run.meta = meta;
  }
  drawAsked();
  finish();
}

function refuse(message) {
  view.state = "refused";
  showError(message);
  drawAsked();
  setStatus();
}

// a run was asked for; it is shown once it has begun
function hear(value) {
  view.stream = value.run;
  view.received = 0;
  view.arriving = { images: value.images || [], meta: value.meta || {}, error: null };
  hideError();
  remember("avl-run", value.run);
}

// The run that the page opens with comes after the first paint, unless the visitor was faster: in a tab that was loaded anew the visitor's
// last one, else the recording, unless a link asks for something else.
function fetchFirst(value) {
  const kept = loadedAgain() ? recall("avl-run") : "";
  const open = (text, more) => {
    if (!text || view.id !== null || view.state !== "idle") return false;
    const found = JSON.parse(text);
    if (more.source === "recorded" && location.search && asksForAnother(found)) { view.state = "idle"; view.unrun = true; setStatus(); return true; }
    receive({ ...value, ...more, trace: found });
    return true;
  };
  const recording = () => (value.recorded && server.recording ? server.recording({}).then((text) => whenInputs(() => open(text, { source: "recorded" }))) : null);
  requestAnimationFrame(() => setTimeout(() => {
    const last = kept && server.last ? server.last({ run: kept }) : Promise.resolve(null);
    last.then((text) => open(text, { run: kept, source: "last", state: "done" }) || recording()).catch(() => {});
  }));
}

// the settings and the strip mount on their own time
function whenInputs(then, tries = 60) {
  if (inputsNow() || !tries) then(); else setTimeout(() => whenInputs(then, tries - 1), 50);
}

function asksForAnother(found) {
  const link = new URLSearchParams(location.search), now = inputsNow(), run = new Run();
  const ours = ["ex", "scene", "q", "a", "b", "n", "B"].some((key) => link.has(key)) || [...link.keys()].some((key) => /^([ab]\.)?[A-Z]$/.test(key));
  if (!ours || !now) return false;
  run.push(found.events[0]);
  run.meta = found.meta || {};
  // the example that a link names may still be on its way
  const picture = link.has("ex") ? `ex=${link.get("ex")}` : link.has("scene") ? `scene=${link.get("scene")}` : now.link;
  return changedSince(run, { ...now, id: "", link: picture, question: link.get("q") || (picture === run.meta.link ? run.start.question : now.question) }).length > 0;
}

// a batch never arrived (a sleeping tab): ask for everything from the gap on
function fetchMissing(run, first) {
  if (view.fetching || !server.missing) return;
  view.fetching = true;
  server.missing({ run, first }).then((events) => {
    view.fetching = false;
    if (events && view.stream === run && view.received === first) accept(events);
  }, () => { view.fetching = false; });
}

// the server says something every second while a run waits or goes on
const SILENCE = 20000;
setInterval(() => {
  if (!["queued", "running", "stopping"].includes(view.state) || !props.about || !props.about.heartbeat || performance.now() - view.heard < SILENCE) return;
  view.state = "lost";
  showError("The server stopped answering. Check the connection, then reload the page: your inputs stay.");
  drawAsked();
  setStatus();
}, 2000);

addEventListener("beforeunload", (event) => {
  if (["queued", "running"].includes(view.state)) event.preventDefault(); // leaving ends the run
});

function begin(id, images, source) {
  pause();
  clearTimeout(view.flushTimer);
  view.flushTimer = 0;
  view.pending = [];
  view.pendingReadings = [];
  view.run = new Run();
  view.run.images = images;
  view.id = id;
  view.source = source;
  view.recorded = source === "recorded";
  view.follow = true;
  view.clock = null;
  view.patch = -1;
  view.ts = [0, 0];
  overlay.selected = -1;
  show($.resultPanel, false);
  hideError();
  if (source === "live" && innerWidth <= 760) root.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
}

function accept(events) {
  for (const event of events) {
    view.received++;
    if (event.kind === "start") {
      begin(view.stream, view.arriving.images, "live");
      view.run.meta = view.arriving.meta;
    }
    if (view.id !== view.stream) {
      if (event.kind === "error") view.arriving.error = event;
      continue;
    }
    view.run.push(event);
    if (event.kind === "start") setUp();
    if (event.kind === "prefill" || event.kind === "step") pointsOf(event);
    if (event.kind === "reading") readingPoint(event);
    if (event.kind === "error") showError(event.message);
  }
  if (view.id !== view.stream) return;
  flushSoon();
  const run = view.run;
  if (view.follow && run.start) view.ts = run.arms.map((arm) => Math.max(0, arm.last));
  invalidate();
  setStatus();
}

function setUp() {
  const run = view.run, start = run.start;
  if (!start) return;
  const size = run.fullBytes(start.limit);
  unit = size >= 2 ** 31 ? { name: "GiB", size: 2 ** 30 } : size >= 2 ** 20 ? { name: "MiB", size: 2 ** 20 } : { name: "KiB", size: 2 ** 10 };
  view.ts = start.arms.map(() => 0);
  const adaptive = start.arms.findIndex((arm) => arm.policy.name !== "Full");
  view.focus = Math.max(0, Math.min(start.arms.length - 1, view.wantedFocus ?? adaptive));
  view.layer = Math.min(view.layer, start.layers - 1);
  if (!view.touchedLayer) view.layer = Math.min(start.layers - 1, Math.floor(start.layers / 2));
  view.lattices = latticesOf(start.grids, start.images);
  view.grid = finestOf(view.lattices);
  view.whole = false;
  $.layer.max = start.layers - 1;
  show($.intro, false);
  show($.racePanel, true);
  show($.columns, true);
  show($.tour, true);
  buildCards();
  buildFocus();
  buildGrids();
  buildThumbs();
  buildCharts();
  loadPicture();
  drawAsked();
}

// the whole run at once
function refill() {
  const run = view.run;
  fillCharts();
  view.ts = run.arms.map((arm) => Math.max(0, arm.last));
  if (run.error) showError(run.error);
  invalidate();
}

// The playhead: one position for every panel.

function seek(t) {
  if (!view.run || view.run.last < 0) return;
  const last = view.run.last;
  t = Math.max(0, Math.min(last, Math.round(t)));
  view.follow = t === last && !view.playing;
  view.clock = null;
  view.ts = view.run.arms.map((arm) => Math.max(0, Math.min(arm.last, t)));
  invalidate();
}

function seekClock(clock) {
  if (!view.run || view.run.last < 0) return;
  view.follow = false;
  view.clock = Math.max(0, Math.min(view.run.clockEnd, clock));
  view.ts = view.run.arms.map((arm) => Math.max(0, arm.stepAt(view.clock)));
  invalidate();
}

function pause() {
  view.playing = false;
  if ($.play.textContent !== "▶") put($.play, "▶");
  $.play.setAttribute("aria-label", "Replay the race");
}

function play() {
  if (!view.run || view.run.last < 1) return;
  view.playing = true;
  put($.play, "❚❚");
  $.play.setAttribute("aria-label", "Pause");
  const end = view.run.clockEnd;
  let clock = view.clock === null || view.clock >= end ? (Math.max(...view.ts) >= view.run.last ? 0 : Math.min(...view.run.arms.map((arm, index) => arm.clock[view.ts[index]] ?? 0))) : view.clock;
  let before = performance.now();
  const tick = (now) => {
    if (!view.playing) return;
    clock += (now - before) * Number($.speed.value);
    before = now;
    seekClock(clock);
    if (clock >= view.run.clockEnd) { pause(); return; }
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

$.play.addEventListener("click", () => (view.playing ? pause() : play()));
$.back.addEventListener("click", () => { pause(); seek(currentStep() - 1); });
$.forth.addEventListener("click", () => { pause(); seek(currentStep() + 1); });
$.step.addEventListener("input", () => { pause(); seek(Number($.step.value)); });
$.layer.addEventListener("input", () => setLayer(Number($.layer.value)));
$.view.addEventListener("change", () => { view.mode = $.view.value; invalidate(); });
$.zoom.addEventListener("click", () => { view.whole = !view.whole; loadPicture(); invalidate(); });
$.compared.addEventListener("change", () => { view.compared = $.compared.value; invalidate(); });
$.grid.addEventListener("change", () => { view.grid = Number($.grid.value); view.patch = -1; loadPicture(); invalidate(); });
$.overlay.addEventListener("click", (event) => {
  const box = $.overlay.getBoundingClientRect();
  const token = view.run && view.run.start ? overlay.tokenAt(event.clientX - box.left, event.clientY - box.top) : -1;
  view.patch = token === view.patch ? -1 : token;
  invalidate();
});

function currentStep() {
  return view.run ? Math.max(0, ...view.ts) : 0;
}

root.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tag = event.target.tagName, range = tag === "INPUT";
  if (tag === "SELECT" || tag === "TEXTAREA" || (tag === "BUTTON" && event.key === " ")) return;
  const act = {
    ArrowLeft: () => { pause(); seek(currentStep() - 1); }, ArrowRight: () => { pause(); seek(currentStep() + 1); },
    ArrowUp: () => setLayer(view.layer - 1), ArrowDown: () => setLayer(view.layer + 1),
    d: () => root.classList.toggle("avl-only-differences"), Home: () => { pause(); seek(0); }, End: () => { pause(); seek(Infinity); }, " ": () => (view.playing ? pause() : play()),
  }[event.key];
  // a range keeps its own keys; elsewhere they move the playhead
  if (!act || (range && event.key !== " ") || !view.run) return;
  event.preventDefault();
  act();
});

// Drawing: at most once per frame, and only what changed.

let scheduled = false;

function invalidate() {
  if (scheduled) return;
  scheduled = true;
  // a hidden tab gets no animation frames, and needs no drawing
  requestAnimationFrame(() => { scheduled = false; draw(); });
}

function draw() {
  const run = view.run;
  if (!run || !run.start) return;
  measures.frames++;
  drawCards();
  drawOverlay();
  drawThumbs();
  drawAnalysis();
  const clock = view.clock !== null ? view.clock : run.arms.length ? Math.max(...run.arms.map((arm, index) => arm.clock[view.ts[index]] || 0)) : null;
  track.draw(run, view.follow && !run.finished ? null : clock, colors());
  const t = run.arms[view.focus] ? view.ts[view.focus] : 0;
  for (const name of PER_TOKEN) charts[name].moveCursor(run.last > 0 ? t : null);
  const last = Math.max(0, run.last);
  if (Number($.step.max) !== last) $.step.max = last;
  const now = currentStep();
  if (Number($.step.value) !== now) $.step.value = now;
  put($.where, run.last < 0 ? "token –" : `token ${now + 1} of ${run.last + 1}`);
  drawLead();
}

function drawLead() {
  const run = view.run;
  if (run.arms.length < 2 || run.arms.some((arm) => arm.last < 1)) { put($.lead, ""); return; }
  put($.lead, [timesInWords(run), run.arms.some((arm) => arm.repeats.length) ? "drawn: the first run" : ""].filter(Boolean).join(" · "));
}

let palette = null;

function colors() {
  palette ||= { arms: [variable(root, "--avl-a"), variable(root, "--avl-b")], line: variable(root, "--avl-line"), text: variable(root, "--avl-text"), muted: variable(root, "--avl-muted") };
  return palette;
}

onTheme(() => { palette = null; for (const chart of Object.values(charts)) chart.retheme(); invalidate(); });
new ResizeObserver(debounce(() => { if (view.run && view.run.start) { overlay.resize(); invalidate(); } }, 80)).observe(root);
