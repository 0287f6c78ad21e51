// What the charts of a run show: KV memory, time per token, device memory.

// charts with a point per token of each run: buildCharts makes their lines, spread their points
const PER_TOKEN = ["memory", "latency"];

const noPoints = (names) => Object.fromEntries(names.map((name) => [name, charts[name].lines.map(() => [[], []])]));

function buildCharts() {
  const run = view.run;
  const hasFull = run.arms.some((arm) => arm.spec.policy.name === "Full");
  const memory = [{ name: hasFull ? "" : "full cache", color: "--avl-muted", dash: "dash", width: hasFull ? 0 : 1.5 }];
  const latency = [];
  run.arms.forEach((arm, index) => {
    const color = index ? "--avl-b" : "--avl-a";
    arm.memoryLine = memory.length;
    const whole = arm.spec.policy.name === "Full";
    memory.push({ name: whole ? "Full: stored and read" : `${shortLabel(arm)}: stored`, color, arm: index, width: 2.4 });
    memory.push({ name: whole ? "" : `${shortLabel(arm)}: read`, color, arm: index, width: whole ? 0 : 1.6, dash: "dot" });
    arm.latencyLine = latency.length;
    latency.push({ name: shortLabel(arm), color, width: 1.8 });
    latency.push({ name: `${shortLabel(arm)}: update step`, color, markers: true });
  });
  charts.memory.options.unit = unit.name;
  charts.memory.options.hover = unit.name === "KiB" ? ".0f" : ".2f";
  charts.memory.reset(memory);
  charts.latency.reset(latency);
  view.fullDrawn = -1;
  buildKeys($.memoryKeys, memory.filter((line) => line.name).map((line) => ({ ...line, text: line.name })));
  buildKeys($.latencyKeys, latencyLines());
  put($.memoryNote, `${unit.name}, all layers${run.start.batch > 1 ? `, ${run.start.batch} rows` : ""}`);
  put($.latencyNote, "ms per decode step");
  charts.device.lines = [];
  setDevice();
}

// update steps have a key once there is one
function latencyLines() {
  const lines = charts.latency.lines.filter((line, index) => !line.markers || view.run.arms[Math.floor(index / 2)].update.some(Boolean));
  return lines.map((line) => ({ ...line, text: line.name }));
}

function buildKeys(node, lines) {
  node.replaceChildren(...lines.map((line) => h("span", { class: "avl-key" },
    h("i", { class: `avl-swatch ${line.markers ? "avl-swatch-marker" : line.dash ? `avl-swatch-${line.dash}` : ""}`, style: `--swatch: var(${line.color})` }), line.text)));
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

// Charts take the time they need, but at most a sixth of it all: a slow machine gets fewer redraws, never a growing backlog
function flushSoon() {
  if (view.flushTimer) return;
  view.flushTimer = setTimeout(() => {
    view.flushTimer = 0;
    const began = performance.now();
    flushPoints();
    const cost = performance.now() - began;
    measures.flushMs.push(cost);
    view.flushAfter = performance.now() + Math.max(60, 5 * cost);
  }, Math.max(0, view.flushAfter - performance.now()));
}

function flushPoints() {
  if (view.pending.length) {
    const data = noPoints(PER_TOKEN);
    for (const [arm, t] of view.pending) spread(data, arm, t);
    view.pending = [];
    const full = uniquePoints(data.memory[0]);
    const from = full[0].findIndex((t) => t > view.fullDrawn);
    data.memory[0] = from < 0 ? [[], []] : [full[0].slice(from), full[1].slice(from)];
    if (from >= 0) view.fullDrawn = full[0][full[0].length - 1];
    for (const name of PER_TOKEN) charts[name].add(data[name]);
    const lines = latencyLines();
    if (lines.length !== $.latencyKeys.childElementCount) buildKeys($.latencyKeys, lines);
  }
  if (view.pendingReadings.length) {
    setDevice();
    const { device } = noPoints(["device"]);
    for (const event of view.pendingReadings) spreadReading(device, event);
    view.pendingReadings = [];
    charts.device.add(device);
  }
}

// the whole run at once
function fillCharts() {
  const run = view.run, data = noPoints(PER_TOKEN);
  run.arms.forEach((arm, index) => {
    for (let t = 0; t <= arm.last; t++) spread(data, index, t);
  });
  data.memory[0] = uniquePoints(data.memory[0]);
  for (const name of PER_TOKEN) charts[name].fill(data[name]);
  setDevice();
  const { device } = noPoints(["device"]);
  for (const event of run.readings) spreadReading(device, event);
  charts.device.fill(device);
}

// both arms add to the common line: one point per token is enough
function uniquePoints([x, y]) {
  const points = new Map(x.map((value, index) => [value, y[index]]));
  const keys = [...points.keys()].sort((a, b) => a - b);
  return [keys, keys.map((key) => points.get(key))];
}

function readingPoint(event) { view.pendingReadings.push(event); }

const READINGS = [
  { key: "device_bytes", name: "device above start (pynvml)", color: "--avl-a" },
  { key: "allocated_bytes", name: "torch allocator", color: "--avl-b", dash: "dash" },
];

function setDevice() {
  const readings = view.run.readings;
  // without a device there is nothing to draw: the process's memory is the weights, a flat line
  const shown = READINGS.filter(({ key }) => readings.some((event) => event[key] !== null && event[key] !== undefined));
  show($.devicePart, shown.length > 0);
  const keys = shown.map(({ key }) => key).join();
  if (charts.device.keys !== keys || !charts.device.lines.length) {
    charts.device.keys = keys;
    charts.device.shown = shown;
    charts.device.reset(shown.length ? shown : [{ name: "no reading yet", color: "--avl-muted" }]);
    buildKeys($.deviceKeys, shown.map((line) => ({ ...line, text: line.name })));
  }
  const last = readings[readings.length - 1];
  put($.deviceNote, last ? last.note || "" : "");
}

function spreadReading(data, event) {
  (charts.device.shown || []).forEach(({ key }, line) => {
    if (event[key] === null || event[key] === undefined) return;
    data[line][0].push(+event.clock_ms.toFixed(2));
    data[line][1].push(event[key] / 2 ** 20);
  });
}

// a chart called x has its numbers in the element xTable, if there is one
for (const [name, source] of [...Object.entries(charts), ...Object.entries(heats)]) {
  const table = $[`${name}Table`];
  if (!table) continue;
  table.addEventListener("toggle", () => {
    const filled = source.shown || (source.lines && source.lines.length);
    table.querySelector("div").replaceChildren(table.open && filled ? tableElement(source.table()) : "");
  });
}
