// Settings: the policies with their sliders and immediate predictions, and what is generated.

import { debounce, h, mount, partsOf, put, show } from "./core/dom.js";
import { freeBytes, hear, offer, picture, promptSize, question, tell } from "./core/page.js";
import { openingLink, remember } from "./core/tab.js";
import { armBox, defaults, fitting, matchOf, nameOf } from "./settings/arm.js";
import { GENERATION, generationFields } from "./settings/generation.js";
import { fromLink, toLink } from "./settings/link.js";
import { TEXT } from "./text.js";

const root = mount(element, STYLE, `<details class="avl-drawer" data-id="drawer" open>
<summary>${TEXT.settings}</summary>
<div class="avl-drawer-body">
<div data-id="arms" class="avl-controls"></div>
<div class="avl-tools avl-arms-more" data-id="more">
  <button type="button" class="avl-btn avl-small" data-id="add">${TEXT.addPolicy}</button>
  <button type="button" class="avl-btn avl-small" data-id="all" title="${TEXT.allPoliciesTitle}">${TEXT.allPolicies}</button>
</div>
<p class="avl-note" data-id="told" role="status" hidden></p>
${GENERATION}
</div>
</details>`);
const $ = partsOf(root), about = props.about, catalog = props.policies, most = about.max_arms || 2;
const copy = (/** @type {any} */ value) => JSON.parse(JSON.stringify(value));
let settings = copy(props.value);
/** @type {any} */ let prediction = null;
/** @type {ReturnType<typeof armBox>[]} */ let boxes = [];
/** @type {WeakSet<any>} */ const unfolded = new WeakSet();
const fields = generationFields(root, () => settings, (changes) => { Object.assign(settings, changes); publish(); }, about);

function publish() {
  // a fresh object, or the page would not notice the change
  props.value = copy(settings);
  say();
  ask();
  tell("edited");
}

/** What a button did, until something else is set. @param {...any} words */
function say(...words) {
  $.told.replaceChildren(...words);
  show($.told, words.length > 0);
}

// Predictions come from the server: asked once a slider rests, one question at a time, and only an answer to the latest settings is shown.
// They are made with the size of the chosen pictures' prompt, which the strip heard from the server.
const request = () => JSON.stringify({ settings, prompt: promptSize() });
let asking = false;
const ask = debounce(async () => {
  if (asking) return;
  asking = true;
  const asked = request(), answer = await server.predict(JSON.parse(asked)).catch(() => ({ error: TEXT.noPrediction }));
  asking = false;
  if (asked !== request()) { ask(); return; }
  prediction = answer;
  drawPrediction();
}, 40);

/** An answer of the server to the settings as they are when it arrives. @param {(wanted: any) => Promise<any>} asks */
async function told(asks) {
  for (;;) {
    const asked = request(), answer = await asks(JSON.parse(asked)).catch(() => null);
    if (asked === request()) return answer || { error: TEXT.noAnswer };
  }
}

function drawPrediction() {
  const { error = "", arms = [], full = 0 } = prediction || {};
  put($.problem, error);
  show($.problem, Boolean(error));
  boxes.forEach((box, index) => box.predict(error ? null : arms[index] || null, full));
  drawFits();
}

function drawFits() {
  const free = freeBytes(), peaks = prediction && prediction.arms ? prediction.arms.map((/** @type {any} */ arm) => arm.peak) : [];
  const known = Boolean(free) && peaks.length > 0 && peaks.every((/** @type {any} */ peak) => peak !== undefined);
  show($.fits, known);
  if (!known) return;
  const { row, rows } = fitting(settings, peaks, prediction.reference, free);
  put($.fits, TEXT.fits(row, free, rows));
}

/** @type {import("./settings/arm.js").Editor} */
const editor = {
  catalog, about,
  replace(index, policy) {
    const arm = defaults(catalog, policy);
    if (unfolded.has(settings.arms[index])) unfolded.add(arm);
    settings.arms[index] = arm;
    publish();
    build(index);
  },
  set(index, key, value) {
    const arm = settings.arms[index];
    arm[key] = value;
    // core and spread are parts of secondary: the slider that moves takes the other along
    for (const part of arm.policy === "AVL" ? ["C", "spread"] : []) {
      if (!(arm[part] > arm.S)) continue; // off, too
      if (key === part) arm.S = arm[part]; else arm[part] = arm.S;
    }
    publish();
    boxes[index].redraw();
  },
  assign(index, params) { Object.assign(settings.arms[index], params); publish(); boxes[index].redraw(); },
  remove(index) {
    settings.arms.splice(index, 1);
    publish();
    build(Math.min(index, settings.arms.length - 1));
  },
  async match(arm) {
    const at = () => settings.arms.indexOf(arm), to = () => matchOf(settings.arms, catalog, at());
    const values = await told((wanted) => (at() < 0 ? Promise.resolve({}) : server.equal({ ...wanted, arm: at(), to: to() })));
    if (at() < 0) return null;
    if (!values.error) editor.assign(at(), values);
    return values;
  },
  fold(arm, open) { if (open) unfolded.add(arm); else unfolded.delete(arm); },
};

/** @param {number} [focused] arm whose menu the keyboard stays at: the boxes are made anew */
function build(focused) {
  const { arms } = settings;
  boxes = arms.map((/** @type {any} */ arm, /** @type {number} */ index) => {
    const to = matchOf(arms, catalog, index);
    return armBox(editor, arm, index, { many: arms.length > 2, open: unfolded.has(arm), match: to < 0 ? "" : nameOf(arms, catalog, to) });
  });
  for (const box of boxes) { box.redraw(); box.predict(null, 0); }
  $.arms.replaceChildren(...boxes.map((box) => box.node));
  show($.more, most > 2);
  $.add.disabled = arms.length >= most;
  $.add.title = $.add.disabled ? TEXT.mostPolicies(most) : "";
  if (focused !== undefined) boxes[focused].node.querySelector("select").focus();
  drawPrediction();
}

$.add.addEventListener("click", () => {
  const names = Object.keys(catalog), used = settings.arms.map((/** @type {any} */ arm) => arm.policy);
  const arm = defaults(catalog, names.find((name) => !used.includes(name)) || names[0]);
  unfolded.add(arm);
  settings.arms.push(arm);
  publish();
  build(settings.arms.length - 1);
});
$.all.addEventListener("click", async () => {
  const found = await told((wanted) => server.equal_all(wanted)), before = settings.arms;
  if (!Array.isArray(found.arms)) { say(found.error); return; }
  const choose = (/** @type {any[]} */ arms) => { settings.arms = arms; publish(); build(); };
  choose(found.arms);
  say(TEXT.allEqual(found.share, found.left_out), " ", h("button", { type: "button", class: "avl-btn avl-small", onclick: () => { choose(before); $.all.focus(); } }, TEXT.undo));
});

const link = openingLink(), opening = JSON.stringify(props.value);
watch("value", () => {
  const { value } = props;
  if ([...link.keys()].length && JSON.stringify(value) === opening && JSON.stringify(settings) !== opening) {
    publish(); // the server's opening settings arrive once more after the link's were set: the link wins
    return;
  }
  if (!value || JSON.stringify(value) === JSON.stringify(settings)) return;
  settings = copy(value);
  build();
  fields.draw();
  ask();
});
if ([...link.keys()].length) {
  settings = fromLink(settings, link, catalog, about, fields.modes);
  publish();
}

offer("avlLink", () => { const chosen = picture(); return toLink(settings, catalog, chosen ? chosen.link : "", question()); });
// what the page would ask now; the player compares it with what was asked
offer("avlInputs", () => { const chosen = picture(); return chosen ? { settings, question: question(), ...chosen } : null; });
// another component puts a policy in: the arm that has it already, else the last one
offer("avlApply", (/** @type {any} */ { name, ...params }) => {
  const { arms } = settings, found = arms.findIndex((/** @type {any} */ arm) => arm.policy === name), index = found >= 0 ? found : arms.length - 1;
  arms[index] = { ...defaults(catalog, name), ...params };
  publish();
  build();
  return index + 1;
});
hear("idle", drawFits);
hear("prompt", () => ask());
// a reload keeps the inputs
hear("edited", debounce(() => remember("avl-link", /** @type {any} */ (window).avlLink()), 200));

build();
fields.draw();
ask();
// on a phone the settings are folded, or the answers would be far below
if (matchMedia("(max-width: 760px)").matches) $.drawer.open = false;
