// Before the first run: what will happen here.

import { h, show } from "../core/dom.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const intro = {
  name: "intro",
  label: TEXT.introLabel,
  className: "",
  html: `<div class="avl-intro" data-id="intro"></div>`,
  on: ["run"],
  mount({ node, parts: $, store }) {
    $.intro.append(...TEXT.intro.map(([title, words]) => h("div", { class: "avl-panel" }, h("h2", {}, title), h("p", {}, words))));
    return { update: () => show(node, !(store.state.run && store.state.run.start)) };
  },
};
