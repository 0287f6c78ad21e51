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
