// In words: status, errors, what the run shows, why a policy is slower; downloads and the link.

function showError(message) {
  put($.alert, message || "The run ended early.");
  show($.alert, true);
}

// what a run still does when its answers stand
function furtherWork(run) {
  const again = run.arms.reduce((most, arm) => Math.max(most, arm.repeats.length), 0);
  if (run.arms.some((arm) => arm.scores.length)) return "Answers complete. Recording their attention …";
  return again ? `Answers complete. Timing repeats: ${again + 1} of ${run.meta.repeats || "…"} done …` : "Answers complete. Still measuring …";
}

function hideError() { show($.alert, false); put($.alert, ""); }

let spokenAt = 0;

// the words for a run that was not the last thing asked for, or never began
function plainStatus() {
  const place = view.place;
  return {
    idle: view.unrun ? "Not run yet: press Run." : "Pick a picture, ask, press Run.",
    queued: place > 0 ? `In queue: ${place} run${place === 1 ? "" : "s"} ahead of yours.` : "Your run is next.",
    running: "Starting …",
    stopping: "Stopping after the current step …",
    refused: "Request rejected: nothing was run.",
    lost: "Connection lost.",
    done: "Stopped before it began.",
  }[view.state] || "";
}

function runStatus(run) {
  const { start } = run, machine = start.machine || {};
  const where = `${start.model.name || "model"}, ${machine.gpu || machine.cpu || start.model.device || ""}, ${String(start.date).slice(0, 10)}`;
  if (view.state === "running") return run.finished ? furtherWork(run) : run.last < 0 ? "Prefill: reading the picture and the question …" : `Decoding: token ${run.last + 1} of at most ${start.limit}.`;
  if (view.state !== "done") return plainStatus();
  const cut = !run.finished, stopped = cut || run.arms.some((arm) => arm.end && arm.end.reason === "stopped");
  const done = Math.min(...run.arms.map((arm) => arm.repeats.length)) + 1, asked = run.meta.repeats || done;
  const ended = run.error ? "The run ended early." : stopped ? "Stopped. The caches of this run are freed." : done < asked ? `Stopped: ${done} of ${asked} runs done.` : "Finished.";
  if (view.source === "recorded") return `Recorded on ${String(start.date).slice(0, 10)}. Press Run for a live run.`;
  if (view.source === "report") return `Report of a run: ${where}.`;
  return view.source === "last" ? `Your last run. ${stopped ? "It was stopped early." : ended}` : ended;
}

function setStatus() {
  const run = view.run, start = run && run.start;
  const shownRun = start && (view.stream === null || view.stream === view.id || view.source === "last") && !["refused", "lost", "queued"].includes(view.state);
  const text = shownRun ? runStatus(run) : plainStatus();
  put($.status, text);
  const ended = { recorded: "RECORDED", report: "REPORT", last: "LAST RUN", live: "DONE" }[view.source];
  put($.badge, { idle: "READY", queued: "QUEUED", running: "LIVE", stopping: "LIVE", lost: "LOST" }[view.state] || (!start ? "READY" : run.error && view.source === "live" ? "FAILED" : ended));
  root.dataset.state = view.recorded && ["idle", "done"].includes(view.state) ? "recorded" : view.state;
  const now = performance.now();
  if (now - spokenAt > 5000 || view.state === "done") { spokenAt = now; put($.spoken, text); }
}

function finish() {
  flushPoints();
  setStatus();
  const run = view.run;
  if (!run || !run.start) { invalidate(); return; }
  // a run without a single token has nothing to draw or to judge
  for (const panel of [$.racePanel, $.columns, $.resultPanel]) show(panel, run.last >= 0);
  drawResult();
  if (view.wantedStep !== null && run.last >= 0 && !changedSince(run).length) { seek(view.wantedStep); view.wantedStep = null; }
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
  put($.runs, times > 1 ? `median of ${times} runs` : "1 run");
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
      row("Peak KV", run.arms.map((arm) => formatBytes(arm.end ? arm.end.peak_bytes : arm.prefill && arm.prefill.peak_bytes))),
      row("Time to first token", run.arms.map((arm) => formatMs(arm.ms[0]))),
      times < 2 ? null : row(`Time per token over ${times} runs: median (least to most)`, run.arms.map((arm, index) => rangeOf(run.medians(index)))),
      row(times > 1 ? "Time per token, run drawn: median (p99)" : "Time per token, median (p99)", run.arms.map((arm) => `${formatMs(median(arm.stepMs()))} (${formatMs(quantile(arm.stepMs(), 0.99))})`)),
      row("Compute time, total", run.arms.map((arm) => formatMs(arm.clockNow))),
      row("Tokens generated", run.arms.map((arm) => `${arm.last + 1}${arm.end ? `, ${{ eos: "finished", length: "hit the token limit", stopped: "stopped" }[arm.end.reason] || arm.end.reason}` : ""}`), "the end-of-sequence token included"),
      !expectedAnswer ? null : expectedAnswer.length <= 40 ? row("Right answer", run.arms.map((arm) => rightOrWrong(arm, expectedAnswer))) :
        h("tr", {}, h("th", { scope: "row" }, "Right answer"), h("td", { colspan: String(run.arms.length), class: "avl-wide-cell" }, expectedAnswer)),
    )));
  $.warnings.replaceChildren(...run.warnings.map((text) => h("li", {}, text)));
  const { gpu, cpu, threads, torch, transformers } = start.machine || {};
  const machine = [gpu || cpu, !gpu && threads ? `${threads} threads` : "", torch ? `torch ${torch}` : "", transformers ? `transformers ${transformers}` : ""].filter(Boolean).join(" · ");
  $.warnings.append(h("li", { class: "avl-machine" }, `${start.model.name || "model"} · ${start.model.dtype || ""} · ${start.model.device || ""}${machine ? ` · ${machine}` : ""} · ${samplingOf(start)}`));
}

const repeated = (run) => Math.min(...run.arms.map((arm, index) => run.medians(index).length));

const rangeOf = (values) => `${formatMs(median(values))} (${formatMs(Math.min(...values))} to ${formatMs(Math.max(...values))})`;

function plainWords(text) {
  return String(text).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
}

function rightOrWrong(arm, expected) {
  const said = plainWords(arm.end ? arm.end.text : arm.texts.join("")), wanted = plainWords(expected);
  return `${` ${said} `.includes(` ${wanted} `) ? "✓ right" : "✗ not"} “${expected}”`;
}

// how two arms' times compare; null for a single arm
function timesOf(run, first = 0, second = 1) {
  if (run.arms.length < 2) return null;
  const [a, b] = [first, second].map((index) => {
    const arm = run.arms[index];
    return { steps: arm.stepMs(), runs: run.medians(index), stopped: !arm.end || arm.end.reason === "stopped" };
  });
  return compareTimes(a, b);
}

function basisOf({ basis, n }) {
  return basis === "runs" ? `median of ${n} runs` : `median of the ${n} steps that both made, one run`;
}

// one phrase: which arm is faster, or that it cannot be told
function timesInWords(run) {
  const found = timesOf(run), [a, b] = run.arms;
  if (!found) return "";
  if (found.kind === "few") return `too few tokens to compare times (${found.n} of ${MIN_STEPS})`;
  if (found.kind === "close") return `time per token: too close to call (${basisOf(found)})`;
  const [fast, slow, times] = found.ratio >= 1 ? [a, b, found.ratio] : [b, a, 1 / found.ratio];
  return `${shortLabel(fast)} is ${fixed(times, 2)}× faster per token than ${shortLabel(slow)} (${basisOf(found)})`;
}

function advice(found) {
  if (found.basis === "runs" && Math.abs(Math.log(found.ratio)) < 0.01) return "The medians differ by less than 1 %.";
  if (found.repeats === null) return `The times vary so much that more than ${MOST_REPEATS} repeats would be needed to tell.`;
  return `About ${found.repeats} repeats would tell.`;
}

function verdict() {
  const run = view.run, [a, b] = run.arms, sentences = [];
  const share = (arm, list) => arm.meanBytes(list) / run.meanFullBytes(arm.last);
  const twins = b && a.spec.label === b.spec.label, isFull = (arm) => arm.spec.policy.name === "Full";
  if (!run.arms.some((arm) => arm.last >= 1)) return "Too few tokens to compare.";
  for (const arm of twins ? [a] : run.arms) {
    if (isFull(arm) || arm.last < 1) continue;
    sentences.push(`${twins ? `Both arms (${arm.spec.label})` : shortLabel(arm)} stored ${formatPercent(share(arm, arm.storedBytes))} and read ${formatPercent(share(arm, arm.readBytes))} of the full KV cache.`);
  }
  if (run.arms.every(isFull)) sentences.push(`${b ? "Both arms are" : "This is"} full attention, which stores and reads the whole KV cache.`);
  if (!b || a.last < 1 || b.last < 1) return sentences.join(" ");
  if (twins) return [...sentences, "Their settings are the same, so a difference in time is noise."].join(" ");
  if (!isFull(a) && !isFull(b)) {
    const [less, more] = share(a, a.storedBytes) <= share(b, b.storedBytes) ? [a, b] : [b, a];
    const part = share(less, less.storedBytes) / share(more, more.storedBytes);
    sentences.push(part > 0.995 ? `${shortLabel(a)} and ${shortLabel(b)} stored the same amount.` : `${shortLabel(less)} stored ${formatPercent(part)} of what ${shortLabel(more)} stored.`);
  }
  const found = timesOf(run), words = timesInWords(run);
  sentences.push(`${words[0].toUpperCase()}${words.slice(1)}.`);
  if (found.kind === "close") sentences.push(advice(found));
  if (found.kind === "apart" && found.basis === "steps") sentences.push("Repeat the run to see whether that holds from run to run.");
  const adaptive = isFull(a) ? b : isFull(b) ? a : null;
  const slower = adaptive && found.ratio && (adaptive === b ? found.ratio : 1 / found.ratio);
  if (adaptive && (found.kind === "close" || (found.kind === "apart" && slower > 1))) sentences.push(why(adaptive, found.kind === "apart" ? slower : 1));
  return sentences.join(" ");
}

function why(arm, ratio) {
  const start = view.run.start, cpu = String(start.model.device || "").startsWith("cpu");
  const perStep = formatBytes(start.token_bytes * start.n_image);
  const words = [];
  if (start.batch === 1) words.push(`At batch size 1, decoding is bound by reading the weights; the image’s KV cache is only ${perStep}, so reading less of it saves little`);
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
  Promise.resolve().then(work).catch(() => showError("Download failed: this run has expired on the server.")).finally(() => { button.disabled = false; });
}

const stamp = () => String(view.run.start.date || "run").slice(0, 19).replace(/[^0-9A-Za-z]+/g, "-");
$.saveJson.addEventListener("click", () => busy($.saveJson, async () => save(`avl-${stamp()}.json`, "application/json", await server.download({ run: view.id, kind: "json" }))));
$.saveCsv.addEventListener("click", () => busy($.saveCsv, async () => save(`avl-${stamp()}.csv`, "text/csv", await server.download({ run: view.id, kind: "csv" }))));
$.saveHtml.addEventListener("click", () => busy($.saveHtml, async () => save(`avl-${stamp()}.html`, "text/html", await server.download({ run: view.id, kind: "html" }))));
$.savePng.addEventListener("click", () => busy($.savePng, () => new Promise((resolve) => $.overlay.toBlob((blob) => { save(`avl-${stamp()}-layer${view.layer}.png`, "image/png", blob); resolve(); }))));
