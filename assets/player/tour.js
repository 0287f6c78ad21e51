// Explanations: one text per panel behind its "?", and six steps through the page.

const HELP = {
  race: "Each arm generates on its own clock: only the time of its own prefill (pale) and steps (cells) counts, and the two never run at the same time on the device. The arm that has used less time steps next, so the one ahead here would also be ahead alone. Dark notches are update steps.",
  overlay: "Each cell is one image token of the chosen layer. Core tokens (yellow frame) are read at every step, secondary tokens (green hatching) stay in memory and are read only at update steps, minor tokens (dark) left memory right after prefill, tokens framed in pink already left during prefill (P). Every layer chooses for itself.",
  memory: "Bytes of keys and values, exact and per arm. Stored is what the arm holds; read is what one step's attention touches. A-VL's read line is a saw-tooth: every K-th step reads all it holds in order to choose the core anew.",
  latency: "Time of each decode step on the device. Triangles mark update steps. The first step after a pause of the machine can stand out; the median and p99 above are less easily fooled.",
  device: "Context, not proof: pynvml sees the whole device and what other programs do on it; without an NVIDIA GPU the resident memory of this process stands here.",
  analysis: "Left: does a layer stay with its choice? Each cell compares a layer's core with its first one. Right: do layers agree? Each cell compares the core of two layers at the playhead. Bright is the same set, dark is none in common. Attention is not an explanation of the answer.",
  result: "Measured means over the decode steps beside what the policy’s cost model predicts from the prompt's size. They should match exactly. Times are of this one run on this machine.",
};

const TOUR = [
  ["arms", "Two answers, one model", "The same weights answer the same question twice. Left, each new token attends to every token before it. Right, A-VL decides which image tokens are worth keeping and reading."],
  ["overlay", "Prefill sorts the picture", "After reading the question, each layer ranks the image tokens by the attention of the last prompt token. The best S % stay in memory, and the best C % of all are the core. The rest is evicted at once."],
  ["layer", "Every layer looks elsewhere", "Move this slider or press a small picture: each layer holds its own choice. That is why A-VL chooses per layer."],
  ["step", "The core follows the answer", "Most steps read the core alone. Every K-th step reads all that is kept and chooses the core anew. Scrub, and watch “change at the last update”."],
  ["memory", "Memory and reading are two things", "Stored is what the cache holds, read is what a step touches. The full cache grows with every token; A-VL holds about half and reads less."],
  ["resultPanel", "What it does not show", "At batch 1 a step spends its time on the weights, so fewer cache reads hardly make it faster. The gain in time grows with batch × picture length. One run is one run: look at the medians, and try others."],
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
