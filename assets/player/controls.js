// Settings: two arms with the sliders of their policies, immediate predictions, and what is generated.

const root = mount(element);
const about = props.about, catalog = props.policies;
const $ = {};
for (const node of root.querySelectorAll("[data-id]")) $[node.dataset.id] = node;
let settings = JSON.parse(JSON.stringify(props.value));

function publish() {
  // a fresh object, or the page would not notice the change
  props.value = JSON.parse(JSON.stringify(settings));
  ask();
  document.dispatchEvent(new CustomEvent("avl:edited"));
}

function defaults(name) {
  const values = { policy: name };
  for (const parameter of catalog[name].parameters) values[parameter.key] = parameter.default;
  return values;
}

// Predictions come from the server: asked once a slider rests, one question at a time, and only an answer to the latest settings is shown.
let prediction = null;
let asking = false;

// with the size of the chosen pictures' prompt, which the strip heard from the server
const request = () => JSON.stringify({ settings, prompt: window.avlPrompt || null });

const ask = debounce(async () => {
  if (asking) return;
  asking = true;
  const asked = request();
  const answer = await server.predict(JSON.parse(asked)).catch(() => ({ error: "There is no prediction: the server does not answer." }));
  asking = false;
  if (asked !== request()) { ask(); return; }
  prediction = answer;
  drawPrediction();
}, 40);

function drawPrediction() {
  put($.problem, prediction.error || "");
  show($.problem, Boolean(prediction.error));
  [...$.arms.children].forEach((box, index) => box.predict(prediction.error ? null : prediction.arms[index]));
  drawFits();
}

function build() {
  $.arms.replaceChildren(...settings.arms.map((arm, index) => panel(arm, index)));
}

function panel(arm, index) {
  const box = h("div", { class: `avl-panel avl-choice ${index ? "avl-choice-b" : ""}`, role: "group", "aria-label": `Policy ${index + 1}` });
  const select = h("select", { class: "avl-select", "aria-label": `Policy of arm ${index + 1}` },
    Object.entries(catalog).map(([name, entry]) => h("option", { value: name, selected: name === arm.policy }, entry.title)));
  select.addEventListener("change", () => { settings.arms[index] = defaults(select.value); publish(); build(); });
  box.append(h("div", { class: "avl-choice-head" }, h("b", {}, `Policy ${index + 1}`), select));
  const outputs = {};
  const { parameters, presets, budget } = catalog[arm.policy];
  const rows = h("div", { class: "avl-params" }, parameters.filter((parameter) => !parameter.choices.length || arm[parameter.key] !== parameter.default).map((parameter) => {
    if (parameter.choices.length) return h("p", { class: "avl-note", title: parameter.help }, `${parameter.key} = ${arm[parameter.key]}`); // only a link sets it
    const id = `avl-arm${index}-${parameter.key}`;
    const range = h("input", { type: "range", class: "avl-range", id, min: String(parameter.low), max: String(parameter.high), step: String(parameter.step), title: parameter.help });
    const output = h("output", { for: id });
    const toggle = parameter.off ? h("label", { class: "avl-toggle", title: "off: the table’s “–”" }, h("input", { type: "checkbox", "aria-label": `${parameter.key} on` }), "on") : h("span");
    const row = h("div", { class: "avl-param", title: parameter.help }, h("label", { for: id }, h("b", {}, parameter.key.length === 1 ? parameter.key : ""), " ", h("span", {}, parameter.label)), range, output, toggle);
    const draw = () => {
      const value = arm[parameter.key];
      if (value !== null) range.value = value;
      else if (!range.dataset.kept) range.value = parameter.start;
      row.classList.toggle("avl-off", value === null);
      put(output, value === null ? "off" : `${value} ${value === 1 ? parameter.unit.replace(/s$/, "") : parameter.unit}`);
      if (parameter.off) toggle.firstChild.checked = value !== null;
    };
    range.addEventListener("input", () => { range.dataset.kept = "1"; set(index, parameter.key, Number(range.value)); });
    if (parameter.off) toggle.firstChild.addEventListener("change", () => set(index, parameter.key, toggle.firstChild.checked ? Number(range.value) : null));
    outputs[parameter.key] = draw;
    return row;
  }));
  box.append(rows);
  let preset = null;
  const rowsOf = presets.flatMap((group) => group.rows);
  if (presets.length) {
    const option = (row) => h("option", { value: String(rowsOf.indexOf(row)) }, row.label);
    preset = h("select", { class: "avl-select avl-preset", "aria-label": "Presets" },
      h("option", { value: "" }, about.bundled ? "Presets for real LLaVA" : "Presets"), presets.map((group) => h("optgroup", { label: group.title }, group.rows.map(option))));
    preset.addEventListener("change", () => {
      if (preset.value === "") return;
      Object.assign(arm, rowsOf[Number(preset.value)].params);
      publish();
      redraw();
    });
    box.append(preset);
  }
  const predicted = h("p", { class: "avl-predicted" });
  box.append(predicted);
  const other = settings.arms[1 - index];
  if (budget && other && catalog[other.policy].budget) {
    const button = h("button", { type: "button", class: "avl-btn avl-equal", title: "Set this policy so that it stores as much as the other one" }, "Match the other policy’s KV size");
    button.addEventListener("click", async () => {
      const values = await server.equal({ ...JSON.parse(request()), arm: index }).catch(() => null);
      if (values && !values.error) { Object.assign(arm, values); publish(); redraw(); } else put(predicted, (values && values.error) || "This policy cannot store that share.");
    });
    box.append(button);
  }
  function redraw() {
    for (const draw of Object.values(outputs)) draw();
    if (preset) {
      // several models share a row: name the one that is loaded, and none where none of them is
      const matches = (row) => Object.entries(row.params).every(([key, value]) => arm[key] === value);
      const own = rowsOf.findIndex((row) => row.model === about.preset && matches(row));
      preset.value = own >= 0 ? String(own) : preset.value !== "" && matches(rowsOf[Number(preset.value)]) ? preset.value : "";
    }
  }
  box.predict = (found) => {
    if (found && found.error) put(predicted, found.error);
    else if (found) predicted.replaceChildren("Predicted: stores ", h("b", {}, formatPercent(found.stored)), ", reads ", h("b", {}, formatPercent(found.read)), ` of ${formatBytes(prediction.full)}`);
    else put(predicted, `Predicted: ${DASH}`);
  };
  box.predict(null);
  box.redraw = redraw;
  redraw();
  return box;
}

function set(index, key, value) {
  const arm = settings.arms[index];
  arm[key] = value;
  // core and spread are parts of secondary: the slider that moves takes the other along
  for (const part of arm.policy === "AVL" ? ["C", "spread"] : []) {
    if (!(arm[part] > arm.S)) continue; // off, too
    if (key === part) arm.S = arm[part]; else arm[part] = arm.S;
  }
  publish();
  $.arms.children[index].redraw();
}

// Rows whose caches fit into the free memory: in a race all arms hold theirs at once
function drawFits() {
  const free = window.avlFreeBytes, peaks = prediction && prediction.arms ? prediction.arms.map((arm) => arm.peak) : [];
  const known = Boolean(free) && peaks.length > 0 && peaks.every((peak) => peak !== undefined);
  show($.fits, known);
  if (!known) return;
  const row = settings.mode === "isolated" ? Math.max(...peaks) : peaks.reduce((a, b) => a + b, 0);
  const rows = Math.floor(free / row);
  put($.fits, `KV cache: ${formatBytes(row)} per sequence, ${formatBytes(free)} free: ${rows >= 256 ? "every batch fits" : rows < 1 ? "does not fit" : `fits up to about batch ${rows}`}`);
}
document.addEventListener("avl:idle", drawFits);
document.addEventListener("avl:prompt", ask);

$.tokens.max = about.max_tokens;

function drawGeneration() {
  $.tokens.value = settings.max_new_tokens;
  put($.tokensOut, `≤ ${settings.max_new_tokens}`);
  $.batch.value = settings.batch;
  $.mode.value = settings.mode;
  $.repeats.value = settings.repeats;
  $.scores.checked = settings.scores;
  $.temperature.value = settings.temperature;
  $.topp.value = settings.top_p;
  $.seed.value = settings.seed === null ? "" : settings.seed;
}

// the sentence below the fields says what is wrong, this says where
function markField(node, wrong) {
  if (wrong) node.setAttribute("aria-invalid", "true"); else node.removeAttribute("aria-invalid");
  if (wrong) node.setAttribute("aria-describedby", "avl-problem"); else node.removeAttribute("aria-describedby");
}

function generation(node, key, read) {
  node.addEventListener(node.tagName === "SELECT" ? "change" : "input", () => {
    const value = read(node);
    const { rangeUnderflow, rangeOverflow, stepMismatch } = node.validity;
    markField(node, value === undefined || rangeUnderflow || rangeOverflow || (node.step === "1" && stepMismatch));
    if (value === undefined) return;
    settings[key] = value;
    if (key === "max_new_tokens") put($.tokensOut, `≤ ${value}`);
    publish();
  });
}

// what is not a number stays as it was; what is out of range is said by the server in one sentence
const numeric = (node) => (node.value.trim() === "" || !isFinite(Number(node.value)) ? undefined : Number(node.value));
generation($.tokens, "max_new_tokens", numeric);
generation($.batch, "batch", numeric);
generation($.mode, "mode", (node) => node.value);
generation($.repeats, "repeats", numeric);
$.scores.addEventListener("change", () => { settings.scores = $.scores.checked; publish(); });
generation($.temperature, "temperature", numeric);
generation($.topp, "top_p", numeric);
generation($.seed, "seed", (node) => (node.value.trim() === "" ? null : numeric(node)));

const opening = JSON.stringify(props.value);
watch("value", () => {
  const value = props.value;
  if ([...link.keys()].length && JSON.stringify(value) === opening && JSON.stringify(settings) !== opening) {
    publish(); // the server's opening settings arrive once more after the link's were set: the link wins
    return;
  }
  if (value && JSON.stringify(value) !== JSON.stringify(settings)) {
    settings = JSON.parse(JSON.stringify(value));
    build();
    drawGeneration();
    ask();
  }
});
// a link: the arms' policies, their parameters, and what is generated; anything else in it is ignored
const link = openingLink();

function fromLink(name, low, high) {
  const text = link.get(name) || "";
  return /^\d{1,5}$/.test(text) ? Math.max(low, Math.min(high, Number(text))) : null;
}

// a parameter's value in a link, or undefined where there is none that could be valid
function linked(name, { low, high, step, off, choices }) {
  if (choices.length) return choices.find((choice) => choice === link.get(name));
  if (off && link.get(name) === "off") return null;
  const value = fromLink(name, low, high);
  return value === null ? undefined : value - (value - low) % step;
}

["a", "b"].forEach((side, index) => {
  if (link.has(side) && Object.hasOwn(catalog, link.get(side)) && settings.arms[index]) settings.arms[index] = defaults(link.get(side));
  const arm = settings.arms[index];
  if (!arm) return;
  for (const parameter of catalog[arm.policy].parameters) {
    const name = arm.policy === "AVL" && index === 1 ? parameter.key : `${side}.${parameter.key}`;
    const value = linked(name, parameter);
    if (value !== undefined) arm[parameter.key] = value;
  }
  if (arm.policy === "AVL" && arm.C !== null) arm.C = Math.min(arm.C, arm.S);
});
settings.max_new_tokens = fromLink("n", 1, about.max_tokens) ?? settings.max_new_tokens;
settings.batch = fromLink("B", 1, 256) ?? settings.batch;
settings.repeats = fromLink("r", 1, 20) ?? settings.repeats;
settings.scores = settings.scores || link.get("scores") === "1";
if ([...$.mode.options].some((option) => option.value === link.get("mode"))) settings.mode = link.get("mode");

function decimalFromLink(name, low, high) {
  const text = link.get(name) || "";
  return /^\d(\.\d{1,4})?$/.test(text) ? Math.max(low, Math.min(high, Number(text))) : null;
}

settings.temperature = decimalFromLink("temp", 0, 2) ?? settings.temperature;
settings.top_p = decimalFromLink("top", 0.01, 1) ?? settings.top_p;
if (/^\d{1,10}$/.test(link.get("seed") || "")) settings.seed = Math.min(2 ** 31 - 1, Number(link.get("seed")));
else if (link.get("seed") === "random") settings.seed = null;
if ([...link.keys()].length) publish();

window.avlLink = () => {
  const out = new URLSearchParams(window.avlPicture ? window.avlPicture().link : "");
  if (window.avlQuestion && window.avlQuestion().trim()) out.set("q", window.avlQuestion().trim());
  ["a", "b"].forEach((side, index) => {
    const arm = settings.arms[index];
    if (!arm) return;
    out.set(side, arm.policy);
    for (const parameter of catalog[arm.policy].parameters) {
      if (parameter.choices.length && arm[parameter.key] === parameter.default) continue;
      out.set(arm.policy === "AVL" && index === 1 ? parameter.key : `${side}.${parameter.key}`, arm[parameter.key] === null ? "off" : String(arm[parameter.key]));
    }
  });
  out.set("n", String(settings.max_new_tokens));
  out.set("B", String(settings.batch));
  if (settings.repeats > 1) out.set("r", String(settings.repeats));
  if (settings.scores) out.set("scores", "1");
  if (settings.mode !== "race") out.set("mode", settings.mode);
  if (settings.temperature) {
    out.set("temp", String(settings.temperature));
    out.set("top", String(settings.top_p));
    out.set("seed", settings.seed === null ? "random" : String(settings.seed));
  }
  return out.toString();
};
// what the page would ask now; the player compares it with what was asked
window.avlInputs = () => (window.avlPicture ? { settings, question: window.avlQuestion(), ...window.avlPicture() } : null);
// a reload keeps the inputs
document.addEventListener("avl:edited", debounce(() => remember("avl-link", window.avlLink()), 200));

build();
drawGeneration();
ask();
// on a phone the settings are folded, or the answers would be far below
if (matchMedia("(max-width: 760px)").matches) $.drawer.open = false;
