// Example pictures, "New scene", and the questions that suit the picture on the left.

import { h, mount, partsOf, put, show } from "./core/dom.js";
import { offer, tell } from "./core/page.js";
import { openingLink } from "./core/tab.js";
import { takeDrops } from "./drop.js";
import { TEXT } from "./text.js";

const $ = partsOf(mount(element, STYLE, `<p class="avl-note avl-size" data-id="size" role="status"></p>
<div class="avl-strip-box">
  <button type="button" class="avl-scroll-by" data-id="left" aria-hidden="true" tabindex="-1" hidden>‹</button>
  <div class="avl-strip" data-id="strip" role="group" aria-label="${TEXT.examples}"></div>
  <button type="button" class="avl-scroll-by" data-id="right" aria-hidden="true" tabindex="-1" hidden>›</button>
</div>
<div class="avl-chips" data-id="chips" role="group" aria-label="${TEXT.suggested}"></div>`));

const given = /** @type {{ key: string, name: string, thumbnail: string, conversation: string[] }[]} */ (props.examples || []);
if (props.scenes) $.strip.append(h("button", { type: "button", class: "avl-example avl-new", title: TEXT.newSceneTitle, onclick: () => trigger("select", { scene: true }) }, h("b", {}, "+"), h("span", {}, TEXT.newScene)));
$.strip.append(...given.map(({ thumbnail, conversation: two }, index) => ((two || []).length < 2 ? "" : h("button", {
  type: "button", class: "avl-two", title: TEXT.turns.twoTitle(two), "aria-label": TEXT.turns.twoTitle(two), onclick: () => askNow(index, two),
}, h("img", { src: thumbnail, alt: "" }), h("span", {}, TEXT.turns.two)))));
$.strip.append(...given.map((example, index) => h("div", { class: "avl-card" },
  h("button", { type: "button", class: "avl-example", title: example.name, onclick: () => trigger("select", { example: index }) }, h("img", { src: example.thumbnail, alt: "" }), h("span", {}, example.name)),
  h("button", { type: "button", class: "avl-ask", title: TEXT.askNowTitle(example.name), "aria-label": TEXT.askNowTitle(example.name), onclick: () => askNow(index) }, TEXT.askNow),)));

// the strip is wider than the column: arrows where there is more
function drawArrows() {
  show($.left, $.strip.scrollLeft > 4);
  show($.right, $.strip.scrollLeft + $.strip.clientWidth < $.strip.scrollWidth - 4);
}
for (const [arrow, way] of [[$.left, -1], [$.right, 1]]) arrow.addEventListener("click", () => $.strip.scrollBy({ left: way * $.strip.clientWidth * 0.7, behavior: "smooth" }));
$.strip.addEventListener("scroll", drawArrows, { passive: true });
new ResizeObserver(drawArrows).observe($.strip);

// what the server last said of the pictures; a prompt measured after the question changed is added, unless it is of other pictures
/** @type {any} */
let held = {};
/** @type {(() => void)[]} */ const waiting = [];
const answered = () => new Promise((resolve) => { waiting.push(() => resolve(null)); });
function refresh() {
  const { measured, ...said } = props.value || {};
  if (measured && measured.id !== held.id) return;
  held = measured ? { questions: held.questions, link: held.link, ...measured } : said;
  if (!measured) for (const heard of waiting.splice(0)) heard();
  const { questions = [], prompt = null, problem = "", pictures = 1 } = held, { context } = props;
  $.chips.replaceChildren(...questions.map((/** @type {string} */ question, /** @type {number} */ index) => h("button", { type: "button", class: "avl-chip", onclick: () => trigger("select", { question: index }) }, question)));
  const cut = prompt && prompt.seen !== null && prompt.seen < 0.95 ? TEXT.seenCut(pictures, 1 - prompt.seen) : "";
  const tooLong = prompt && context && prompt.n_image + prompt.n_text >= context;
  const room = tooLong ? TEXT.contextExceeded(context) : pictures > 1 && context ? TEXT.contextOf(context) : "";
  put($.size, problem || (prompt ? TEXT.promptSize(pictures, prompt.n_image, room, cut) : ""));
  $.size.classList.toggle("avl-problem", Boolean(problem || tooLong));
  offer("avlPrompt", prompt);
  tell("prompt");
  tell("edited");
}
watch("value", refresh);
refresh();

// an upload has no name and never gets into a link
offer("avlPicture", () => {
  const { link = "", id = "", pictures = 1 } = held;
  return { link: pictures > 1 ? "" : link, id };
});
const QUESTION = "#avl-question textarea";
offer("avlQuestion", () => (/** @type {HTMLTextAreaElement} */ (document.querySelector(QUESTION)) || { value: "" }).value);

// an example's picture and first question, asked at once; or the first of two, and the second once it is answered
/** @param {number} index @param {string[]} [two] */
async function askNow(index, two) {
  const chosen = answered(), run = /** @type {HTMLButtonElement | null} */ (document.querySelector("#avl-run"));
  trigger("select", { example: index, ...(two ? { ask: two[0] } : {}) });
  await chosen;
  const field = /** @type {HTMLTextAreaElement | null} */ (document.querySelector(QUESTION)), { questions = [], link: picked } = held, wanted = two ? two[0] : questions[0];
  if (!run || !field || picked !== `ex=${given[index].key}`) return; // something else was chosen meanwhile
  for (let tries = 0; field.value !== wanted && tries < 60; tries++) await new Promise((resolve) => setTimeout(resolve, 50));
  if (run.disabled) { put($.size, TEXT.askLater); return; }
  if (field.value !== wanted) return;
  offer("avlThen", two ? { after: two[0], question: two[1] } : null);
  run.click();
}
takeDrops(answered);

// a link may name an example or the seed of a scene
const link = openingLink(), ask = link.get("q"), asked = ask ? { ask } : {};
const seed = /^\d{1,10}$/.test(link.get("scene") || "") ? Number(link.get("scene")) : null;
const named = given.findIndex((example) => example.key === link.get("ex"));
const opening = seed !== null && props.scenes ? { scene: true, seed, ...asked } : named >= 0 ? { example: named, ...asked } : ask ? asked : null;
if (opening) setTimeout(() => trigger("select", opening), 60);

// Enter runs, Shift+Enter starts a line: as in a chat. The text box itself would have it the other way round.
for (const kind of ["keydown", "keypress"]) {
  document.addEventListener(kind, (any) => {
    const event = /** @type {KeyboardEvent} */ (any);
    if (event.key !== "Enter" || event.isComposing || !/** @type {Element} */ (event.target).matches(QUESTION)) return;
    event.stopImmediatePropagation();
    if (event.shiftKey) return;
    event.preventDefault();
    const run = /** @type {HTMLButtonElement | null} */ (document.querySelector("#avl-run"));
    if (kind === "keydown" && run && !run.disabled) run.click();
  }, true);
}
document.addEventListener("input", (event) => { if (/** @type {Element} */ (event.target).matches(QUESTION)) tell("edited"); });
