// The player: one trace, one playhead, every panel a view of them. Values arrive as batches of events; the last one is the whole trace.

const root = mount(element);
const $ = {};
for (const node of root.querySelectorAll("[data-id]")) $[node.dataset.id] = node;

const view = {
  run: null, id: null, state: "idle", recorded: false,
  follow: true, playing: false, clock: null, ts: [0, 0],
  focus: 0, layer: 0, mode: "sets", grid: 0, patch: -1,
  received: 0, picture: null, pending: [],
};
const cards = [];
const overlay = new Overlay($.overlay);
const track = new Track($.track, (arm, clock) => { pause(); seekClock(clock); setFocus(arm); });
const plotly = window.Plotly;
const charts = {
  memory: new Chart(plotly, $.memory, { x: "generated token", unit: "MiB", hover: ".2f", height: 200, pick: seek }),
  latency: new Chart(plotly, $.latency, { x: "generated token", unit: "ms", hover: ".2f", height: 190, pick: seek }),
  device: new Chart(plotly, $.device, { x: "compute time, ms", unit: "MiB", hover: ".1f", height: 140 }),
};
let unit = { name: "MiB", size: 2 ** 20 };
let measures = { frames: 0, overlayMs: [], batches: 0 };
window.avlPlayer = { view, measures, overlay, predicted }; // for tests and for the curious: read only

// ---------------------------------------------------------------- incoming

watch("value", () => receive(props.value));
if (props.value) receive(props.value);

function receive(value) {
  if (!value || typeof value !== "object") return;
  measures.batches++;
  if (value.trace) {
    // complete: replaces what was streamed, so nothing that got lost on the way can stay lost
    const keep = view.id === value.run ? { follow: view.follow } : null;
    if (view.id !== value.run || !view.run || view.run.count !== value.trace.events.length) {
      const images = view.id === value.run && view.run ? view.run.images : [];
      begin(value.run, value.trace.images && value.trace.images.length ? value.trace.images : images, Boolean(value.recorded));
      view.run.meta = value.trace.meta || {};
      for (const event of value.trace.events) view.run.push(event);
      setUp();
      refill();
      if (keep) view.follow = keep.follow;
    } else {
      view.run.meta = value.trace.meta || {};
    }
    view.state = value.state || "done";
    finish();
    return;
  }
  if (value.run && value.run !== view.id) begin(value.run, value.images || [], false);
  if (value.images && value.images.length && view.run && !view.run.images.length) view.run.images = value.images;
  const before = view.state;
  if (value.state) view.state = value.state;
  if (value.state === "refused") { showError(value.message); setStatus(); return; }
  if (before !== view.state) setStatus();
  view.place = value.position || 0;
  if (value.events && value.events.length) {
    if (value.first > view.received) return fetchMissing(value.run, view.received);
    accept(value.events.slice(view.received - value.first));
  }
  setStatus();
}

// a batch never arrived (a sleeping tab): ask for everything from the gap on
function fetchMissing(run, first) {
  if (view.fetching || !server.missing) return;
  view.fetching = true;
  server.missing({ run, first }).then((events) => {
    view.fetching = false;
    if (events && view.id === run && view.received === first) accept(events);
  }, () => { view.fetching = false; });
}

function begin(id, images, recorded) {
  pause();
  view.run = new Run();
  view.run.images = images;
  view.id = id;
  view.recorded = recorded;
  view.received = 0;
  view.follow = true;
  view.clock = null;
  view.patch = -1;
  view.ts = [0, 0];
  overlay.selected = -1;
  show($.resultPanel, false);
  hideError();
  if (!recorded && innerWidth <= 760) root.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
}

function accept(events) {
  const run = view.run;
  const fresh = { memory: null, latency: null };
  for (const event of events) {
    view.received++;
    run.push(event);
    if (event.kind === "start") setUp();
    if (event.kind === "prefill" || event.kind === "step") pointsOf(event);
    if (event.kind === "reading") readingPoint(event);
    if (event.kind === "error") showError(event.message);
  }
  flushPoints(fresh);
  if (view.follow && run.start) view.ts = run.arms.map((arm) => Math.max(0, arm.last));
  invalidate();
  setStatus();
}

function setUp() {
  const run = view.run, start = run.start;
  if (!start) return;
  unit = run.fullBytes(start.limit) >= 2 ** 31 ? { name: "GiB", size: 2 ** 30 } : run.fullBytes(start.limit) >= 2 ** 20 ? { name: "MiB", size: 2 ** 20 } : { name: "KiB", size: 2 ** 10 };
  view.ts = start.arms.map(() => 0);
  view.focus = Math.max(0, Math.min(start.arms.length - 1, start.arms.findIndex((arm) => arm.policy.name !== "Full")));
  view.layer = Math.min(view.layer, start.layers - 1);
  if (!view.touchedLayer) view.layer = Math.min(start.layers - 1, Math.floor(start.layers / 2));
  view.grid = 0;
  $.layer.max = start.layers - 1;
  show($.intro, false);
  show($.racePanel, true);
  show($.columns, true);
  buildCards();
  buildFocus();
  buildGrids();
  buildThumbs();
  buildCharts();
  loadPicture();
  put($.mode, [
    start.mode === "race" ? "race: the arm with less compute time steps next" : start.mode === "isolated" ? "isolated: one arm after the other" : "",
    start.batch > 1 ? `batch ${start.batch}, row 1 shown` : "",
    `${start.n_image} image + ${start.n_text} text tokens`,
  ].filter(Boolean).join(" · "));
}

function refill() {
  const data = { memory: charts.memory.lines.map(() => [[], []]), latency: charts.latency.lines.map(() => [[], []]) };
  const run = view.run;
  view.received = run.count;
  run.arms.forEach((arm, index) => {
    for (let t = 0; t <= arm.last; t++) spread(data, index, t);
  });
  // both arms add to the common line: one point per token is enough
  data.memory[0] = uniquePoints(data.memory[0]);
  charts.memory.fill(data.memory);
  charts.latency.fill(data.latency);
  const readings = charts.device.lines.map(() => [[], []]);
  for (const event of run.readings) spreadReading(readings, event);
  setDevice();
  charts.device.fill(charts.device.lines.map((_, index) => readings[index] || [[], []]));
  view.ts = run.arms.map((arm) => Math.max(0, arm.last));
  if (run.error) showError(run.error);
  invalidate();
}

function uniquePoints([x, y]) {
  const points = new Map(x.map((value, index) => [value, y[index]]));
  const keys = [...points.keys()].sort((a, b) => a - b);
  return [keys, keys.map((key) => points.get(key))];
}

// ---------------------------------------------------------------- curves

function buildCharts() {
  const run = view.run;
  const hasFull = run.arms.some((arm) => arm.spec.policy.name === "Full");
  const memory = [{ name: hasFull ? "" : "full cache", colour: "--avl-muted", dash: "dash", width: hasFull ? 0 : 1.5 }];
  const latency = [];
  run.arms.forEach((arm, index) => {
    const colour = index ? "--avl-b" : "--avl-a";
    arm.memoryLine = memory.length;
    const whole = arm.spec.policy.name === "Full";
    memory.push({ name: whole ? "Full: stored and read" : `${shortLabel(arm)}: stored`, colour, arm: index, width: 2.4 });
    memory.push({ name: whole ? "" : `${shortLabel(arm)}: read`, colour, arm: index, width: whole ? 0 : 1.6, dash: "dot" });
    arm.latencyLine = latency.length;
    latency.push({ name: shortLabel(arm), colour, width: 1.8 });
    latency.push({ name: `${shortLabel(arm)}: update step`, colour, markers: true });
  });
  charts.memory.options.unit = unit.name;
  charts.memory.options.hover = unit.name === "KiB" ? ".0f" : ".2f";
  charts.memory.reset(memory);
  charts.latency.reset(latency);
  view.fullDrawn = -1;
  buildKeys($.memoryKeys, memory.filter((line) => line.name).map((line) => ({ ...line, text: line.name })));
  buildKeys($.latencyKeys, latency.filter((line, index) => !line.markers || hasUpdates(Math.floor(index / 2))).map((line) => ({ ...line, text: line.name })));
  put($.memoryNote, `${unit.name}, all layers${run.start.batch > 1 ? `, ${run.start.batch} rows` : ""}`);
  put($.latencyNote, "ms per decode step");
  charts.device.lines = [];
  setDevice();
}

function hasUpdates(index) {
  const policy = view.run.arms[index].spec.policy;
  return policy.name === "AVL" && policy.C !== null && policy.C !== undefined;
}

function buildKeys(node, lines) {
  node.replaceChildren(...lines.map((line) => h("span", { class: "avl-key" },
    h("i", { class: `avl-swatch ${line.markers ? "avl-swatch-marker" : line.dash ? `avl-swatch-${line.dash}` : ""}`, style: `--swatch: var(${line.colour})` }), line.text)));
}

function spread(data, index, t) {
  const run = view.run, arm = run.arms[index];
  const add = (list, line, y) => { list[line][0].push(t); list[line][1].push(y); };
  add(data.memory, 0, run.fullBytes(t) / unit.size);
  add(data.memory, arm.memoryLine, arm.storedBytes[t] / unit.size);
  if (t > 0) {
    add(data.memory, arm.memoryLine + 1, arm.readBytes[t] / unit.size);
    add(data.latency, arm.latencyLine, arm.ms[t]);
    if (arm.update[t]) add(data.latency, arm.latencyLine + 1, arm.ms[t]);
  }
}

function pointsOf(event) { view.pending.push([event.arm, event.kind === "prefill" ? 0 : event.t]); }

function flushPoints() {
  if (view.pending.length) {
    const data = { memory: charts.memory.lines.map(() => [[], []]), latency: charts.latency.lines.map(() => [[], []]) };
    for (const [arm, t] of view.pending) spread(data, arm, t);
    view.pending = [];
    const full = uniquePoints(data.memory[0]);
    const from = full[0].findIndex((t) => t > view.fullDrawn);
    data.memory[0] = from < 0 ? [[], []] : [full[0].slice(from), full[1].slice(from)];
    if (from >= 0) view.fullDrawn = full[0][full[0].length - 1];
    charts.memory.add(data.memory);
    charts.latency.add(data.latency);
  }
  if (view.pendingReadings && view.pendingReadings.length) {
    setDevice();
    const data = charts.device.lines.map(() => [[], []]);
    for (const event of view.pendingReadings) spreadReading(data, event);
    view.pendingReadings = [];
    charts.device.add(data);
  }
}

function readingPoint(event) { (view.pendingReadings ||= []).push(event); }

const READINGS = [
  { key: "device_bytes", name: "device above start (pynvml)", colour: "--avl-a" },
  { key: "allocated_bytes", name: "torch allocator", colour: "--avl-b", dash: "dash" },
  { key: "rss_bytes", name: "process memory (RSS)", colour: "--avl-muted" },
];

function setDevice() {
  const readings = view.run.readings;
  const present = READINGS.filter(({ key }) => readings.some((event) => event[key] !== null && event[key] !== undefined));
  // RSS is the stand-in where there is no device to ask
  const shown = present.some(({ key }) => key !== "rss_bytes") ? present.filter(({ key }) => key !== "rss_bytes") : present;
  const keys = shown.map(({ key }) => key).join();
  if (charts.device.keys !== keys || !charts.device.lines.length) {
    charts.device.keys = keys;
    charts.device.shown = shown;
    charts.device.reset(shown.length ? shown : [{ name: "no reading yet", colour: "--avl-muted" }]);
    buildKeys($.deviceKeys, shown.map((line) => ({ ...line, text: line.name })));
  }
  const gpu = present.some(({ key }) => key === "device_bytes");
  put($.deviceTitle, gpu || !readings.length ? "Device memory" : "Process memory");
  const last = readings[readings.length - 1];
  put($.deviceNote, !last ? "" : gpu ? last.note || "" : last.note || "n/a (no NVIDIA GPU); process RSS instead");
}

function spreadReading(data, event) {
  (charts.device.shown || []).forEach(({ key }, line) => {
    if (event[key] === null || event[key] === undefined) return;
    data[line][0].push(+event.clock_ms.toFixed(2));
    data[line][1].push(event[key] / 2 ** 20);
  });
}

for (const name of ["memory", "latency", "device"]) {
  $[`${name}Table`].addEventListener("toggle", () => {
    const box = $[`${name}Table`].querySelector("div");
    box.replaceChildren($[`${name}Table`].open && charts[name].lines.length ? tableElement(charts[name].table()) : "");
  });
}

// ---------------------------------------------------------------- arms

function shortLabel(arm) {
  const name = arm.spec.policy.name || arm.spec.label;
  const title = { AVL: "A-VL", Full: "Full", FastV: "FastV", H2O: "H2O", StreamingLLM: "StreamingLLM" }[name] || arm.spec.label;
  const twin = view.run.arms.some((other) => other !== arm && other.spec.policy.name === name);
  return twin ? arm.spec.label : title;
}

function buildCards() {
  cards.length = 0;
  $.arms.replaceChildren(...view.run.arms.map((arm, index) => {
    const card = { texts: [] };
    const metric = (key, label, title) => h("div", { class: "avl-metric", title }, h("span", {}, label), card[key] = h("b", {}, DASH), card[`${key}Sub`] = h("small", {}, ""));
    const bar = (key, label, title) => h("div", { class: "avl-bar", title }, h("span", { class: "avl-bar-name" }, label),
      h("span", { class: "avl-bar-box" }, card[`${key}Fill`] = h("i", { class: `avl-bar-${key}` })), card[key] = h("b", {}, DASH), card[`${key}Share`] = h("small", {}, ""));
    card.node = h("article", { class: `avl-panel avl-arm avl-arm-${index ? "b" : "a"}` },
      h("header", {}, h("i", { class: "avl-dot" }), h("h3", {}, arm.spec.label), card.state = h("span", { class: "avl-arm-state" }, "waiting")),
      card.answer = h("div", { class: "avl-answer", tabindex: "0", "aria-live": "off", "aria-label": `Answer of ${arm.spec.label}` }),
      h("div", { class: "avl-metrics" },
        metric("ttft", "First token", "time to first token: prefill of picture and question"),
        metric("perToken", "Per token", "median of the decode steps so far; below: p99"),
        metric("rate", "Speed", "batch rows / median step time"),
      ),
      bar("stored", "KV stored", "bytes of keys and values held now; share of what full attention holds"),
      bar("read", "KV read", "bytes of keys and values that this step's attention reads; mean share of full attention over the steps so far"),
      h("p", { class: "avl-impl" }, `attention: ${arm.spec.implementation}`),
    );
    card.answer.addEventListener("click", (event) => {
      const t = event.target.dataset && event.target.dataset.t;
      if (t !== undefined) { pause(); seek(Number(t)); setFocus(index); }
    });
    cards.push(card);
    return card.node;
  }));
}

function drawCards() {
  const run = view.run;
  const prefix = run.commonPrefix();
  run.arms.forEach((arm, index) => {
    const card = cards[index], t = view.ts[index];
    while (card.texts.length < arm.tokens.length) {
      const at = card.texts.length;
      const chip = h("span", { class: "avl-token", "data-t": String(at) }, arm.texts[at] || NO_TEXT);
      card.texts.push(chip);
      card.answer.append(chip);
    }
    if (card.texts.length > arm.tokens.length) {
      for (const chip of card.texts.splice(arm.tokens.length)) chip.remove();
    }
    const live = view.follow && !arm.end;
    const from = prefix && prefix.differs ? prefix.same : Infinity;
    const odd = from === Infinity ? null : aligned(run, prefix.same)[index];
    if (card.t !== t || card.drawn !== arm.tokens.length || card.from !== from || card.live !== live) {
      // a new token can move the alignment of earlier ones, so after a difference all chips are looked at
      const low = from === Infinity && card.from === from && card.live === live && card.t !== undefined ? Math.max(0, Math.min(card.t, t, card.drawn - 1)) : 0;
      for (let at = low; at < card.texts.length; at++) {
        const chip = card.texts[at];
        const name = "avl-token" + (at > t ? " avl-later" : "") + (odd && odd[at] ? " avl-different" : "") + (at === from ? " avl-first" : "") + (at === t && !(view.follow && arm.end) ? " avl-now" : "");
        if (chip.className !== name) chip.className = name;
      }
      if (card.drawn !== arm.tokens.length && live) card.answer.scrollTop = card.answer.scrollHeight;
      Object.assign(card, { t, drawn: arm.tokens.length, from, live });
    }
    const steps = arm.stepMs(t);
    const middle = median(steps);
    put(card.ttft, arm.prefill ? formatMs(arm.ms[0]) : DASH);
    put(card.perToken, formatMs(middle));
    put(card.perTokenSub, steps.length > 1 ? `p99 ${formatMs(quantile(steps, 0.99))}` : "");
    put(card.rate, middle ? formatRate(1000 * run.start.batch / middle) : DASH);
    put(card.rateSub, run.start.batch > 1 ? `${run.start.batch} rows` : "");
    put(card.ttftSub, arm.prefill ? `peak ${formatBytes(arm.prefill.peak_bytes)}` : "");
    if (arm.last >= 0) {
      const share = arm.storedBytes[t] / run.fullBytes(t);
      put(card.stored, formatBytes(arm.storedBytes[t]));
      put(card.storedShare, `${formatPercent(share)} of full`);
      card.storedFill.style.width = `${Math.min(100, share * 100)}%`;
      const mean = arm.meanBytes(arm.readBytes, t);
      const meanShare = mean === null ? null : mean / run.meanFullBytes(t);
      put(card.read, t > 0 ? formatBytes(arm.readBytes[t]) : DASH);
      put(card.readShare, mean === null ? "" : `mean ${formatPercent(meanShare)} of full`);
      card.readFill.style.width = `${Math.min(100, (meanShare || 0) * 100)}%`;
    }
    const reason = arm.error ? "failed" : !arm.prefill ? (view.state === "done" || arm.end ? "not started" : index && !run.arms[0].prefill ? "waiting" : "prefill …") :
      !arm.end ? `token ${arm.last + 1} of ${run.start.limit}` : arm.end.reason === "eos" ? `done, ${arm.last} tokens` : arm.end.reason === "length" ? `cut at ${arm.last + 1} tokens` : `stopped at ${arm.last + 1} tokens`;
    put(card.state, reason);
  });
  drawDivergence(prefix);
}

// longest common subsequence of the two token lists after the common prefix: what belongs to one arm alone
let alignment = { key: "", marks: null };

function aligned(run, same) {
  const [a, b] = run.arms.map((arm) => arm.tokens);
  const key = `${view.id}/${a.length}/${b.length}`;
  if (alignment.key === key) return alignment.marks;
  const n = a.length - same, m = b.length - same, width = m + 1;
  const best = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
    best[i * width + j] = a[same + i] === b[same + j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
  }
  const marks = [new Uint8Array(a.length), new Uint8Array(b.length)];
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[same + i] === b[same + j]) { i++; j++; }
    else if (j >= m || (i < n && best[(i + 1) * width + j] >= best[i * width + j + 1])) marks[0][same + i++] = 1;
    else marks[1][same + j++] = 1;
  }
  alignment = { key, marks };
  return marks;
}

function quoted(text) {
  const shown = (text || "").trim();
  return shown ? `“${shown.length > 40 ? `${shown.slice(0, 40)}…` : shown}”` : "(end)";
}

function drawDivergence(prefix) {
  const run = view.run;
  if (!prefix || run.last < 0) { put($.diverge, ""); return; }
  const [a, b] = run.arms;
  if (prefix.differs) {
    put($.diverge, `Same up to token ${prefix.same}; first difference at token ${prefix.same + 1}: ${shortLabel(a)} ${quoted(a.texts[prefix.same])}, ${shortLabel(b)} ${quoted(b.texts[prefix.same])}`);
  } else if (run.finished) {
    const even = a.tokens.length === b.tokens.length;
    put($.diverge, even ? `Both answers are the same, all ${prefix.same} tokens.` : `Same for the ${prefix.same} tokens that both arms generated.`);
  } else {
    put($.diverge, `Same so far: ${prefix.same} token${prefix.same === 1 ? "" : "s"}.`);
  }
  $.diverge.classList.toggle("avl-differs", prefix.differs);
}

// ---------------------------------------------------------------- overlay

function loadPicture() {
  const run = view.run, grid = run.start.grids[view.grid];
  const which = grid ? grid.image : 0;
  const [width, height] = run.start.images[which] || [1, 1];
  const source = run.images[which];
  show($.emptyPicture, false);
  overlay.grid = grid || null;
  overlay.setPicture(null, width, height);
  if (!source || !/^data:image\/(png|webp|jpeg);base64,/.test(source)) { invalidate(); return; }
  const image = new Image();
  image.onload = () => { if (view.run === run) { overlay.setPicture(image, width, height); invalidate(); } };
  image.src = source;
}

function gridName(grid, index) {
  const grids = view.run.start.grids, pictures = view.run.start.images.length;
  const name = `${grid.rows} × ${grid.cols} tokens`;
  return grids.length === 1 ? name : `${pictures > 1 ? `picture ${grid.image + 1}: ` : ""}${grid.newline ? "tiles" : index === 0 ? "whole picture" : "block"}, ${name}`;
}

function buildGrids() {
  const grids = view.run.start.grids;
  $.grid.replaceChildren(...grids.map((grid, index) => h("option", { value: String(index) }, gridName(grid, index))));
  show($.grid, grids.length > 1);
}

function buildFocus() {
  $.focus.replaceChildren(...view.run.arms.map((arm, index) => h("button", {
    type: "button", role: "radio", class: `avl-segment avl-arm-${index ? "b" : "a"}`, "aria-checked": String(index === view.focus), onclick: () => setFocus(index),
  }, h("i", { class: "avl-dot" }), shortLabel(arm))));
}

function setFocus(index) {
  view.focus = index;
  [...$.focus.children].forEach((node, at) => node.setAttribute("aria-checked", String(at === index)));
  invalidate();
}

function buildThumbs() {
  $.thumbs.replaceChildren(...Array.from({ length: view.run.start.layers }, (_, layer) => h("button", {
    type: "button", class: "avl-thumb", "aria-label": `Layer ${layer}`, onclick: () => setLayer(layer),
  }, h("canvas", {}), h("span", {}, String(layer)))));
}

function setLayer(layer) {
  if (!view.run || !view.run.start) return;
  view.touchedLayer = true;
  view.layer = Math.max(0, Math.min(view.run.start.layers - 1, layer));
  invalidate();
}

const LEGENDS = {
  sets: [["core", "core, read at every step"], ["secondary", "secondary, kept, read at updates"], ["minor", "minor, evicted after prefill"], ["pruned", "dropped in prefill (P)"]],
  drift: [["gained", "gained"], ["lost", "lost"], ["core", "stayed core"]],
};

function drawOverlay() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, layer = view.layer;
  let painter = null, legend = [];
  if (view.mode === "sets") {
    const classes = run.classes(arm, t, layer), counts = run.counts(arm, t, layer);
    const styles = ["minor", "secondary", "core", "pruned"];
    const whole = counts[CORE] === run.start.n_image;
    painter = (token) => whole ? null : styles[classes[token]];
    const allRead = !counts[SECONDARY];
    legend = whole ? [["plain", `all ${run.start.n_image} image tokens are stored and read`]] :
      [["core", `${allRead ? "kept and read" : "core, read"} ${counts[CORE]}`], ["secondary", `secondary, kept ${counts[SECONDARY]}`], ["minor", `minor, evicted ${counts[MINOR]}`], ["pruned", `dropped in prefill ${counts[PRUNED]}`]]
        .filter((_, index) => counts[[CORE, SECONDARY, MINOR, PRUNED][index]] > 0);
    if (!whole && run.arms[arm].update[t]) legend.push(["update", "update step: all kept tokens are read, a new core is chosen"]);
  } else if (view.mode === "drift") {
    const change = run.drift(arm, t, layer), classes = run.classes(arm, t, layer);
    let gained = 0, lost = 0;
    for (const value of change) { gained += value > 0; lost += value < 0; }
    painter = (token) => change[token] > 0 ? "gained" : change[token] < 0 ? "lost" : classes[token] === CORE ? null : "dim";
    legend = [["gained", `gained ${gained}`], ["lost", `lost ${lost}`], ["plain", "bright: stayed core"]];
  } else if (view.mode === "consensus") {
    const votes = run.consensus(arm, t), layers = run.start.layers;
    painter = (token) => heatColour(votes[token] / layers);
    legend = [["heat", `core in 0 … ${layers} layers`]];
  } else if (view.mode === "scores") {
    const scores = run.scoresAt(arm, t, layer);
    if (scores) {
      const values = scores.values;
      const sorted = [...values].sort((x, y) => x - y);
      const top = sorted[Math.floor(sorted.length * 0.99)] || 1e-9;
      painter = (token) => heatColour(Math.sqrt(Math.min(1, values[token] / top)));
      legend = [["heat", `attention of ${scores.t === 0 ? "the last prompt token" : `step ${scores.t}`}, dark low, bright high (top 1 % ≥ ${(top * 100).toFixed(2)} %)`]];
    } else legend = [["plain", "this run carries no scores"]];
  }
  overlay.selected = view.patch;
  overlay.draw(painter);
  measures.overlayMs.push(overlay.drawMs);
  if (measures.overlayMs.length > 400) measures.overlayMs.shift();
  const words = legend.map((item) => item.join()).join("|");
  if ($.legend.dataset.words !== words) {
    $.legend.dataset.words = words;
    $.legend.replaceChildren(...legend.map(([kind, text]) => h("span", { class: "avl-key" }, kind === "plain" ? null : h("i", { class: `avl-mark avl-mark-${kind}` }), text)));
  }
  put($.layerName, `${layer} of 0–${run.start.layers - 1}`);
  if (Number($.layer.value) !== layer) $.layer.value = layer;
  drawPatch(arm, t);
}

function ranges(numbers) {
  const parts = [];
  for (let i = 0; i < numbers.length;) {
    let j = i;
    while (j + 1 < numbers.length && numbers[j + 1] === numbers[j] + 1) j++;
    parts.push(j > i ? `${numbers[i]}–${numbers[j]}` : String(numbers[i]));
    i = j + 1;
  }
  return parts.join(", ");
}

function drawPatch(arm, t) {
  if (view.patch < 0 || !overlay.grid) { put($.patch, "Click a patch to see in which layers it is core."); return; }
  const grid = overlay.grid, stride = grid.cols + (grid.newline ? 1 : 0), at = view.patch - grid.first;
  const names = [[], [], [], []];
  for (let layer = 0; layer < view.run.start.layers; layer++) names[view.run.classes(arm, t, layer)[view.patch]].push(layer);
  const words = [[CORE, "core"], [SECONDARY, "secondary"], [MINOR, "minor"], [PRUNED, "dropped"]].filter(([kind]) => names[kind].length).map(([kind, word]) => `${word} in ${ranges(names[kind])}`);
  put($.patch, `Patch row ${Math.floor(at / stride) + 1}, column ${at % stride + 1} (token ${view.patch}), layers: ${words.join("; ")}`);
}

function drawThumbs() {
  const run = view.run, arm = view.focus, t = view.ts[arm] || 0, grid = run.start.grids[view.grid];
  if (!grid) return;
  const at = run.arms[arm].setsIndex(t);
  const key = `${view.id}/${arm}/${at}/${view.grid}/${run.arms[arm].sets.length ? "" : "all"}`;
  const fresh = view.thumbKey !== key;
  view.thumbKey = key;
  [...$.thumbs.children].forEach((button, layer) => {
    if (fresh) drawThumb(button.firstChild, grid, run.classes(arm, t, layer));
    const core = view.patch >= 0 && run.classes(arm, t, layer)[view.patch] === CORE;
    const name = "avl-thumb" + (layer === view.layer ? " avl-chosen" : "") + (core ? " avl-holds" : "");
    if (button.className !== name) button.className = name;
    const pressed = String(layer === view.layer);
    if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
  });
}

// ---------------------------------------------------------------- playhead

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
    Home: () => { pause(); seek(0); }, End: () => { pause(); seek(Infinity); }, " ": () => (view.playing ? pause() : play()),
  }[event.key];
  // a range keeps its own keys; elsewhere they move the playhead
  if (!act || (range && event.key !== " ") || !view.run) return;
  event.preventDefault();
  act();
});

// ---------------------------------------------------------------- drawing

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
  const clock = view.clock !== null ? view.clock : run.arms.length ? Math.max(...run.arms.map((arm, index) => arm.clock[view.ts[index]] || 0)) : null;
  track.draw(run, view.follow && !run.finished ? null : clock, colours());
  const t = run.arms[view.focus] ? view.ts[view.focus] : 0;
  charts.memory.moveCursor(run.last > 0 ? t : null);
  charts.latency.moveCursor(run.last > 0 ? t : null);
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
  const [a, b] = run.arms;
  const [x, y] = run.arms.map((arm) => median(arm.stepMs()));
  const ratio = x / y;
  const [fast, slow, times] = ratio >= 1 ? [b, a, ratio] : [a, b, 1 / ratio];
  put($.lead, times < 1.01 ? "same time per token" : `${shortLabel(fast)} takes ${fixed(100 / times, 0)} % of ${shortLabel(slow)}’s time per token`);
}

let palette = null;

function colours() {
  palette ||= { arms: [variable(root, "--avl-a"), variable(root, "--avl-b")], line: variable(root, "--avl-line"), text: variable(root, "--avl-text"), muted: variable(root, "--avl-muted") };
  return palette;
}

onTheme(() => { palette = null; for (const chart of Object.values(charts)) chart.retheme(); invalidate(); });
new ResizeObserver(debounce(() => { if (view.run && view.run.start) { overlay.resize(); invalidate(); } }, 80)).observe(root);

// ---------------------------------------------------------------- words

function showError(message) {
  put($.alert, message || "The run ended early.");
  show($.alert, true);
}

function hideError() { show($.alert, false); put($.alert, ""); }

let spokenAt = 0;

function setStatus() {
  const run = view.run, start = run && run.start;
  const place = view.place || 0;
  const words = {
    idle: "Pick a picture, ask, press Run.",
    queued: place > 0 ? `Waiting in line: ${place} run${place === 1 ? "" : "s"} before yours.` : "Your run is next.",
    running: !start ? "Starting …" : run.last < 0 ? "Prefill: reading the picture and the question …" : `Decoding: token ${run.last + 1} of at most ${start.limit}.`,
    stopping: "Stopping: the step in progress ends first …",
    refused: "Nothing was run.",
    failed: "The run ended early.",
    done: "Finished.",
  };
  let text = words[view.state] || "";
  if (view.state === "done" && run) {
    const stopped = run.arms.some((arm) => arm.end && arm.end.reason === "stopped");
    text = run.error ? "The run ended early." : stopped ? "Stopped. The caches of this run are freed." : !start ? "Stopped before it began." : "Finished.";
  }
  if (view.recorded && start) text = `Recorded run: ${start.model.name || "model"}, ${start.machine.gpu || start.machine.cpu || start.model.device || ""}, ${String(start.date).slice(0, 10)}. Press Run for a live one.`;
  put($.status, text);
  const badge = view.recorded ? "RECORDED" : { idle: "READY", queued: "IN LINE", running: "LIVE", stopping: "LIVE", refused: "READY", done: "LIVE", failed: "LIVE" }[view.state] || "READY";
  put($.badge, badge);
  root.dataset.state = view.recorded ? "recorded" : view.state;
  const now = performance.now();
  if (now - spokenAt > 5000 || view.state === "done") { spokenAt = now; put($.spoken, text); }
}

function finish() {
  setStatus();
  const run = view.run;
  if (!run || !run.start) { invalidate(); return; }
  // a run without a single token has no result to judge
  show($.resultPanel, run.last >= 0);
  drawResult();
  invalidate();
}

function predicted(arm) {
  const run = view.run, start = run.start, steps = arm.last;
  if (steps < 1) return null;
  const { name, ...parameters } = arm.spec.policy;
  return predict({ policy: name, ...parameters }, { layers: start.layers, n_image: start.n_image, n_text: start.n_text, limit: start.limit, token_bytes: start.token_bytes, batch: start.batch }, steps);
}

function drawResult() {
  const run = view.run, start = run.start;
  put($.verdict, verdict());
  const row = (name, cells, title) => h("tr", { title }, h("th", { scope: "row" }, name), cells.map((text) => h("td", {}, text)));
  const expected = run.arms.map(predicted);
  const expectedAnswer = typeof run.meta.expected === "string" ? run.meta.expected : "";
  const share = (arm, list) => { const mean = arm.meanBytes(list); return mean === null ? null : mean / run.meanFullBytes(arm.last); };
  $.measured.replaceChildren(h("table", { class: "avl-results" },
    h("thead", {}, h("tr", {}, h("th", {}, ""), run.arms.map((arm, index) => h("th", { scope: "col" }, h("i", { class: `avl-dot avl-dot-${index ? "b" : "a"}` }), arm.spec.label)))),
    h("tbody", {},
      row("KV stored, measured (predicted)", run.arms.map((arm, i) => `${formatPercent(share(arm, arm.storedBytes))} (${expected[i] ? formatPercent(expected[i].stored) : DASH})`), "mean over the decode steps, as a share of full attention; predicted from the closed forms"),
      row("KV read per step, measured (predicted)", run.arms.map((arm, i) => `${formatPercent(share(arm, arm.readBytes))} (${expected[i] ? formatPercent(expected[i].read) : DASH})`)),
      row("KV stored at the end", run.arms.map((arm) => formatBytes(arm.storedBytes[arm.last]))),
      row("most KV held at once", run.arms.map((arm) => formatBytes(arm.end ? arm.end.peak_bytes : arm.prefill && arm.prefill.peak_bytes))),
      row("time to first token", run.arms.map((arm) => formatMs(arm.ms[0]))),
      row("time per token, median (p99)", run.arms.map((arm) => `${formatMs(median(arm.stepMs()))} (${formatMs(quantile(arm.stepMs(), 0.99))})`)),
      row("compute time, all", run.arms.map((arm) => formatMs(arm.clockNow))),
      row("tokens", run.arms.map((arm) => `${arm.last + (arm.end && arm.end.reason === "eos" ? 0 : 1)}${arm.end ? `, ${{ eos: "ended by itself", length: "cut at the limit", stopped: "stopped" }[arm.end.reason] || arm.end.reason}` : ""}`)),
      !expectedAnswer ? null : expectedAnswer.length <= 40 ? row("right answer", run.arms.map((arm) => rightOrWrong(arm, expectedAnswer))) :
        h("tr", {}, h("th", { scope: "row" }, "right answer"), h("td", { colspan: String(run.arms.length), class: "avl-wide-cell" }, expectedAnswer)),
    )));
  $.warnings.replaceChildren(...run.warnings.map((text) => h("li", {}, text)));
  const { gpu, cpu, threads, torch, transformers } = start.machine || {};
  const machine = [gpu || cpu, !gpu && threads ? `${threads} threads` : "", torch ? `torch ${torch}` : "", transformers ? `transformers ${transformers}` : ""].filter(Boolean).join(" · ");
  $.warnings.append(h("li", { class: "avl-machine" }, `${start.model.name || "model"} · ${start.model.dtype || ""} · ${start.model.device || ""}${machine ? ` · ${machine}` : ""} · seed ${start.seed ?? DASH} · ${start.temperature ? `temperature ${start.temperature}` : "greedy"}`));
}

function plainWords(text) {
  return String(text).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
}

function rightOrWrong(arm, expected) {
  const said = plainWords(arm.end ? arm.end.text : arm.texts.join("")), wanted = plainWords(expected);
  return `${` ${said} `.includes(` ${wanted} `) ? "✓ right" : "✗ not"} “${expected}”`;
}

function verdict() {
  const run = view.run, start = run.start, sentences = [];
  const full = run.arms.find((arm) => arm.spec.policy.name === "Full");
  for (const arm of run.arms) {
    if (arm === full || arm.last < 1) continue;
    const stored = arm.meanBytes(arm.storedBytes) / run.meanFullBytes(arm.last), read = arm.meanBytes(arm.readBytes) / run.meanFullBytes(arm.last);
    sentences.push(`${shortLabel(arm)} stored ${formatPercent(stored)} and read ${formatPercent(read)} of the full KV cache.`);
    if (!full || full.last < 1) continue;
    const ratio = median(arm.stepMs()) / median(full.stepMs());
    if (ratio > 1.02) sentences.push(`It was slower in this run: ${fixed(ratio, 2)} × the time per token of full attention. ${why(arm, ratio)}`);
    else if (ratio >= 0.98) sentences.push(`Its steps took the same time as full attention’s (${fixed(ratio, 2)} ×). ${why(arm, ratio)}`);
    else sentences.push(`Its steps took ${fixed(ratio, 2)} × the time of full attention’s in this run.`);
  }
  if (!sentences.length) sentences.push(run.arms.some((arm) => arm.last >= 1) ? "Both arms keep and read the whole cache." : "Too few tokens to compare.");
  return sentences.join(" ");
}

function why(arm, ratio) {
  const start = view.run.start, cpu = String(start.model.device || "").startsWith("cpu");
  const perStep = formatBytes(start.token_bytes * start.n_image);
  const words = [];
  if (start.batch === 1) words.push(`At batch 1 a step spends its time on the weights; the image’s share of the cache is only ${perStep}, so reading less of it saves little`);
  else words.push(`A step’s cache reads are small beside its other work here (${perStep} of image cache per row)`);
  if (ratio > 1.02) {
    words.push(cpu ? "while choosing core tokens and gathering their entries costs extra on a CPU" :
      /triton/i.test(arm.spec.implementation) ? "while update steps and the choice of core tokens cost extra" : "while the entries are gathered without the fused kernel, which the paper too found can cost more than it saves");
  }
  return `${words.join(", ")}.`;
}

// ---------------------------------------------------------------- downloads

function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function busy(button, work) {
  button.disabled = true;
  Promise.resolve().then(work).catch(() => showError("The download could not be made: the server no longer has this run.")).finally(() => { button.disabled = false; });
}

const stamp = () => String(view.run.start.date || "run").slice(0, 19).replace(/[^0-9A-Za-z]+/g, "-");
$.saveJson.addEventListener("click", () => busy($.saveJson, async () => save(`avl-${stamp()}.json`, "application/json", await server.download({ run: view.id, kind: "json" }))));
$.saveCsv.addEventListener("click", () => busy($.saveCsv, async () => save(`avl-${stamp()}.csv`, "text/csv", await server.download({ run: view.id, kind: "csv" }))));
$.saveHtml.addEventListener("click", () => busy($.saveHtml, async () => save(`avl-${stamp()}.html`, "text/html", await server.download({ run: view.id, kind: "html" }))));
$.savePng.addEventListener("click", () => busy($.savePng, () => new Promise((resolve) => $.overlay.toBlob((blob) => { save(`avl-${stamp()}-layer${view.layer}.png`, "image/png", blob); resolve(); }))));

// a click on Stop is shown at once; the engine confirms at its next step
document.addEventListener("avl:stop", () => { if (view.state === "running" || view.state === "queued") { view.state = "stopping"; setStatus(); } });
root.dataset.ready = "yes";
root.dataset.state = "idle";
setStatus();
