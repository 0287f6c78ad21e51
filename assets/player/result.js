// In words: status, errors, what the run shows, why a policy is slower; downloads and the link.

function showError(message) {
  put($.alert, message || "The run ended early.");
  show($.alert, true);
}

// what a run still does when its answers stand
function furtherWork(run) {
  const again = run.arms.reduce((most, arm) => Math.max(most, arm.repeats.length), 0);
  if (run.arms.some((arm) => arm.scores.length)) return "The answers are complete; their attention is being recorded …";
  return again ? `The answers are complete; run ${again + 1} for the spread of the times is done …` : "The answers are complete; more is being measured …";
}

function hideError() { show($.alert, false); put($.alert, ""); }

let spokenAt = 0;

function setStatus() {
  const run = view.run, start = run && run.start;
  const place = view.place;
  const words = {
    idle: "Pick a picture, ask, press Run.",
    queued: place > 0 ? `Waiting in line: ${place} run${place === 1 ? "" : "s"} before yours.` : "Your run is next.",
    running: !start ? "Starting …" : run.finished ? furtherWork(run) : run.last < 0 ? "Prefill: reading the picture and the question …" : `Decoding: token ${run.last + 1} of at most ${start.limit}.`,
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
  flushPoints();
  setStatus();
  const run = view.run;
  if (!run || !run.start) { invalidate(); return; }
  // a run without a single token has no result to judge
  show($.resultPanel, run.last >= 0);
  drawResult();
  if (view.wantedStep !== null && run.last >= 0) { seek(view.wantedStep); view.wantedStep = null; }
  invalidate();
}

// what the run was predicted to store and read over the steps that it took
function predicted(arm) {
  const run = view.run, { token_bytes: bytes, layers, batch } = run.start, told = arm.predicted(arm.last);
  if (!told) return null;
  const [storedBytes, readBytes] = [told.stored, told.read].map((tokens) => tokens * bytes / layers * batch), full = run.meanFullBytes(arm.last);
  return { storedBytes, readBytes, stored: storedBytes / full, read: readBytes / full };
}

function drawResult() {
  const run = view.run, start = run.start;
  const times = repeated(run);
  put($.runs, times > 1 ? `median of ${times} runs` : "n = 1 run");
  put($.verdict, verdict());
  const row = (name, cells, title) => h("tr", { title }, h("th", { scope: "row" }, name), cells.map((text) => h("td", {}, text)));
  const expected = run.arms.map(predicted);
  const expectedAnswer = typeof run.meta.expected === "string" ? run.meta.expected : "";
  const share = (arm, list) => { const mean = arm.meanBytes(list); return mean === null ? null : mean / run.meanFullBytes(arm.last); };
  $.measured.replaceChildren(h("table", { class: "avl-results" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "avl-sr" }, "figure")), run.arms.map((arm, index) => h("th", { scope: "col" }, h("i", { class: `avl-dot avl-dot-${index ? "b" : "a"}` }), arm.spec.label)))),
    h("tbody", {},
      row("KV stored, measured (predicted)", run.arms.map((arm, i) => `${formatPercent(share(arm, arm.storedBytes))} (${expected[i] ? formatPercent(expected[i].stored) : DASH})`), "mean over the decode steps, as a share of full attention; predicted by the cost model before the run"),
      row("KV read per step, measured (predicted)", run.arms.map((arm, i) => `${formatPercent(share(arm, arm.readBytes))} (${expected[i] ? formatPercent(expected[i].read) : DASH})`)),
      row("KV stored at the end", run.arms.map((arm) => formatBytes(arm.storedBytes[arm.last]))),
      row("most KV held at once", run.arms.map((arm) => formatBytes(arm.end ? arm.end.peak_bytes : arm.prefill && arm.prefill.peak_bytes))),
      row("time to first token", run.arms.map((arm) => formatMs(arm.ms[0]))),
      repeated(run) < 2 ? null : row(`time per token over ${repeated(run)} runs: median (least to most)`, run.arms.map((arm, index) => spreadOf(run.medians(index)))),
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

const repeated = (run) => Math.min(...run.arms.map((arm, index) => run.medians(index).length));

const spreadOf = (values) => `${formatMs(median(values))} (${formatMs(Math.min(...values))} to ${formatMs(Math.max(...values))})`;

function plainWords(text) {
  return String(text).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
}

function rightOrWrong(arm, expected) {
  const said = plainWords(arm.end ? arm.end.text : arm.texts.join("")), wanted = plainWords(expected);
  return `${` ${said} `.includes(` ${wanted} `) ? "✓ right" : "✗ not"} “${expected}”`;
}

function verdict() {
  const run = view.run, sentences = [];
  const full = run.arms.find((arm) => arm.spec.policy.name === "Full");
  for (const arm of run.arms) {
    if (arm === full || arm.last < 1) continue;
    const stored = arm.meanBytes(arm.storedBytes) / run.meanFullBytes(arm.last), read = arm.meanBytes(arm.readBytes) / run.meanFullBytes(arm.last);
    sentences.push(`${shortLabel(arm)} stored ${formatPercent(stored)} and read ${formatPercent(read)} of the full KV cache.`);
    if (!full || full.last < 1) continue;
    const ratio = median(run.medians(arm.index)) / median(run.medians(full.index));
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

$.copy.addEventListener("click", async () => {
  const parameters = new URLSearchParams(window.avlLink ? window.avlLink() : "");
  parameters.set("l", String(view.layer));
  if (view.run && !view.follow) parameters.set("t", String(currentStep()));
  const address = `${location.origin}${location.pathname}?${parameters}`;
  try {
    await navigator.clipboard.writeText(address);
    put($.copy, "Copied");
  } catch {
    // no permission (a frame, plain http): the address bar can be copied by hand
    history.replaceState(null, "", address);
    put($.copy, "See address bar");
  }
  setTimeout(() => put($.copy, "Copy link"), 2500);
});
const wanted = new URLSearchParams(location.search);
const wantedNumber = (name) => (/^\d{1,4}$/.test(wanted.get(name) || "") ? Number(wanted.get(name)) : null);
if (wantedNumber("l") !== null) { view.layer = wantedNumber("l"); view.touchedLayer = true; }
view.wantedStep = wantedNumber("t");
