// The two answers: cards with text, times and memory, and where the answers part.

function shortLabel(arm) {
  const twins = view.run.arms.filter((other) => other !== arm && other.spec.title === arm.spec.title);
  if (twins.some((other) => other.spec.label === arm.spec.label)) return `${arm.spec.label} (${arm.index + 1})`;
  return twins.length ? arm.spec.label : arm.spec.title || arm.spec.label;
}

// the engine's short name in words
function kernels(name) {
  return { reference: "PyTorch reference", triton: "Triton" }[name] || name;
}

function buildCards() {
  cards.length = 0;
  $.arms.replaceChildren(...view.run.arms.map((arm, index) => {
    const card = { texts: [] };
    const metric = (key, label, title) => h("div", { class: "avl-metric", title }, h("span", {}, label), card[key] = h("b", {}, DASH), card[`${key}Sub`] = h("small", {}, ""));
    const bar = (key, label, title) => h("div", { class: "avl-bar", title }, h("span", { class: "avl-bar-name" }, label),
      h("span", { class: "avl-bar-box" }, card[`${key}Fill`] = h("i", { class: `avl-bar-${key}` })), card[key] = h("b", {}, DASH), card[`${key}Share`] = h("small", {}, ""));
    card.node = h("article", { class: `avl-panel avl-arm avl-arm-${index ? "b" : "a"}` },
      h("header", {}, h("i", { class: "avl-dot" }), h("h2", {}, arm.spec.label)),
      card.state = h("p", { class: "avl-arm-state" }, "waiting"),
      card.answer = h("div", { class: "avl-answer", tabindex: "0", "aria-live": "off", "aria-label": `Answer of ${arm.spec.label}` }),
      h("div", { class: "avl-metrics" },
        metric("ttft", "First token", "Time to first token: prefill of picture and question. Below: most KV held during it"),
        metric("perToken", "Per token", "Median of the decode steps so far, below: their p99. After repeats: median of all runs"),
        metric("rate", "Speed", "Batch rows divided by the time per token"),
      ),
      bar("stored", "KV stored", "Bytes of keys and values held now, and their share of what full attention holds"),
      bar("read", "KV read", "Bytes of keys and values that a step reads, mean over the steps so far, and their share of what full attention reads"),
      card.step = h("p", { class: "avl-impl", title: "An update step reads everything stored and the token that it evicts afterwards, so it can read a little more than is stored" }),
      h("p", { class: "avl-impl" }, `Attention kernels: ${kernels(arm.spec.implementation)}`),
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
      const chip = h("span", { class: "avl-token", "data-t": String(at) }, (at ? arm.texts[at] : (arm.texts[at] || NO_TEXT).trimStart()) || NO_TEXT);
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
      // the last tokens may come together with the end
      if (card.drawn !== arm.tokens.length && (live || card.live)) card.answer.scrollTop = card.answer.scrollHeight;
      Object.assign(card, { t, drawn: arm.tokens.length, from, live });
    }
    const steps = arm.stepMs(t);
    const middle = median(steps);
    put(card.ttft, arm.prefill ? formatMs(arm.ms[0]) : DASH);
    // one number for one thing: with repeats, all of them count, here as in the comparison below
    const runs = t === arm.last && arm.repeats.length ? run.medians(index) : [], perToken = runs.length > 1 ? median(runs) : middle;
    put(card.perToken, formatMs(perToken));
    put(card.perTokenSub, runs.length > 1 ? `median of ${runs.length} runs` : steps.length > 1 ? `p99 ${formatMs(quantile(steps, 0.99))}` : "");
    put(card.rate, perToken ? formatRate(1000 * run.start.batch / perToken) : DASH);
    put(card.rateSub, run.start.batch > 1 ? `${run.start.batch} rows` : "");
    put(card.ttftSub, arm.prefill ? `peak KV ${formatBytes(arm.prefill.peak_bytes)}` : "");
    if (arm.last >= 0) {
      const share = arm.storedBytes[t] / run.fullBytes(t);
      put(card.stored, formatBytes(arm.storedBytes[t]));
      put(card.storedShare, `${formatPercent(share)} of full`);
      card.storedFill.style.width = `${Math.min(100, share * 100)}%`;
      const mean = arm.meanBytes(arm.readBytes, t);
      const meanShare = mean === null ? null : mean / run.meanFullBytes(t);
      put(card.read, formatBytes(mean));
      put(card.readShare, mean === null ? "" : `${formatPercent(meanShare)} of full`);
      put(card.step, t > 0 ? `KV read: mean per step; this step ${formatBytes(arm.readBytes[t])}${arm.update[t] ? " (update)" : ""}` : "KV read: mean per step");
      card.readFill.style.width = `${Math.min(100, (meanShare || 0) * 100)}%`;
    }
    const reason = arm.error ? "failed" : !arm.prefill ? (view.state === "done" || arm.end ? "not started" : index && !run.arms[0].prefill ? "waiting" : "prefill …") :
      !arm.end ? `token ${arm.last + 1} of ${run.start.limit}` : `${{ eos: "finished", length: "hit the token limit", stopped: "stopped" }[arm.end.reason] || arm.end.reason}, ${counted(arm.last + 1)}`;
    put(card.state, reason);
  });
  drawDivergence(prefix);
}

const counted = (tokens) => `${tokens} token${tokens === 1 ? "" : "s"}`;

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

// a token in words; one without text ends the answer, or is a part of a character
function quoted(arm, t) {
  const text = (arm.texts[t] || "").trim();
  if (text) return `“${text.length > 40 ? `${text.slice(0, 40)}…` : text}”`;
  return t > arm.last || (t === arm.last && arm.end && arm.end.reason === "eos") ? "(end)" : "(no text)";
}

function drawDivergence(prefix) {
  const run = view.run;
  if (!prefix || run.last < 0) { put($.diverge, ""); return; }
  const [a, b] = run.arms;
  if (prefix.differs) {
    put($.diverge, `${prefix.same ? `Identical for ${counted(prefix.same)}, then diverges` : "Diverges"} at token ${prefix.same + 1}: ${shortLabel(a)} ${quoted(a, prefix.same)}, ${shortLabel(b)} ${quoted(b, prefix.same)}`);
  } else if (run.finished) {
    const even = a.tokens.length === b.tokens.length;
    put($.diverge, even ? `Identical answers, ${counted(prefix.same)} each.` : prefix.same ? `Identical for the ${counted(prefix.same)} that both arms generated.` : "");
  } else {
    put($.diverge, `Identical so far: ${counted(prefix.same)}.`);
  }
  $.diverge.classList.toggle("avl-differs", prefix.differs);
}
