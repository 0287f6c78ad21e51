// Example pictures, "New scene", and the questions that suit the picture on the left.

const root = mount(element);
const strip = root.querySelector('[data-id="strip"]'), chips = root.querySelector('[data-id="chips"]');

const examples = (props.examples || []).map((example, index) => h("button", {
  type: "button", class: "avl-example", title: example.name, onclick: () => trigger("select", { example: index }),
}, h("img", { src: example.thumbnail, alt: "" }), h("span", {}, example.name)));
if (props.scenes) strip.append(h("button", { type: "button", class: "avl-example avl-new", title: "Draw a new scene with questions whose answers are known", onclick: () => trigger("select", { scene: true }) }, h("b", {}, "+"), h("span", {}, "new scene")));
strip.append(...examples);

function refresh() {
  const questions = (props.value && props.value.questions) || [];
  chips.replaceChildren(...questions.map((question, index) => h("button", { type: "button", class: "avl-chip", onclick: () => trigger("select", { question: index }) }, question)));
}

watch("value", refresh);
refresh();

// a link may name an example or the seed of a scene; an upload has no name and never gets into a link
window.avlExample = () => (props.value && props.value.link) || "";
const link = new URLSearchParams(location.search);
const seed = /^\d{1,10}$/.test(link.get("scene") || "") ? Number(link.get("scene")) : null;
const named = (props.examples || []).findIndex((example) => example.key === link.get("ex"));
if (seed !== null && props.scenes) setTimeout(() => trigger("select", { scene: true, seed }), 60);
else if (named >= 0) setTimeout(() => trigger("select", { example: named }), 60);
