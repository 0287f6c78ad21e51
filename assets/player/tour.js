// Explanations: one text per panel behind its "?", and six steps through the page.

const HELP = {
  race: "Each policy is timed separately: only its own prefill (pale) and steps (cells) count, and the two never share the device. We always advance the policy with less accumulated compute time, so whichever leads here would also lead if run alone. Dark notches are update steps. Times are called different only where their spread allows it: over three or more complete runs by the notches of their medians (± 1.57 IQR / √n, wider for few runs), within one run where the middle halves of the step times do not overlap.",
  overlay: "Each cell is one image token of the chosen layer. Core tokens (yellow frame) are read at every step, secondary tokens (green hatching) stay in memory and are read only at update steps, minor tokens (dark) left memory right after prefill, tokens framed in pink already left during prefill (P). Every layer chooses for itself. With spread, tokens hatched in blue are held whatever they score: an even share of the picture, other tokens in every layer, half of them always core. They keep what the end of a long answer needs. Spread is ours, not the paper’s.",
  memory: "Bytes of keys and values, exact and per policy. Stored is what the cache holds; read is what one step’s attention touches. A-VL’s read line is a saw-tooth: every K-th step reads everything stored to re-select the core. An update step also reads the token that is evicted after it, so its read can pass stored.",
  latency: "Time of each decode step on the device. Triangles mark update steps. The first step after an idle period can be an outlier; rely on the median and p99.",
  device: "For context only: NVML reports the whole device, including other processes.",
  analysis: "Overlap is the paper’s PPCI (Equation 2): the share of one set of image tokens that is also in the other. Left: does a layer keep its choice? Each cell compares a layer’s core with its first one. Right: do layers agree? Each cell compares the cores of two layers at the playhead. Bright is the same set, dark is none in common. Attention is not an explanation of the answer.",
  result: "Measured means over the decode steps, next to what the policy’s cost model predicted from the prompt’s size. They should match exactly. Times are those of this machine.",
};

const TOUR = [
  ["arms", "Two answers, one model", "The same weights answer the same question twice. Left, each new token attends to every token before it. Right, A-VL decides which image tokens are worth keeping and reading."],
  ["overlay", "Prefill sorts the picture", "After reading the question, each layer ranks the image tokens by the attention of the last prompt token. The best S % stay in memory, and the best C % of all are the core. The rest is evicted at once."],
  ["layer", "Layers attend to different tokens", "Move this slider or click a thumbnail: each layer keeps its own set. That is why A-VL chooses per layer."],
  ["step", "The core follows the answer", "Most steps read the core alone. Every K-th step reads everything stored and re-selects the core. Scrub, and watch “Changes since last update”."],
  ["memory", "Stored vs. read", "Stored is what the cache holds, read is what a step touches. The full cache grows with every token; A-VL holds about half and reads less."],
  ["resultPanel", "Limitations", "At batch size 1, decoding is bound by reading the weights, so fewer cache reads hardly make it faster. The speedup grows with batch size and image tokens. One run is one run: repeat it, and try others."],
];

function setUpHelp(parts) {
  for (const [name, text] of Object.entries(HELP)) {
    const head = parts[`${name}Head`];
    if (!head) continue;
    const words = h("p", { class: "avl-help-text", hidden: true }, text);
    const button = h("button", { type: "button", class: "avl-help", "aria-expanded": "false", "aria-label": `What is this? ${head.querySelector("h2").textContent}` }, "?");
    button.addEventListener("click", () => {
      words.hidden = !words.hidden;
      button.setAttribute("aria-expanded", String(!words.hidden));
    });
    head.append(button);
    head.after(words);
  }
}

class Tour {
  constructor(root, parts) {
    this.parts = parts;
    this.at = -1;
    this.box = h("div", { class: "avl-tour avl-panel", role: "dialog", "aria-label": "Tour", hidden: true },
      this.count = h("small", {}), this.title = h("h2", {}), this.words = h("p", {}),
      h("div", { class: "avl-tour-buttons" },
        this.back = h("button", { type: "button", class: "avl-btn", onclick: () => this.show(this.at - 1) }, "Back"),
        this.next = h("button", { type: "button", class: "avl-btn", onclick: () => this.show(this.at + 1) }, "Next"),
        h("button", { type: "button", class: "avl-btn", onclick: () => this.close() }, "Close")));
    root.append(this.box);
    this.box.addEventListener("keydown", (event) => { if (event.key === "Escape") this.close(); event.stopPropagation(); });
  }

  show(at) {
    if (at >= TOUR.length) { this.close(); return; }
    this.mark(false);
    this.at = Math.max(0, at);
    const [, title, words] = TOUR[this.at];
    put(this.count, `${this.at + 1} of ${TOUR.length}`);
    put(this.title, title);
    put(this.words, words);
    this.back.disabled = this.at === 0;
    put(this.next, this.at === TOUR.length - 1 ? "Done" : "Next");
    this.box.hidden = false;
    this.mark(true);
    this.next.focus({ preventScroll: true });
  }

  target() {
    const name = TOUR[this.at] && TOUR[this.at][0], node = name && this.parts[name];
    return node ? node.closest(".avl-slider, .avl-timeline, .avl-stage") || node : null;
  }

  mark(on) {
    const node = this.target();
    if (!node) return;
    node.classList.toggle("avl-toured", on);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (on) node.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "center" });
  }

  close() {
    this.mark(false);
    this.at = -1;
    this.box.hidden = true;
  }
}
