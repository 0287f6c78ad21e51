// Example pictures, "New scene", and the questions that suit the picture on the left.

const root = mount(element);
const [strip, chips, size, left, right] = ["strip", "chips", "size", "left", "right"].map((id) => root.querySelector(`[data-id="${id}"]`));

const examples = (props.examples || []).map((example, index) => h("button", {
  type: "button", class: "avl-example", title: example.name, onclick: () => trigger("select", { example: index }),
}, h("img", { src: example.thumbnail, alt: "" }), h("span", {}, example.name)));
if (props.scenes) strip.append(h("button", { type: "button", class: "avl-example avl-new", title: "Draw a new scene with questions whose answers are known", onclick: () => trigger("select", { scene: true }) }, h("b", {}, "+"), h("span", {}, "new scene")));
strip.append(...examples);

// the strip is wider than the column: arrows where there is more
function drawArrows() {
  show(left, strip.scrollLeft > 4);
  show(right, strip.scrollLeft + strip.clientWidth < strip.scrollWidth - 4);
}
for (const [arrow, way] of [[left, -1], [right, 1]]) arrow.addEventListener("click", () => strip.scrollBy({ left: way * strip.clientWidth * 0.7, behavior: "smooth" }));
strip.addEventListener("scroll", drawArrows, { passive: true });
new ResizeObserver(drawArrows).observe(strip);

// what the server last said of the pictures; a prompt measured after the question changed is added, unless it is of other pictures
let held = {};
function refresh() {
  const { measured, ...said } = props.value || {};
  if (measured && measured.id !== held.id) return;
  held = measured ? { questions: held.questions, link: held.link, ...measured } : said;
  const { questions = [], prompt = null, problem = "", pictures = 1 } = held;
  chips.replaceChildren(...questions.map((question, index) => h("button", { type: "button", class: "avl-chip", onclick: () => trigger("select", { question: index }) }, question)));
  const cut = prompt && prompt.seen !== null && prompt.seen < 0.95 ? ` The model sees only the middle square of ${pictures > 1 ? "such pictures" : "this picture"}: ${formatPercent(1 - prompt.seen)} is cut off.` : "";
  const tooLong = prompt && props.context && prompt.n_image + prompt.n_text >= props.context;
  const room = tooLong ? `, more than this model’s context of ${props.context}: use fewer or smaller pictures` : pictures > 1 && props.context ? ` of this model’s context of ${props.context}` : "";
  put(size, problem || (prompt ? `${pictures > 1 ? `${pictures} pictures, ` : ""}${prompt.n_image} image tokens${room}.${cut}` : ""));
  size.classList.toggle("avl-problem", Boolean(problem || tooLong));
  window.avlPrompt = prompt;
  document.dispatchEvent(new CustomEvent("avl:prompt"));
  document.dispatchEvent(new CustomEvent("avl:edited"));
}

watch("value", refresh);
refresh();

// a link may name an example or the seed of a scene; an upload has no name and never gets into a link
window.avlPicture = () => {
  const { link = "", id = "", pictures = 1 } = held;
  return { link: pictures > 1 ? "" : link, id };
};
window.avlQuestion = () => (document.querySelector("#avl-question textarea") || { value: "" }).value;
const link = openingLink();
const seed = /^\d{1,10}$/.test(link.get("scene") || "") ? Number(link.get("scene")) : null;
const named = (props.examples || []).findIndex((example) => example.key === link.get("ex"));
const asked = link.get("q") ? { ask: link.get("q") } : {};
if (seed !== null && props.scenes) setTimeout(() => trigger("select", { scene: true, seed, ...asked }), 60);
else if (named >= 0) setTimeout(() => trigger("select", { example: named, ...asked }), 60);
else if (asked.ask) setTimeout(() => trigger("select", asked), 60);

// Enter runs, Shift+Enter starts a line: as in a chat. The text box itself would have it the other way round.
for (const kind of ["keydown", "keypress"]) {
  document.addEventListener(kind, (event) => {
    if (event.key !== "Enter" || event.isComposing || !event.target.matches("#avl-question textarea")) return;
    event.stopImmediatePropagation();
    if (event.shiftKey) return;
    event.preventDefault();
    const run = document.querySelector("#avl-run");
    if (kind === "keydown" && run && !run.disabled) run.click();
  }, true);
}
document.addEventListener("input", (event) => {
  if (event.target.matches("#avl-question textarea")) document.dispatchEvent(new CustomEvent("avl:edited"));
});
